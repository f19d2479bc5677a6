"""Assignments and options of `midcourse set` turned into changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import typer

from control_plane import changes as make
from control_plane.changes import Coupling
from control_plane.cli import assignments as grammar
from control_plane.cli.assignments import AssignmentError, Current, Multiply, Release, Set
from midcourse.control.v1 import parameter_pb2, update_pb2

_KINDS: Final[dict[parameter_pb2.ParameterKind.ValueType, grammar.Kind]] = {
    parameter_pb2.PARAMETER_KIND_NUMBER: "number",
    parameter_pb2.PARAMETER_KIND_INTEGER: "integer",
    parameter_pb2.PARAMETER_KIND_BOOLEAN: "boolean",
    parameter_pb2.PARAMETER_KIND_TEXT: "text",
}
# The control plane knows and says so too; what else is assigned beside them does not follow.
_BATCH_PARAMETERS: Final = (
    "gradient_accumulation_steps",
    "global_batch_size",
    "per_device_train_batch_size",
)


@dataclass(frozen=True, slots=True)
class How:
    """The options that say how values change."""

    mode: Literal["set", "peak", "hold", "ramp", "schedule"] = "set"
    steps: int | None = None
    shape: Literal["linear", "cosine", "constant"] | None = None
    warmup: int | None = None
    floor: float | None = None
    group: str = ""
    coupling: Coupling = "none"

    def check(self) -> None:
        """Makes sure that the options go together.

        Raises:
            typer.BadParameter: They do not.
        """
        if self.mode == "ramp" and self.steps is None:
            raise typer.BadParameter("--mode ramp needs --steps, the length of the ramp")
        if self.mode == "schedule" and self.shape is None:
            raise typer.BadParameter("--mode schedule needs --shape linear, cosine or constant")
        if self.steps is not None and self.mode not in ("hold", "ramp", "schedule"):
            raise typer.BadParameter("--steps goes with --mode hold, ramp or schedule")
        if self.coupling != "none" and self.mode != "set":
            raise typer.BadParameter("--coupling goes with --mode set")
        if self.mode != "schedule":
            for flag, given in (
                ("--shape", self.shape),
                ("--warmup", self.warmup),
                ("--floor", self.floor),
            ):
                if given is not None:
                    raise typer.BadParameter(f"{flag} goes with --mode schedule")


def split(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the name and the value in each assignment.

    Raises:
        typer.BadParameter: One is none; the message says what it lacks.
    """
    try:
        return [grammar.split_assignment(text) for text in texts]
    except AssignmentError as error:
        raise typer.BadParameter(str(error)) from None


def changes(
    assigned: Iterable[tuple[str, str]], specs: Iterable[parameter_pb2.ParameterSpec], how: How
) -> list[update_pb2.Change]:
    """Returns the changes that assignments ask for.

    Args:
        assigned: Names and values as typed, see `split`.
        specs: The live parameters of the job: they say how a value is to be read. What they do
            not know is passed on by its looks, for the control plane to refuse.
        how: The options.

    Raises:
        typer.BadParameter: A value cannot be understood, or does not go with the options.
    """
    kinds = {spec.name: _KINDS.get(spec.kind) for spec in specs}
    made: list[update_pb2.Change] = []
    for name, value in assigned:
        try:
            made.append(_change(name, grammar.interpret(name, value, kinds.get(name)), how))
        except (AssignmentError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
    if how.coupling != "none" and not any(change.coupling for change in made):
        batch = ", ".join(_BATCH_PARAMETERS)
        raise typer.BadParameter(f"--coupling goes with setting a batch size: {batch}")
    return made


def _change(name: str, meaning: grammar.Meaning, how: How) -> update_pb2.Change:
    match meaning:
        case Release():
            return make.release(name, group=how.group)
        case Multiply(factor):
            if how.mode != "set":
                raise AssignmentError(f"{name}: multiplying does not go with --mode {how.mode}")
            return make.multiply(name, factor, group=how.group)
        case Current() if how.mode == "schedule":
            return _schedule(name, None, how)
        case Current():
            raise AssignmentError(f"{name}=current goes with --mode schedule")
        case Set(value):
            return _set(name, value, how)


def _set(name: str, value: grammar.Scalar, how: How) -> update_pb2.Change:
    match how.mode:
        case "ramp":
            assert how.steps is not None
            return make.ramp(name, value, steps=how.steps, group=how.group)
        case "schedule":
            if isinstance(value, bool | str):
                raise AssignmentError(f"{name}: a schedule is for numbers, got {value!r}")
            return _schedule(name, float(value), how)
        case "set" | "peak" | "hold":
            return make.set_value(
                name,
                value,
                mode=how.mode,
                hold_steps=how.steps,
                group=how.group,
                coupling=how.coupling if name in _BATCH_PARAMETERS else "none",
            )


def _schedule(name: str, peak: float | None, how: How) -> update_pb2.Change:
    assert how.shape is not None
    return make.schedule(
        name,
        how.shape,
        peak=peak,
        warmup_steps=how.warmup or 0,
        floor=how.floor or 0.0,
        steps=how.steps,
        group=how.group,
    )
