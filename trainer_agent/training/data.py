"""Loads data sets, and checks that they have what a method learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.settings import FORMATS, Settings, ShareSection, SourceSection


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
            parts = train.train_test_split(test_size=share, seed=args.seed)
            return parts["train"], parts["test"]
        case SourceSection() as source:
            return train, _source(settings, "data.eval", source, args)


def _source(settings: Settings, key: str, source: SourceSection, args: Any) -> Any:
    try:
        data = _read(source)
    except (OSError, ValueError, ImportError) as error:
        message = f"{_written(source)} cannot be loaded: {type(error).__name__}: {_short(error)}"
        raise ConfigurationError([settings.problem(f"{key}.path", message)]) from error
    data = _renamed(settings, key, source, data)
    if source.limit is not None:
        data = data.select(range(min(source.limit, len(data))))
    if not len(data):
        message = f"{_written(source)} holds no examples"
        raise ConfigurationError([settings.problem(f"{key}.path", message)])
    _check_columns(settings, key, data.column_names, args)
    return data


def _read(source: SourceSection) -> Any:
    from datasets import load_dataset, load_from_disk

    paths = [str(Path(path).expanduser()) for path in source.paths]
    first = Path(paths[0])
    if first.is_file():
        kind = source.format or FORMATS[first.suffix]
        return load_dataset(kind, data_files={"train": paths}, split=source.split)
    if (first / "state.json").is_file():  # what Dataset.save_to_disk leaves
        return load_from_disk(paths[0])
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


def _written(source: SourceSection) -> str:
    return ", ".join(source.paths)


def _list(names: Sequence[str]) -> str:
    return " + ".join(names) or "none"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
