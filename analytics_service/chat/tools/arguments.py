"""What the tools take: checked here, and described to models as JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from analytics_service.chat.fence import clipped, whole
from control_plane.client import job_id

MAX_POINTS: Final = 200
MAX_METRICS: Final = 8
_MAX_STEP: Final = 2**53 - 1
_MAX_INTEGER: Final = 2**63 - 1
_SHOWN: Final = 60
_MAX_PROBLEMS: Final = 8


class Arguments(BaseModel):
    """Arguments of a tool; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_whole(value: str) -> str:
    if whole(value) != value:
        raise ValueError("has halves of characters (lone surrogates)")
    return value


Text = Annotated[StrictStr, AfterValidator(_check_whole)]


def _plain_job_id(value: object) -> object:
    return job_id(value) if isinstance(value, str) else value


JobId = Annotated[
    Text,
    BeforeValidator(_plain_job_id),
    Field(min_length=1, max_length=63, description="Id of the job, as list_jobs returns it."),
]
Step = Annotated[int, Field(ge=0, le=_MAX_STEP)]

JobStateName = Literal["pending", "running", "stalled", "paused", "lost", "finished", "failed"]
UpdateStateName = Literal["pending", "delivered", "applied", "rejected", "expired", "cancelled"]


class ListJobsArguments(Arguments):
    """Of list_jobs."""

    selector: Text = Field(
        default="",
        max_length=500,
        description=(
            "Label selector as in Kubernetes, such as 'team=nlp,method in (dpo,orpo)'. The keys "
            "job, method and state stand for the job's own. Empty: all jobs."
        ),
    )
    states: list[JobStateName] = Field(
        default=[], max_length=7, description="Only jobs in one of these states. Empty: all."
    )
    limit: int = Field(default=20, ge=1, le=50, description="Most jobs to return.")


class GetJobArguments(Arguments):
    """Of get_job."""

    job: JobId


class MetricSeriesArguments(Arguments):
    """Of metric_series."""

    job: JobId
    metrics: list[Annotated[Text, Field(min_length=1, max_length=200)]] = Field(
        default=[],
        max_length=MAX_METRICS,
        description=(
            "Names of metrics, as get_job lists them. Empty: the most telling ones, losses first."
        ),
    )
    first_step: Step | None = Field(
        default=None, description="First optimizer step of the range. Absent: from the start."
    )
    last_step: Step | None = Field(
        default=None, description="Last optimizer step of the range. Absent: to the end."
    )
    max_points: int = Field(
        default=60,
        ge=4,
        le=MAX_POINTS,
        description=(
            "Most points of each metric; more are thinned out so that spikes stay. Statistics "
            "and spikes do not depend on it."
        ),
    )
    compare_step: Step | None = Field(
        default=None,
        description=(
            "Compare each metric before and after this step, such as the step at which a change "
            "was applied."
        ),
    )
    compare_window: int = Field(
        default=20, ge=1, le=10_000, description="Steps before and after compare_step."
    )

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if None not in (self.first_step, self.last_step) and self.first_step > self.last_step:  # type: ignore[operator]  # neither is None
            raise ValueError(
                f"first_step {self.first_step} is after last_step {self.last_step}; swap them"
            )
        return self


class UpdateHistoryArguments(Arguments):
    """Of update_history."""

    job: JobId
    limit: int = Field(default=20, ge=1, le=50, description="Most updates, the newest first.")
    states: list[UpdateStateName] = Field(
        default=[], max_length=6, description="Only updates in one of these states. Empty: all."
    )


Operation = Literal["set", "peak", "hold", "multiply", "ramp", "schedule", "release"]

FIELDS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    "set": (frozenset({"value"}), frozenset()),
    "peak": (frozenset({"value"}), frozenset()),
    "hold": (frozenset({"value"}), frozenset({"steps"})),
    "multiply": (frozenset({"factor"}), frozenset()),
    "ramp": (frozenset({"value", "steps"}), frozenset()),
    "schedule": (frozenset({"shape"}), frozenset({"peak", "warmup_steps", "floor", "steps"})),
    "release": (frozenset(), frozenset()),
}
"""Which fields an operation needs, and which it may have besides."""


class ChangeArguments(Arguments):
    """One change of one parameter."""

    parameter: Text = Field(
        min_length=1,
        max_length=100,
        description="Name of the parameter, as get_job lists it, such as learning_rate.",
    )
    operation: Operation = Field(
        description=(
            "set: the next step uses value, a schedule keeps its shape from there on. peak: value "
            "becomes the base value of the schedule. hold: value stays constant, for steps or "
            "until released. multiply: scales by factor. ramp: goes linearly to value over steps. "
            "schedule: follows a new schedule of this shape. release: back to the training "
            "script's own schedule."
        )
    )
    value: (
        StrictBool
        | Annotated[StrictInt, Field(ge=-_MAX_INTEGER - 1, le=_MAX_INTEGER)]
        | StrictFloat
        | Annotated[Text, Field(max_length=200)]
        | None
    ) = Field(default=None, description="With set, peak, hold and ramp: the new value.")
    factor: float | None = Field(default=None, gt=0, description="With multiply: the factor.")
    steps: Annotated[int, Field(ge=1, le=_MAX_STEP)] | None = Field(
        default=None, description="With ramp, hold and schedule: length in optimizer steps."
    )
    shape: Literal["linear", "cosine", "constant"] | None = Field(
        default=None, description="With schedule: form from the peak to the floor."
    )
    peak: float | None = Field(
        default=None, description="With schedule: highest value. Absent: the value in force."
    )
    warmup_steps: Step | None = Field(
        default=None, description="With schedule: steps of linear warm-up to the peak."
    )
    floor: float | None = Field(default=None, description="With schedule: value at its end.")
    group: Text = Field(
        default="",
        max_length=100,
        description="One parameter group of the optimizer. Empty: all, their ratios kept.",
    )

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        needed, allowed = FIELDS[self.operation]
        given = {
            name
            for name in ("value", "factor", "steps", "shape", "peak", "warmup_steps", "floor")
            if getattr(self, name) is not None
        }
        if missing := sorted(needed - given):
            raise ValueError(f"operation {self.operation} needs {', '.join(missing)}")
        if extra := sorted(given - needed - allowed):
            takes = ", ".join(sorted(needed | allowed)) or "nothing else"
            raise ValueError(
                f"operation {self.operation} does not take {', '.join(extra)}; it takes {takes}"
            )
        return self


class ProposeUpdateArguments(Arguments):
    """Of propose_update."""

    job: JobId
    changes: list[ChangeArguments] = Field(
        min_length=1, max_length=8, description="All take effect at one step, or none does."
    )
    rationale: Text = Field(
        min_length=1,
        max_length=1_000,
        description="Why, for the person who decides; it is recorded with the change.",
    )
    at_step: Annotated[int, Field(ge=1, le=_MAX_STEP)] | None = Field(
        default=None,
        description="First optimizer step that is to use the new values. Absent: the next.",
    )


def parameters_schema(arguments: type[Arguments]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, in the plain form that every provider takes.

    No references and no titles; what may be absent is not said to be null besides.
    """
    schema = arguments.model_json_schema()
    definitions = schema.pop("$defs", {})
    plain: dict[str, Any] = _plain(schema, definitions)
    del plain["description"]
    return plain


def describe_faults(error: ValidationError) -> str:
    """What is wrong with a tool's arguments, for the model."""
    faults = error.errors(include_url=False)
    lines = [_fault(each["loc"], each["msg"], each["input"]) for each in faults[:_MAX_PROBLEMS]]
    if len(faults) > _MAX_PROBLEMS:
        lines.append(f"and {len(faults) - _MAX_PROBLEMS} more")
    return whole("wrong arguments: " + "; ".join(lines))


def _fault(place: tuple[int | str, ...], message: str, given: object) -> str:
    path = clipped(".".join(map(str, place)), _SHOWN)
    message = message.removeprefix("Value error, ")
    if isinstance(given, Mapping):  # a rule about several fields names them itself
        return f"{path}: {message}" if path else message
    return f"{path}: {message}, got {clipped(ascii(given), _SHOWN)}"


def _plain(node: Any, definitions: Mapping[str, Any]) -> Any:
    match node:
        case {"$ref": str(reference)}:
            definition = dict(definitions[reference.rpartition("/")[2]])
            definition.pop("description", None)
            return _plain(definition, definitions)
        case {"anyOf": [*options]}:
            others = {key: each for key, each in node.items() if key != "anyOf"}
            kept = [option for option in options if option != {"type": "null"}]
            if len(kept) == 1:
                return _plain(kept[0] | others, definitions)
            return _plain_items({**others, "anyOf": kept}, definitions)
        case dict():
            return _plain_items(node, definitions)
        case list():
            return [_plain(each, definitions) for each in node]
        case _:
            return node


def _plain_items(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {name: _plain(each, definitions) for name, each in value.items()}
        if key == "properties"
        else _plain(value, definitions)
        for key, value in node.items()
        if not (key == "title" or (key == "default" and value is None))
    }
