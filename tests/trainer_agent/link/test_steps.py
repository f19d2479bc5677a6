"""Steps that are gathered at one end are the same when they are taken apart at the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from midcourse.link.v1 import link_pb2
from trainer_agent.link.steps import MOST_STEPS, StepBatch, reports

NAMES = st.lists(st.sampled_from(["loss", "learning_rate", "grad_norm"]), unique=True)
Step = tuple[int, int, float | None, dict[str, float]]


@st.composite
def steps_alike(draw: st.DrawFn) -> list[Step]:
    names = draw(NAMES)
    count = draw(st.integers(1, 20))
    return [
        (
            index + 1,
            draw(st.integers(0, 2**62)),
            draw(st.none() | st.floats(0, 100)),
            {name: draw(st.floats()) for name in names},
        )
        for index in range(count)
    ]


@given(steps_alike(), st.none() | st.integers(1, 10**6))
def test_what_goes_in_comes_out(steps: list[Step], max_steps: int | None) -> None:
    batch = StepBatch()
    for step in steps:
        batch.steps.append(step)
    if max_steps is not None:
        batch.plan(max_steps)
    (message,) = batch.take()
    read = link_pb2.TrainerMessage.FromString(message.SerializeToString())
    apart = list(reports(read.steps))
    assert [(r.step, r.time_nanos) for r in apart] == [(s[0], s[1]) for s in steps]
    for report, (_, _, _, metrics) in zip(apart, steps, strict=True):
        assert list(report.names) == list(metrics)
        assert [v.hex() for v in report.values] == [v.hex() for v in metrics.values()]
    last = apart[-1]
    assert (last.epoch if last.HasField("epoch") else None) == steps[-1][2]
    assert (last.max_steps if last.HasField("max_steps") else None) == max_steps
    assert not any(r.HasField("epoch") or r.HasField("max_steps") for r in apart[:-1])


def test_a_batch_is_empty_once_taken() -> None:
    batch = StepBatch()
    batch.steps.append((1, 2, 0.5, {"loss": 1.0}))
    batch.plan(10)
    list(batch.take())
    assert not batch.steps
    assert not list(batch.take())
    batch.steps.append((2, 3, None, {}))
    (message,) = batch.take()
    (report,) = reports(message.steps)
    assert report == link_pb2.StepReport(step=2, time_nanos=3)


def test_steps_with_other_metrics_and_too_many_steps_go_in_several_messages() -> None:
    batch = StepBatch()
    for step in range(MOST_STEPS + 1):
        batch.steps.append((step, 0, None, {"a": 1.0}))
    batch.steps.append((MOST_STEPS + 1, 0, None, {"b": 1.0}))
    messages = list(batch.take())
    assert [len(message.steps.steps) for message in messages] == [MOST_STEPS, 1, 1]
    apart = [report.step for message in messages for report in reports(message.steps)]
    assert apart == list(range(MOST_STEPS + 2))


def test_of_a_batch_that_does_not_hold_together_whole_steps_are_taken() -> None:
    batch = link_pb2.StepReports(
        steps=[1, 2], time_nanos=[3, 4], names=["a", "b"], values=[5, 6, 7]
    )
    first, second = reports(batch)
    assert list(first.values) == [5, 6]
    assert (second.step, list(second.names)) == (2, [])
