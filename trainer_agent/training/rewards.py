"""What rates completions: a function of the user's, a reward model, or a simple one from here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]


def exact_match(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Rate a completion 1 where it is the answer, else 0."""
    return [
        float(written(completion).strip() == right.strip())
        for completion, right in zip(completions, answer, strict=True)
    ]


def contains_answer(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Rate a completion 1 where it contains the answer, else 0."""
    return [
        float(right.strip() in written(completion))
        for completion, right in zip(completions, answer, strict=True)
    ]


BUILT_IN: Final[Mapping[str, RewardFunction]] = {
    function.__name__: function for function in (exact_match, contains_answer)
}
"""The rewards that are called by their name; both read the column ``answer``."""


def written(completion: Any) -> str:
    """Return a completion's text; one of a conversation is a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)


def is_function(reward: str) -> bool:
    """Tell whether a reward is written as ``module:function`` or ``file.py:function``."""
    return ":" in reward


def is_model(reward: str) -> bool:
    """Tell whether a reward is a reward model: a directory or an id on the hub."""
    return reward not in BUILT_IN and not is_function(reward)


def load(reward: str) -> RewardFunction | str:
    """Return a reward function; a reward model stays the name that it is.

    Modules are looked for where Python finds them, and last in the current directory.

    Args:
        reward: As the configuration has it.

    Raises:
        ValueError: There is no such module, file or function.
    """
    if reward in BUILT_IN:
        return BUILT_IN[reward]
    if is_model(reward):
        return reward
    where, _, name = reward.rpartition(":")
    module = _from_file(where) if where.endswith(".py") else _from_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        what = "is no function" if hasattr(module, name) else "is not there"
        raise ValueError(  # noqa: TRY004 - it is the configuration that is wrong
            f"{name!r} {what} in {where}"
        )
    loaded: RewardFunction = function
    return loaded


def _from_module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs is not
        raise ValueError(f"there is no module {error.name!r}") from error


def _from_file(path: str) -> Any:
    file = Path(path).resolve()
    name = f"midcourse_reward_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for what it defines
    spec.loader.exec_module(module)
    return module
