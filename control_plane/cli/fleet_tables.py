"""Tables about many jobs, out of the API's messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from control_plane.cli import describe, tables
from control_plane.cli import format as fmt
from control_plane.cli.fitting import FittingTable
from control_plane.cli.fleet_progress import counts
from control_plane.client import job_id
from midcourse.control.v1 import batch_pb2, control_pb2, update_pb2

FEW = 50
"""Up to so many jobs are shown one by one; of more, those where something is amiss."""

_SETTLED_WELL = frozenset({update_pb2.UPDATE_STATE_APPLIED})


def jobs(count: int) -> str:
    """Returns 1 job, 12 jobs."""
    return f"{count} job{'' if count == 1 else 's'}"


def asked(spec: update_pb2.UpdateSpec) -> list[str]:
    """Returns what is asked of each job."""
    return describe.changes(update_pb2.Update(spec=spec))


def expected(answer: control_pb2.BatchUpdateParametersResponse) -> FittingTable:
    """Returns the table of what would change on each job."""
    table = FittingTable(*("JOB", "WOULD CHANGE"), wrap={"JOB": 20, "WOULD CHANGE": 30})
    for item in answer.items:
        refused = item.refusal.message or item.refusal.reason
        what = Text(f"not valid: {refused}", style="red") if refused else ""
        table.add_row(job_id(item.job), what or "\n".join(_would(answer.batch.spec, item)))
    return table


def items(spec: update_pb2.UpdateSpec, of: Sequence[batch_pb2.BatchItem]) -> FittingTable | Text:
    """Returns the table of what became of a batch: of many jobs, only those that lack it."""
    shown = of if len(of) <= FEW else [item for item in of if item.HasField("refusal")]
    if not shown:
        return Text("", end="")
    table = FittingTable(
        *("JOB", "REV", "STATE", "STEP", "RESULT"),
        right=("REV", "STEP"),
        wrap={"JOB": 20, "RESULT": 20},
    )
    for item in shown:
        table.add_row(
            job_id(item.job),
            str(item.revision) if item.revision else fmt.UNKNOWN,
            _state(item),
            str(item.step) if item.HasField("step") else fmt.UNKNOWN,
            item.refusal.message
            or item.refusal.reason
            or ", ".join(describe.transitions(item.transitions) or asked(spec))
            if item.state in _SETTLED_WELL or item.HasField("refusal")
            else ", ".join(_would(spec, item)),
        )
    return table


def summary(batch: batch_pb2.Batch, of: Iterable[batch_pb2.BatchItem]) -> str:
    """Returns the line about a batch as a whole."""
    steps = [item.step for item in of if item.HasField("step")]
    words = f"{batch.name}: {counts(batch.progress) or 'nothing'} of {batch.progress.total}"
    if steps:
        low, high = min(steps), max(steps)
        words += (
            f", at step{'' if low == high else 's'} {low}{'' if low == high else f' to {high}'}"
        )
    return words


def batches(of: Iterable[batch_pb2.Batch], now: float) -> FittingTable:
    """Returns the table of batches."""
    table = FittingTable(
        *("BATCH", "JOBS", "CHANGE", "PROGRESS", "AUTHOR", "WHEN", "REASON"),
        right=("BATCH",),
        wrap={"JOBS": 12, "CHANGE": 15, "PROGRESS": 12, "REASON": 12},
        leave_out=("AUTHOR", "WHEN", "REASON"),
    )
    for batch in of:
        table.add_row(
            batch.name.removeprefix("batches/"),
            batch.selector or f"{batch.progress.total} by name",
            "\n".join(asked(batch.spec)),
            counts(batch.progress),
            batch.author or fmt.UNKNOWN,
            fmt.age(now - describe.seconds(batch.create_time)),
            batch.spec.reason or fmt.UNKNOWN,
        )
    return table


def _would(spec: update_pb2.UpdateSpec, item: batch_pb2.BatchItem) -> list[str]:
    """Returns old → new where that is known, else what is asked for and the value in force."""
    lines = []
    told = {(t.parameter, t.group): t for t in item.transitions}
    for change in spec.changes:
        known = told.pop((change.parameter, change.group), None)
        if known is not None and known.HasField("new_value") and known.HasField("old_value"):
            lines += describe.transitions([known])
        elif known is not None and known.HasField("old_value"):
            lines.append(f"{describe.change(change)} (now {describe.value(known.old_value)})")
        else:
            lines.append(describe.change(change))
    lines += describe.transitions(told.values())
    return lines + ([describe.action(spec.action)] if spec.HasField("action") else [])


def _state(item: batch_pb2.BatchItem) -> Text:
    if item.state == update_pb2.UPDATE_STATE_UNSPECIFIED:
        return Text("REFUSED", style="red")
    return tables.update_state(update_pb2.Update(state=item.state))
