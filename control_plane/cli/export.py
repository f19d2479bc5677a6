"""A steered run as a file that replays it without a control plane. Pure.

The file is YAML that a person can read and edit, or JSON, which is YAML too::

    version: 1
    job: "my-run"
    method: "sft"
    updates:
      # learning_rate 2.0e-05 → 1.0e-05
      - step: 120
        revision: 3
        author: "ops"
        reason: "loss is flat"
        changes:
          - parameter: "learning_rate"
            set: 1.0e-05

``step`` is the first optimizer step that used the change. Only what the run's present weights went
through is told. Values are exact. It is written here rather than by a library: the command line
needs none for anything else, and a number like 1e-05 must not be read as a text, which YAML 1.1
does without a point in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from control_plane.changes import from_value
from control_plane.cli import describe, printable
from control_plane.client import job_id
from midcourse.control.v1 import control_pb2, job_pb2, parameter_pb2, update_pb2

VERSION: Final = 1
_REPLAYED: Final = frozenset({"evaluate", "save_checkpoint", "stop"})
_MODES: Final = {update_pb2.SET_MODE_PEAK: "peak", update_pb2.SET_MODE_HOLD: "hold"}
_COUPLINGS: Final = {update_pb2.COUPLING_LINEAR: "linear", update_pb2.COUPLING_SQRT: "sqrt"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One update of a recipe.

    Attributes:
        update: As the file has it; None: only the notes stand there.
        notes: For readers, before it.
    """

    update: Mapping[str, Any] | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A steered run, in the order in which its updates were applied."""

    job: str
    method: str
    entries: tuple[Entry, ...]

    def content(self) -> dict[str, Any]:
        """Returns what the file says, without the notes."""
        return {
            "version": VERSION,
            "job": self.job,
            "method": self.method,
            "updates": [entry.update for entry in self.entries if entry.update is not None],
        }


def recipe(
    job: job_pb2.Job,
    updates: Iterable[update_pb2.Update],
    lineage: Sequence[control_pb2.LineageSpan],
) -> Recipe:
    """Returns what has to be done to a run for it to become this one.

    Args:
        job: The job.
        updates: Its updates, in any order.
        lineage: The steps that its weights went through.
    """
    placed: list[tuple[int, int, Entry]] = []
    for update in updates:
        if not update.HasField("applied"):
            continue
        # What was applied again after going back was applied there, not where it was first.
        last = update.reapplied[-1] if update.reapplied else update.applied
        said = ", ".join(describe.changes(update))
        if update.rolled_back_by:
            by = f"revision {update.rolled_back_by} went back to before it"
            note = f"revision {update.revision}, {said}: left out, as {by}"
            placed.append((last.step, update.revision, Entry(None, (note,))))
        elif not last.step:
            note = f"revision {update.revision}, {said}: left out, its step is not known"
            placed.append((0, update.revision, Entry(None, (note,))))
        elif _within(lineage, last):
            first_time = last is update.applied
            entry = _entry(update, last, first_time=first_time)
            placed.append((last.step, update.revision, entry))
    placed.sort(key=lambda each: each[:2])
    return Recipe(job_id(job.name), job.method, tuple(entry for *_, entry in placed))


def to_json(of: Recipe) -> str:
    """Returns the file as JSON, which readers of YAML read alike."""
    return _json(of.content()) + "\n"


def to_yaml(of: Recipe) -> str:
    """Returns the file as YAML with notes."""
    return "\n".join([*_yaml_lines(of), ""])


def _within(lineage: Sequence[control_pb2.LineageSpan], applied: update_pb2.Applied) -> bool:
    """Tells whether the run's weights went through an application.

    The step after the last one of a span counts: what is applied at a boundary is in the checkpoint
    that is saved there, and the step that first uses it is taken by the process that goes on.
    """
    if not lineage:
        return True  # a control plane of before does not say
    return any(
        applied.instance_id == span.instance_id
        and span.first_step <= applied.step
        and (not span.HasField("last_step") or applied.step <= span.last_step + 1)
        for span in lineage
    )


def _entry(update: update_pb2.Update, applied: update_pb2.Applied, *, first_time: bool) -> Entry:
    notes = [_transition(each) for each in applied.transitions]
    kind = update.spec.action.WhichOneof("kind")
    replayed = kind if kind in _REPLAYED and first_time else None
    if kind is not None and replayed is None:
        why = "it was not repeated here" if not first_time else "a replay does without"
        notes.append(
            f"revision {update.revision} at step {applied.step}:"
            f" {describe.action(update.spec.action)} is left out, as {why}"
        )
    if led_to := describe.result(applied.action_result):
        notes.append(led_to)
    content: dict[str, Any] = {"step": applied.step, "revision": update.revision}
    content |= {"author": update.author} if update.author else {}
    content |= {"reason": update.spec.reason} if update.spec.reason else {}
    if update.spec.changes:
        content["changes"] = [_change(change) for change in update.spec.changes]
    if replayed is not None:
        content["action"] = replayed
    empty = not update.spec.changes and replayed is None
    return Entry(None if empty else content, tuple(notes))


def _change(change: update_pb2.Change) -> dict[str, Any]:
    made: dict[str, Any] = {"parameter": change.parameter}
    match change.WhichOneof("operation"):
        case "set":
            made["set"] = from_value(change.set.value)
            if mode := _MODES.get(change.set.mode):
                made["mode"] = mode
            if change.set.HasField("hold_steps"):
                made["hold_steps"] = change.set.hold_steps
        case "multiply":
            made["multiply"] = change.multiply.factor
        case "ramp":
            made["ramp"] = {"value": from_value(change.ramp.value), "steps": change.ramp.steps}
        case "schedule":
            made["schedule"] = _schedule(change.schedule)
        case "release":
            made["release"] = True
        case None:
            pass  # never accepted
    if change.group:
        made["group"] = change.group
    if coupling := _COUPLINGS.get(change.coupling):
        made["coupling"] = coupling
    return made


def _schedule(plan: update_pb2.ScheduleChange) -> dict[str, Any]:
    shape = update_pb2.ScheduleShape.Name(plan.shape).removeprefix("SCHEDULE_SHAPE_").lower()
    made: dict[str, Any] = {"shape": shape}
    if plan.HasField("peak"):
        made["peak"] = plan.peak
    made |= {"warmup_steps": plan.warmup_steps, "floor": plan.floor}
    if plan.HasField("steps"):
        made["steps"] = plan.steps
    return made


def _transition(of: update_pb2.ParameterTransition) -> str:
    name = f"{of.parameter}[{of.group}]" if of.group else of.parameter
    return f"{name} {_exact(of.old_value)} → {_exact(of.new_value)}"


def _exact(value: parameter_pb2.Value) -> str:
    known = from_value(value)
    return "unknown" if known is None else _scalar(known)


def _json(value: Any, indent: str = "") -> str:
    inner = f"{indent}  "
    if isinstance(value, dict):
        parts = [f"{_scalar(key)}: {_json(each, inner)}" for key, each in value.items()]
        begin, end = "{}"
    elif isinstance(value, list):
        parts = [_json(each, inner) for each in value]
        begin, end = "[]"
    else:
        return _scalar(value)
    lines = ",\n".join(inner + part for part in parts)
    return f"{begin}\n{lines}\n{indent}{end}" if parts else begin + end


def _yaml_lines(of: Recipe) -> Iterator[str]:
    yield "# What was changed in a run, and at which optimizer step it was first used."
    yield f"version: {VERSION}"
    yield f"job: {_scalar(of.job)}"
    yield f"method: {_scalar(of.method)}"
    if all(entry.update is None for entry in of.entries):
        yield "updates: []"
    else:
        yield "updates:"
    for entry in of.entries:
        for note in entry.notes:
            yield f"  # {_comment(note)}"
        if entry.update is not None:
            yield from _item(entry.update, "  ")


def _item(content: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yields a mapping as an item of a list."""
    lead = f"{indent}- "
    for key, value in content.items():
        if isinstance(value, list):
            yield f"{lead}{key}:"
            for each in value:
                yield from _item(each, f"{indent}    ")
        elif isinstance(value, Mapping):
            fields = ", ".join(f"{name}: {_scalar(each)}" for name, each in value.items())
            yield f"{lead}{key}: {{{fields}}}"
        else:
            yield f"{lead}{key}: {_scalar(value)}"
        lead = f"{indent}  "


def _scalar(value: bool | int | float | str) -> str:
    """Returns a scalar that every reader of JSON and of YAML 1.1 and 1.2 takes for what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        mantissa, mark, exponent = repr(value).partition("e")
        return repr(value) if "." in mantissa or not mark else f"{mantissa}.0e{exponent}"
    # What JSON leaves as it is YAML may want escaped; what JSON escapes in halves YAML takes as is.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        each if each.isprintable() or ord(each) > 0xFFFF else f"\\u{ord(each):04X}" for each in text
    )


def _comment(text: str) -> str:
    """Returns a text as one line that no YAML reader takes offence at."""
    line = printable.line(text)
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)
