"""Loads data sets, and checks that they have what a method learns from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_agent.training.document import ConfigurationError, Problem
from trainer_agent.training.settings import (
    FORMATS,
    Settings,
    ShareSection,
    SourceSection,
    is_saved,
)
from trainer_agent.training.tell import in_a_line

logger = logging.getLogger(__name__)


def load(settings: Settings, args: Any) -> tuple[Any, Any]:
    """Return the data sets to train and to evaluate with; the latter may be None.

    Args:
        settings: Configuration.
        args: The method's arguments.

    Raises:
        ConfigurationError: A data set cannot be loaded, or lacks columns.
    """
    section = settings.sections.data
    train = _source(settings, "data", section, args)
    if section.eval is not None and args.eval_strategy == "no":
        logger.warning(
            "data.eval is there, and training.eval_strategy is 'no': nothing is evaluated unless "
            "`midcourse evaluate` asks for it; training.eval_strategy may be steps or epoch"
        )
    match section.eval:
        case None:
            if args.eval_strategy != "no":
                message = (
                    f"training.eval_strategy is {args.eval_strategy.value!r}, and there is nothing"
                    " to evaluate with: give data.eval.path or data.eval.share"
                )
                raise ConfigurationError([settings.problem("data.eval", message)])
            return train, None
        case ShareSection(share=share):
            try:
                parts = train.train_test_split(test_size=share, seed=args.seed)
            except ValueError as error:
                message = f"{len(train)} examples cannot be shared out: {in_a_line(error)}"
                raise ConfigurationError([settings.problem("data.eval.share", message)]) from error
            return parts["train"], parts["test"]
        case SourceSection() as source:
            return train, _source(settings, "data.eval", source, args)


def _source(settings: Settings, key: str, source: SourceSection, args: Any) -> Any:
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    try:
        data = _read(source)
    except StopIteration as error:  # which is all that datasets says of an empty file
        raise ConfigurationError([_empty(settings, key, source)]) from error
    except (OSError, ValueError, ImportError, DatasetsError) as error:
        # The last one says no more than that it failed.
        cause = (isinstance(error, DatasetGenerationError) and error.__cause__) or error
        message = f"{_written(source)} cannot be loaded: {type(cause).__name__}: {in_a_line(cause)}"
        raise ConfigurationError([settings.problem(f"{key}.path", message)]) from error
    data = _renamed(settings, key, source, data)
    if source.limit is not None:
        data = data.select(range(min(source.limit, len(data))))
    if not len(data):
        raise ConfigurationError([_empty(settings, key, source)])
    _check_columns(settings, key, data.column_names, args)
    return data


def _read(source: SourceSection) -> Any:
    from datasets import ReadInstruction, concatenate_datasets, load_dataset, load_from_disk

    paths = [str(Path(path).expanduser()) for path in source.paths]
    first = Path(paths[0])
    if first.is_file():
        kind = source.format or FORMATS[first.suffix]
        return load_dataset(kind, data_files={"train": paths}, split=source.split)
    if is_saved(first):
        data = load_from_disk(paths[0])
        parts = ReadInstruction.from_spec(source.split).to_absolute({"train": len(data)})
        return concatenate_datasets([data.select(range(part.from_, part.to)) for part in parts])
    return load_dataset(paths[0], source.name, split=source.split, revision=source.revision)


def _renamed(settings: Settings, key: str, source: SourceSection, data: Any) -> Any:
    problems = []
    for wanted, name in source.columns.items():
        if name not in data.column_names:
            message = f"the data have no column {name!r}; they have {_list(data.column_names)}"
            problems.append(settings.problem(f"{key}.columns.{wanted}", message))
        elif wanted in data.column_names and wanted != name:
            message = f"the data have a column {wanted!r} already, beside {name!r}"
            problems.append(settings.problem(f"{key}.columns.{wanted}", message))
    if problems:
        raise ConfigurationError(problems)
    return data.rename_columns(
        {name: wanted for wanted, name in source.columns.items() if wanted != name}
    )


def _check_columns(settings: Settings, key: str, present: Sequence[str], args: Any) -> None:
    text = getattr(args, "dataset_text_field", "text")
    choices = [
        frozenset({text}) if choice == {"text"} else choice for choice in settings.method.columns
    ]
    if any(choice <= set(present) for choice in choices):
        return
    wanted = ", or ".join(_list(sorted(choice)) for choice in choices)
    message = (
        f"{settings.method.name} learns from the columns {wanted}; the data have"
        f" {_list(present)}: {key}.columns can say which is which"
    )
    raise ConfigurationError([settings.problem(f"{key}.path", message)])


def _empty(settings: Settings, key: str, source: SourceSection) -> Problem:
    return settings.problem(f"{key}.path", f"{_written(source)} holds no examples")


def _written(source: SourceSection) -> str:
    return ", ".join(source.paths)


def _list(names: Sequence[str]) -> str:
    return " + ".join(names) or "none"
