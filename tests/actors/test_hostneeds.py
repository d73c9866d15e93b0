"""What actor types ask of the nodes of their hosts: what can be written, what is refused, which nodes have it."""

from __future__ import annotations

from typing import Any

import pytest

from actors import actor, definition_of
from actors.hostneeds import NOTHING, UNLIMITED, HostNeeds, combined, host_needs


def test_an_actor_type_says_what_it_needs() -> None:
    """`@actor(resources=…, labels=…)` is kept with the type; without them it asks for nothing."""

    @actor(resources={"num_gpus": 1, "memory": "2GiB", "num_cpus": 0}, labels={"zone": "in(a, b)"})
    class Model:
        pass

    @actor
    class Plain:
        pass

    found, plain = definition_of(Model), definition_of(Plain)
    assert found is not None
    assert plain is not None
    assert found.options.needs == HostNeeds((("memory", 2.0 * (1 << 30)), ("num_gpus", 1.0)), (("zone", "in(a, b)"),))
    assert plain.options.needs == NOTHING


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512Mi", 512 << 20), ("1.5 GB", 1_500_000_000), ("100", 100), ("1tib", 1 << 40)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    """Memory is bytes, or a text with a unit."""
    assert host_needs({"memory": text}, None) == host_needs({"memory": size}, None)


@pytest.mark.parametrize(
    ("resources", "labels", "says"),
    [
        ({"num_gpus": -1}, None, "write a number, 0 or more"),
        ({"num_gpus": True}, None, "write a number, 0 or more"),
        ({"num_gpus": "1"}, None, "write a number, 0 or more"),
        ({"num_cpus": float("inf")}, None, "write a number, 0 or more"),
        ({"num_cpus": float("nan")}, None, "write a number, 0 or more"),
        ({"num_gpus": 1.5}, None, "above 1 a whole number"),
        ({"special": 0.00001}, None, "write 0.0001 or more"),
        ({"memory": "much"}, None, '"512MiB", "2GiB"'),
        ({"GPU": 1}, None, 'is given as "num_gpus"'),
        ({1: 1}, None, "given by name"),
        ([("num_gpus", 1)], None, "resources= takes a dict"),
        (None, "zone=a", "labels= takes a dict"),
        (None, {"zone": 1}, 'write "a", "!a"'),
        (None, {"zone": "in()"}, 'write "a", "!a"'),
        (None, {"zone": ""}, 'write "a", "!a"'),
        (None, {"my zone": "a"}, "is not a label"),
    ],
)
def test_what_cannot_be_asked_for(resources: Any, labels: Any, says: str) -> None:
    """Refused at decoration, with what to write instead."""
    with pytest.raises(TypeError) as refused:
        actor(resources=resources, labels=labels)
    assert says in str(refused.value)


def test_needs_of_several_types_are_one() -> None:
    """A host serves all types: the largest amount of each resource, and all labels."""
    one = host_needs({"num_gpus": 1, "num_cpus": 2}, {"zone": "a"})
    two = host_needs({"num_gpus": 0.5, "special": 1}, {"zone": "a", "disk": "!hdd"})
    both = combined([("One", one), ("Two", two), ("Three", NOTHING)])
    assert both == host_needs({"num_cpus": 2, "num_gpus": 1, "special": 1}, {"zone": "a", "disk": "!hdd"})
    assert combined([]) == NOTHING


def test_types_that_no_host_can_serve_together() -> None:
    """Two values for one label cannot be had: the error names both types."""
    with pytest.raises(ValueError, match=r"One and Two ask for different values of label zone \(a, b\)"):
        combined([("One", host_needs(None, {"zone": "a"})), ("Two", host_needs(None, {"zone": "b"}))])


@pytest.mark.parametrize(
    ("selector", "fits_a", "fits_c", "fits_without"),
    [
        ("a", True, False, False),
        ("!a", False, True, True),
        ("in(a, b)", True, False, False),
        ("!in(a,b)", False, True, True),
    ],
)
def test_labels_of_nodes(selector: str, fits_a: bool, fits_c: bool, fits_without: bool) -> None:
    """As Ray selects nodes: one without the label is in nothing, so it fits every negation."""
    needs = host_needs(None, {"zone": selector})
    rooms = [needs.room({}, labels) for labels in ({"zone": "a"}, {"zone": "c"}, {"disk": "a"})]
    assert rooms == [UNLIMITED if fits else 0 for fits in (fits_a, fits_c, fits_without)]


def test_the_room_of_a_node() -> None:
    """So many hosts as the scarcest resource allows; a host that asks for no amount always finds room."""
    assert NOTHING.room({}, {}) == UNLIMITED
    assert host_needs({"num_gpus": 1}, None).room({"GPU": 2, "CPU": 1}, {}) == 2
    assert host_needs({"num_gpus": 1, "num_cpus": 1}, None).room({"GPU": 2, "CPU": 1}, {}) == 1
    assert host_needs({"special": 0.3}, None).room({"special": 0.9}, {}) == 3
    assert host_needs({"memory": "1GiB"}, None).room({"memory": (1 << 30) - 1}, {}) == 0


def test_what_a_node_lacks() -> None:
    """Each thing that is asked for and not there, with what is there instead; what is there is not mentioned."""
    needs = host_needs({"num_gpus": 2, "num_cpus": 1, "memory": "2GiB"}, {"zone": "a", "disk": "ssd"})
    lacks = needs.lacks({"CPU": 4, "GPU": 1, "memory": 1 << 30}, {"zone": "b"})
    assert lacks == [
        "memory 1GiB of 2GiB",
        "num_gpus 1 of 2",
        "label disk is not set, not ssd",
        "label zone is b, not a",
    ]
