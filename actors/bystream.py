"""A dictionary by (stream, name), of which one stream's part is found without a look at all the others."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TypeVar

T = TypeVar("T")


class ByStream(MutableMapping[tuple[str, str], T]):
    """Costs what its entries cost: streams without any are not kept."""

    __slots__ = ("_size", "_streams")

    def __init__(self) -> None:
        self._streams: dict[str, dict[str, T]] = {}
        self._size = 0

    def names(self, stream: str) -> list[str]:
        """Of the entries of one stream."""
        return [*self._streams.get(stream, ())]

    def streams(self) -> list[str]:
        return [*self._streams]

    def __getitem__(self, key: tuple[str, str]) -> T:
        return self._streams[key[0]][key[1]]

    def __setitem__(self, key: tuple[str, str], value: T) -> None:
        names = self._streams.setdefault(key[0], {})
        self._size -= len(names)
        names[key[1]] = value
        self._size += len(names)

    def __delitem__(self, key: tuple[str, str]) -> None:
        stream, name = key
        names = self._streams[stream]
        del names[name]
        self._size -= 1
        if not names:
            del self._streams[stream]

    def clear(self) -> None:
        self._streams.clear()
        self._size = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((stream, name) for stream, names in self._streams.items() for name in names)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and key[1] in self._streams.get(key[0], ())

    def get(self, key: tuple[str, str], default: T | None = None) -> T | None:  # type: ignore[override]  # None only
        names = self._streams.get(key[0])
        return default if names is None else names.get(key[1], default)
