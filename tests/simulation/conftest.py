from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _hush() -> Iterator[None]:
    """Thousands of lines about faults that are meant cost more than the runs. One seed is run with them."""
    logging.disable(logging.NOTSET if "MECHA_SEED" in os.environ else logging.ERROR)
    yield
    logging.disable(logging.NOTSET)
