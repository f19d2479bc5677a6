"""Any sequence of updates and actions over a short run, against a model of what is in force when.

A real trainer, with the real callback, runs what is drawn; the model says what every step should
have used and how every update should have ended. ``MIDCOURSE_EXAMPLES`` draws more of them.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.integration.scripted_sequence import (
    STEPS,
    Script,
    go_through,
)
from tests.support.in_force_model import (
    Asked,
    Delivery,
    Event,
    Withdrawal,
)
from tests.support.in_force_values import (
    ACCUMULATION,
    BATCH,
    BROKEN_LEVEL,
    CLIP,
    DECAY,
    GLOBAL,
    LEVEL,
    LOGGING,
    MAX_STEPS,
    PHASE,
    PHASES,
    PINNED,
    RATE,
)
from trainer_agent.parameters import (
    Change,
    Coupling,
    Multiply,
    Ramp,
    Release,
    Set,
    SetMode,
)

EXAMPLES = int(os.environ.get("MIDCOURSE_EXAMPLES", "30"))

rates = st.sampled_from([0.003, 0.02, 0.07, 0.3, 0.9, 3.0])
targets: dict[str, st.SearchStrategy[Any]] = {
    DECAY: st.sampled_from([0.01, 0.05, 0.3, 0.5, -1.0]),
    CLIP: st.sampled_from([0.05, 0.5, 2.0, 0.0, -1.0]),
    ACCUMULATION: st.sampled_from([1, 2, 3, 4, 5, 0, 1.5]),
    GLOBAL: st.sampled_from([4, 8, 12, 16, 6]),
    BATCH: st.sampled_from([2, 3, 4, 6, 22]),
    LOGGING: st.sampled_from([1, 2, 3, 5, 0]),
    MAX_STEPS: st.sampled_from([3, 8, 12, STEPS + 1, STEPS + 4]),
    LEVEL: st.sampled_from([0, 1, 5, BROKEN_LEVEL, 12]),
    PHASE: st.sampled_from([*PHASES, "hot"]),
    PINNED: st.just(0.25),
    "no_such_parameter": st.just(1.0),
}
couplings = st.sampled_from([Coupling.NONE, Coupling.NONE, Coupling.LINEAR, Coupling.SQRT])


@st.composite
def rate_changes(draw: st.DrawFn) -> Change:
    match draw(st.sampled_from(["set", "peak", "hold", "multiply", "ramp", "release"])):
        case "set":
            return Set(RATE, draw(rates))
        case "peak":
            return Set(RATE, draw(rates), SetMode.PEAK)
        case "hold":
            return Set(RATE, draw(rates), SetMode.HOLD, draw(st.none() | st.integers(1, 4)))
        case "multiply":
            return Multiply(RATE, draw(st.sampled_from([0.5, 3.0, 30.0])))
        case "ramp":
            return Ramp(RATE, draw(rates), draw(st.integers(1, 5)))
        case _:
            return Release(RATE)


@st.composite
def other_changes(draw: st.DrawFn, name: str) -> Change:
    kind = draw(st.sampled_from(["set", "set", "set", "set", "multiply", "release", "ramp"]))
    coupling = draw(couplings) if name in {ACCUMULATION, GLOBAL, BATCH} else Coupling.NONE
    match kind:
        case "multiply":
            return Multiply(name, draw(st.sampled_from([0.5, 2.0])), coupling=coupling)
        case "release":
            return Release(name)
        case "ramp":
            return Ramp(name, 0.3, 2)
        case _:
            return Set(name, draw(targets[name]), coupling=coupling)


names = st.sampled_from([RATE, RATE, RATE, *targets])


@st.composite
def updates(draw: st.DrawFn, revision: int) -> Asked:
    asked = draw(st.lists(names, unique=True, min_size=0, max_size=3))
    changes = tuple(draw(rate_changes() if name == RATE else other_changes(name)) for name in asked)
    action = None
    if not changes or draw(st.integers(0, 5)) == 0:
        kinds = ["pause", "resume", "save_checkpoint", "evaluate", "pause", "evaluate"]
        action = draw(st.sampled_from([*kinds, "stop", "roll_back"]))
    at_step = draw(st.none() | st.none() | st.integers(1, STEPS + 2))
    max_step = draw(st.none() | st.none() | st.none() | st.integers(1, STEPS))
    return Asked(
        revision,
        changes,
        action,
        at_step=at_step,
        max_step=max_step,
        overdue=draw(st.integers(0, 9)) == 0,
        author=draw(st.sampled_from(["ann", "bob"])),
        force=draw(st.booleans()),
    )


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.integers(1, 10))
    asked = [draw(updates(revision)) for revision in range(1, count + 1)]
    held = draw(st.integers(0, 3))
    places = st.integers(1, STEPS) | st.integers(1, STEPS) | st.integers(-held, -1 if held else 1)
    events: list[tuple[int, Event]] = []
    for each in asked:
        at = draw(places)
        events.append((at, Delivery(each)))
        match draw(st.sampled_from(["", "", "", "again", "later", "withdrawn"])):
            case "again":
                events.append((at, Delivery(each)))
            case "later":
                events.append((draw(places), Delivery(each)))
            case "withdrawn":
                events.append((draw(places), Withdrawal(each.revision)))
            case _:
                pass
    at_place = {
        place: [each for where, each in events if where == place]
        for place in {where for where, _ in events}
    }
    return Script(
        decreasing=draw(st.booleans()),
        arrivals={place: each for place, each in at_place.items() if place > 0},
        while_held=[at_place.get(-index, []) for index in range(1, held + 1)],
    )


@pytest.mark.timeout(900)  # shrinking a failure takes its time
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(scripts())
def test_any_sequence_is_in_force_as_it_should_be(script: Script) -> None:
    model = go_through(script)
    for each in model.ended.values():
        event(f"{each.how} {each.why}")
