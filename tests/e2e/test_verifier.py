"""What the verifier itself promises, without a cluster: a seed is its programs, which hold all that they should; and a
wrong actor is seen. And, for long runs of tests, the one of its faults that `test_ray_cluster.py` leaves out."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.e2e.verifier import Maker, Model, verify
from tests.placements import ON_RAY

KINDS = {"inc", "set", "get", "clear", "call", "fail", "send", "later", "soon", "maybe"}


def made(seed: int) -> tuple[list[Any], list[Any], Model]:
    """Programs of actors, those of workflows, and what must come of them."""
    maker = Maker(random.Random(seed))
    actors = [maker.steps(0, maker.some(), 0) for _ in range(300)]
    workflows = [maker.workflow(number) for number in range(100)]
    return actors, workflows, maker.model


def kinds_in(program: list[Any]) -> set[str]:
    nested = [part for step in program for part in step if isinstance(part, list)]
    return {step[0] for step in program}.union(*map(kinds_in, nested))


def increments(layer: int, actor: str, program: list[Any]) -> Counter[str]:
    """What must come of it, told from the program: the other way than the maker does it."""
    found: Counter[str] = Counter()
    for kind, *rest in program:
        if kind == "inc":
            found[f"Layer{layer}/{actor}"] += 1
        elif kind in ("call", "send"):
            found += increments(layer + 1, rest[0], rest[1])
        elif kind == "later":
            found += increments(layer, actor, rest[1])
    return found


def test_a_seed_is_its_programs() -> None:
    """What a run found can be run again: the programs follow from the seed alone."""
    assert made(7) == made(7)
    assert made(7) != made(8)


def test_programs_hold_all_kinds_of_steps() -> None:
    """No kind of step goes untried in a run."""
    actors, workflows, _ = made(1)
    assert set().union(*map(kinds_in, actors)) == KINDS
    assert {step[0] for program in workflows for step in program} == {"call", "fail", "send", "step", "sleep"}
    checks = [step for program in actors for step in program if step[0] == "get" and len(step) == 3]
    assert {step[2] is None for step in checks} == {True, False}


def test_the_model_is_what_programs_do() -> None:
    """The counts expected are those of walking a program by hand, whatever is tried, fails or is sent in it."""
    maker = Maker(random.Random(1))
    found: Counter[str] = Counter()
    for _ in range(300):
        actor = maker.some()
        found += increments(0, actor, maker.steps(0, actor, 0))
    for number in range(100):
        for kind, *rest in maker.workflow(number):
            if kind in ("call", "send"):
                layer, _, actor = rest[0].removeprefix("Layer").partition("/")
                found += increments(int(layer), actor, rest[1])
    assert found == maker.model.counters


def test_a_workflow_does_to_its_key_one_thing_after_the_other() -> None:
    """Set, refused, there, gone: each step of it after the one before, whatever is in between."""
    *_, model = made(1)
    assert model.kept
    maker = Maker(random.Random(1))
    for number in range(200):
        key = f"w{number}"
        value: int | None = None
        for kind, *rest in maker.workflow(number):
            for step in rest[1] if kind == "call" else []:
                if step[0] == "get" and step[1] == key:
                    assert step[2] == value
                elif step[:2] == ["set", key]:
                    value = step[2]
                elif step == ["clear", key]:
                    value = None
        kept = [values[key] for values in maker.model.kept.values() if key in values]
        assert kept == ([] if value is None else [value])


@pytest.mark.parametrize(
    ("wrong", "beyond"),
    [
        ({"counter": 4}, True),
        ({"counter": 2}, False),
        ({"maybe": 2}, True),
        ({"kept": {}}, True),
        ({"kept": {"w1": 5, "w2": 1}}, True),
        ({"wrong": ["a get"]}, True),
    ],
)
def test_what_is_wrong_is_seen(wrong: dict[str, Any], beyond: bool) -> None:
    """Each answer that breaks a promise is one fault, whatever else is right."""
    model = Model(Counter(a=3), Counter(a=1), {"a": {"w1": 5}})
    right = {"counter": 3, "maybe": 0, "kept": {"w1": 5}, "wrong": []}
    assert model.faults_of("a", right) == []
    assert len(model.faults_of("a", right | wrong)) == 1
    assert (model.is_beyond("a", right), model.is_beyond("a", right | wrong)) == (False, beyond)


@pytest.mark.slow
@ON_RAY
def test_random_programs_while_raylets_die() -> None:
    """Hosts become zombies, nodes come instead, and at the end every counter and every value is right."""
    verify(2000, 1, ("raylet", "answers"))
