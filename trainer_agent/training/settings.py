"""What a configuration says about a run, checked as far as that needs neither torch nor TRL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from trainer_agent import identity
from trainer_agent.parameters import GuardRails
from trainer_agent.steering.protection import Protection
from trainer_agent.training.conform import Conformer
from trainer_agent.training.document import ConfigurationError, Entry, Problem, override, read
from trainer_agent.training.methods import METHODS, Method
from trainer_agent.training.rewards import BUILT_IN, is_function

Format: TypeAlias = Literal["json", "parquet", "csv"]

FORMATS: Final[Mapping[str, Format]] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}
"""How a data file is read, by how its name ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSection:
    """The model to train."""

    path: str
    """A directory, or the id of a model on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "float32"
    """What the weights are kept in; ``auto``: as they were saved."""
    attn_implementation: str | None = None
    """Such as ``sdpa`` or ``flash_attention_2``."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may be run."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``from_pretrained``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSection:
    """The tokenizer; without this section, the model's own."""

    path: str | None = None
    """A directory or an id on the hub; by default where the model is."""
    revision: str | None = None
    """Branch, tag or commit on the hub; of the model's own by default the model's."""
    pad_token: str | None = None
    """Token to pad with."""
    padding_side: Literal["left", "right"] | None = None
    """Where to pad; methods that generate pad on the left."""
    chat_template: Path | None = None
    """File with a Jinja template for conversations."""
    trust_remote_code: bool | None = None
    """Whether code that comes with the tokenizer may be run; by default, of the model's own as the
    model has it, of another not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSection:
    """Where examples come from."""

    path: str | list[str]
    """Files, a directory, or the id of a data set on the hub."""
    name: str | None = None
    """Configuration of a data set on the hub."""
    split: str = "train"
    """Split of a data set; a part of it is written ``train[:10%]``."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    format: Format | None = None
    """How to read files; by default as their names end."""
    columns: dict[str, str] = field(default_factory=dict)
    """What TRL calls a column: what the data call it."""
    limit: int | None = None
    """At most so many examples, from the beginning."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be 1 or more, got {self.limit}")
        if not self.path:
            raise ValueError("path must name a file, a directory or a data set")

    @property
    def paths(self) -> list[str]:
        """Every path."""
        return [self.path] if isinstance(self.path, str) else self.path


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareSection:
    """Examples to evaluate with that are held back from those to train with."""

    share: float
    """Which part of them."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection(SourceSection):
    """The examples to train with, and those to evaluate with."""

    eval: SourceSection | ShareSection | None = None
    """What to evaluate with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MidcourseSection:
    """What ``trainer_agent.attach`` is told."""

    job: str | None = None
    """Id of the job."""
    control_plane: str | None = None
    """Address of the control plane, ``host:port``."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the job."""
    guard_rails: dict[str, GuardRails] = field(default_factory=dict)
    """What may be changed, how far and by whom, for each live parameter."""
    protection: Protection | None = None
    """What the run does by itself when its loss is NaN or infinite."""
    replay: Path | None = None
    """Recipe, exported from a steered run, whose changes are made again."""

    def __post_init__(self) -> None:
        if self.job is not None:
            identity.check_job_id(self.job)
        if self.control_plane is not None:
            identity.check_control_plane(self.control_plane)
        identity.check_labels(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """The whole file."""

    model: ModelSection
    """The model."""
    data: DataSection
    """The data."""
    # The names are METHODS', and are read when the program runs.
    method: Literal[*METHODS] | None = None  # type: ignore[valid-type]
    """Training method, where the command line does not name it."""
    tokenizer: TokenizerSection | None = None
    """The tokenizer."""
    peft: dict[str, Any] | None = None
    """Arguments of ``peft.LoraConfig``; needs peft."""
    training: dict[str, Any] = field(default_factory=dict)
    """Arguments of the method's class of TRL, such as ``SFTConfig``."""
    reward: str | list[str] | None = None
    """What rates completions, for rloo and grpo."""
    midcourse: MidcourseSection = field(default_factory=MidcourseSection)
    """How the run is watched and steered."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration without fault, as far as is known before TRL is loaded."""

    method: Method
    """The training method."""
    sections: Sections
    """What the file and the command line say."""
    root: Entry
    """The same with its places: TRL checks its own section later."""
    places: Mapping[str, str]
    """Where each key was written."""

    def problem(self, key: str, message: str) -> Problem:
        """Return a problem at the place of a key, or of the section that would hold it."""
        at = key
        while at not in self.places:
            at = at.rpartition(".")[0]
        return Problem(self.places[at], key, message)

    @property
    def rewards(self) -> list[str]:
        """What rates completions."""
        reward = self.sections.reward
        return [] if reward is None else [reward] if isinstance(reward, str) else reward


def settings(
    text: str, source: str, *, method: str | None = None, assignments: Sequence[str] = ()
) -> Settings:
    """Read a configuration and check it.

    Args:
        text: Text of the file.
        source: Name of the file, for places.
        method: Method that the command line names.
        assignments: What the command line lays over the file, ``KEY=VALUE`` each.

    Raises:
        ConfigurationError: Everything that is wrong with it.
    """
    root = read(text, source)
    override(root, assignments)
    conformer = Conformer()
    sections = conformer.section(root, Sections)
    problems = conformer.problems
    named = method
    if sections is None:
        raise ConfigurationError(problems)
    if named is None:
        named = sections.method
    elif sections.method not in (None, named):
        message = f"the file is for {sections.method}, but --method {named} was given"
        problems.append(Problem(conformer.places["method"], "method", message))
    if named is None:
        message = f"the method is missing: give --method, one of {', '.join(METHODS)}"
        raise ConfigurationError([Problem(source, "method", message)])
    found = Settings(METHODS[named], sections, root, conformer.places)
    problems += [found.problem(key, message) for key, message in _faults(found)]
    if problems:
        raise ConfigurationError(problems)
    return found


def with_launcher_options(section: MidcourseSection, **given: Any) -> MidcourseSection:
    """Return the midcourse section with what the command line gives over the file's."""
    labels = {**section.labels, **given.pop("labels", {})}
    chosen = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(section, labels=labels, **chosen)


def _faults(found: Settings) -> list[tuple[str, str]]:
    """Return what is wrong with a configuration whose every key and type is right."""
    sections = found.sections
    faults = [("model.path", message) for message in _missing_model(sections.model.path)]
    faults += _missing_data("data", sections.data)
    if isinstance(sections.data.eval, SourceSection):
        faults += _missing_data("data.eval", sections.data.eval)
    if sections.tokenizer is not None:
        path, template = sections.tokenizer.path, sections.tokenizer.chat_template
        faults += [("tokenizer.path", message) for message in _missing_model(path or "")]
        if template is not None and not template.is_file():
            faults.append(("tokenizer.chat_template", f"there is no file {str(template)!r}"))
    replay = sections.midcourse.replay
    if replay is not None and not replay.is_file():
        faults.append(("midcourse.replay", f"there is no file {str(replay)!r}"))
    return faults + _reward_faults(found)


def _reward_faults(found: Settings) -> list[tuple[str, str]]:
    method = found.method
    if not method.rewarded:
        message = f"{method.name} takes no reward; rloo and grpo do"
        return [("reward", message)] if found.rewards else []
    if not found.rewards:
        message = (
            f"{method.name} needs a reward: module:function, file.py:function, "
            f"a reward model, or one of {', '.join(BUILT_IN)}"
        )
        return [("reward", message)]
    faults = []
    for reward in found.rewards:
        if is_function(reward):
            file, _, _ = reward.rpartition(":")
            if file.endswith(".py") and not Path(file).is_file():
                faults.append(("reward", f"there is no file {file!r}"))
        elif reward not in BUILT_IN:
            faults += [("reward", message) for message in _missing_model(reward)]
    return faults


def _missing_model(path: str) -> list[str]:
    """Return what is wrong with a path that can only be a directory. The hub is not asked."""
    if not _is_local(path) or Path(path).expanduser().is_dir():
        return []
    return [f"there is no directory {path!r}"]


def _missing_data(key: str, source: SourceSection) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    for path in source.paths:
        here = Path(path).expanduser()
        if here.exists():
            if here.is_file() and source.format is None and here.suffix not in FORMATS:
                message = (
                    f"{path!r} ends in none of {', '.join(FORMATS)}: say how to read it with"
                    f" {key}.format"
                )
                faults.append((f"{key}.path", message))
            elif here.is_dir() and len(source.paths) > 1:
                message = f"{path!r} is a directory: give it alone; what is listed are files"
                faults.append((f"{key}.path", message))
        elif (
            _is_local(path)
            or here.suffix in FORMATS
            or source.format is not None
            or len(source.paths) > 1
        ):
            faults.append((f"{key}.path", f"there is no file {path!r}"))
    kinds = {Path(path).suffix for path in source.paths}
    if source.format is None and len({FORMATS.get(kind) for kind in kinds}) > 1:
        message = f"files of several formats ({', '.join(sorted(kinds))}) make no one data set"
        faults.append((f"{key}.path", message))
    return faults + _meaningless(key, source)


def _meaningless(key: str, source: SourceSection) -> list[tuple[str, str]]:
    """Return what is said of a source that means nothing there, and would be passed over."""
    first = Path(source.paths[0]).expanduser()
    what, names = "a data set on the hub", frozenset[str]()
    if first.is_file():
        what, names = "files", frozenset({"name", "revision"})
    elif is_saved(first):
        what, names = "what save_to_disk left", frozenset({"name", "revision", "format"})
    elif first.is_dir():
        what, names = "a directory", frozenset({"revision", "format"})
    return [
        (f"{key}.{name}", f"this means nothing for {what}: take it out")
        for name in sorted(names)
        if getattr(source, name) is not None
    ]


def is_saved(directory: Path) -> bool:
    """Tell whether a directory is what ``Dataset.save_to_disk`` leaves."""
    return (directory / "state.json").is_file()


def _is_local(path: str) -> bool:
    """Tell whether a path can mean nothing on the hub, whose ids are NAME or OWNER/NAME."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1
