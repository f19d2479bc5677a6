"""Turns the sections that TRL and PEFT define into their classes. Loads both."""

from __future__ import annotations

import re
from typing import Any, Final

from trainer_agent.training.conform import Conformer
from trainer_agent.training.document import ConfigurationError, Entry, Problem
from trainer_agent.training.settings import Settings

_OURS: Final = {
    "model_init_kwargs": "the section model says how the model is loaded",
    "resume_from_checkpoint": "midcourse train --resume auto|PATH goes on from a checkpoint",
    "trust_remote_code": "the section model has trust_remote_code",
    "local_rank": "midcourse train --nproc N starts several ranks",
}
"""Arguments that are given in another way here."""


def training_arguments(settings: Settings, world_size: int = 1) -> Any:
    """Return the method's arguments, of TRL's own class.

    Raises:
        ConfigurationError: They are not right; says what, and where it was written.
    """
    cls, model = settings.method.config_class(), settings.sections.model
    assert isinstance(settings.root.value, dict)
    here = settings.places["model"]
    entry = settings.root.value.get("training") or Entry({}, here, here)
    content = entry.value or {}
    problems = [
        Problem(below.key_place, f"training.{key}", f"this is not given here: {_OURS[key]}")
        for key, below in (content.items() if isinstance(content, dict) else ())
        if key in _OURS
    ]
    conformer = Conformer()
    arguments = conformer.arguments(entry, cls, "training")
    problems += [each for each in conformer.problems if each.key.split(".")[-1] not in _OURS]
    if problems or arguments is None:
        raise ConfigurationError(problems)
    load: dict[str, Any] = {"dtype": model.dtype, **model.kwargs}
    if model.revision is not None:
        load["revision"] = model.revision
    if model.attn_implementation is not None:
        load["attn_implementation"] = model.attn_implementation
    if not settings.method.makes_tokenizer or world_size > 1:
        # Else the model is spread over all accelerators there are.
        load.setdefault("device_map", None)
    arguments.setdefault("disable_tqdm", True)  # the launcher has a bar of its own
    arguments |= {"model_init_kwargs": load, "trust_remote_code": model.trust_remote_code}
    try:
        return cls(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigurationError([_refused(settings, cls, arguments, error)]) from error


def peft_config(settings: Settings) -> Any:
    """Return the ``LoraConfig`` of the section peft; None: there is no such section.

    Raises:
        ConfigurationError: It is not right, or peft is not installed.
    """
    assert isinstance(settings.root.value, dict)
    entry = settings.root.value.get("peft")
    if entry is None or entry.value is None:
        return None
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        message = "this section needs peft, which is not installed: pip install peft"
        raise ConfigurationError([settings.problem("peft", message)]) from error
    conformer = Conformer()
    config = conformer.section(entry, LoraConfig, "peft")
    if conformer.problems:
        raise ConfigurationError(conformer.problems)
    return config


def _refused(settings: Settings, cls: Any, arguments: dict[str, Any], error: Exception) -> Problem:
    """Return what the class itself says, at the one key that it names, else at the section."""
    message = " ".join(str(error).split())
    named = [key for key in arguments if re.search(rf"\b{re.escape(key)}\b", message)]
    key = f"training.{named[0]}" if len(named) == 1 else "training"
    return settings.problem(key, f"{cls.__name__} refuses: {message}")
