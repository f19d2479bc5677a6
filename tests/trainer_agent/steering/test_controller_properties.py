"""Whatever arrives in whatever order: applied at most once, in order, one outcome each."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plain_loop import START_RATE, PlainLoop
from tests.support.scripted_link import set_change

STEPS = 8
REVISIONS = st.integers(min_value=1, max_value=6)
BOUNDARIES = st.integers(min_value=0, max_value=STEPS)


@dataclass(frozen=True)
class Asked:
    """An update: sets the rate to a value of its own, or asks for something impossible."""

    revision: int
    possible: bool
    due: int | None
    max_step: int | None
    deadline: int | None

    @property
    def value(self) -> float:
        return self.revision / 100 if self.possible else -1.0


@dataclass
class Model:
    """The same, said plainly. At boundary n it is n o'clock."""

    updates: dict[int, Asked]
    held: set[int] = field(default_factory=set)
    settled: dict[int, str] = field(default_factory=dict)
    fresh: dict[int, int] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    rate: float = START_RATE

    def deliver(self, revision: int) -> None:
        if revision not in self.settled and revision not in self.fresh:
            self.held.add(revision)

    def withdraw(self, revision: int) -> None:
        if revision not in self.settled and revision not in self.fresh:
            self.held.discard(revision)
            self.settled[revision] = "withdrawn"

    def boundary(self, now: int, *, last: bool) -> None:
        for revision, step in self.fresh.items():
            self.settled[revision] = f"applied {step}"
        self.fresh.clear()
        for revision in sorted(self.held):
            asked = self.updates[revision]
            late = asked.deadline is not None and now >= asked.deadline
            if late or (asked.max_step is not None and now + 1 > asked.max_step):
                result = "expired"
            elif last or (asked.due is not None and now + 1 < asked.due):
                continue
            elif not asked.possible:
                result = "rejected"
            else:
                self.held.discard(revision)
                self.fresh[revision] = now + 1
                self.rate = asked.value
                continue
            self.held.discard(revision)
            self.settled[revision] = result

    def finish(self) -> None:
        for revision in [*self.held, *self.fresh]:
            self.settled[revision] = "expired"


def updates() -> st.SearchStrategy[dict[int, Asked]]:
    step = st.none() | st.integers(min_value=0, max_value=STEPS + 1)
    return st.fixed_dictionaries(
        {
            revision: st.builds(
                Asked,
                revision=st.just(revision),
                possible=st.integers(0, 4).map(bool),
                due=step,
                max_step=step,
                deadline=step,
            )
            for revision in range(1, 7)
        }
    )


EVENTS = st.lists(
    st.tuples(BOUNDARIES, st.sampled_from(["deliver", "deliver", "withdraw"]), REVISIONS),
    max_size=25,
)


@settings(deadline=None, max_examples=200)
@given(asked=updates(), events=EVENTS, ended_early=st.booleans())
def test_against_the_model(
    asked: dict[int, Asked], events: list[tuple[int, str, int]], ended_early: bool
) -> None:
    loop, model = PlainLoop(max_steps=STEPS), Model(asked)
    for now in range(STEPS + 1):
        loop.nanos = now
        for at, what, revision in events:
            if at != now:
                continue
            each = asked[revision]
            if what == "withdraw":
                loop.controller.withdraw(revision)
                model.withdraw(revision)
            else:
                loop.deliver(
                    revision,
                    set_change(each.value),
                    at_step=each.due,
                    max_step=each.max_step,
                    deadline=each.deadline,
                )
                model.deliver(revision)
        last = now == STEPS and not ended_early
        if now:
            loop.used[now] = loop.rate
            model.rates[now] = model.rate
            loop.controller.optimizer_stepped()
            loop.global_step = now
        loop.at_boundary(last=last)
        model.boundary(now, last=last)
        assert loop.rate == model.rate
        assert loop.held() == sorted(model.held)
    loop.finish()
    model.finish()

    assert loop.used == model.rates
    told: dict[int, set[str]] = {}
    for outcome in loop.outcomes:
        kind = outcome.WhichOneof("result")
        assert kind is not None
        said = f"applied {outcome.applied.step}" if kind == "applied" else kind
        told.setdefault(outcome.revision, set()).add(said)
    assert told == {revision: {result} for revision, result in model.settled.items()}
    in_force = {
        revision
        for each in loop.controller.in_force()
        for revision in range(each.first, each.last + 1)
    }
    assert in_force == {
        revision for revision, result in model.settled.items() if result.startswith("applied")
    }
