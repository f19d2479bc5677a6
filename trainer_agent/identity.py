"""Who this run is: the id of its job, its training method, its training process."""

from __future__ import annotations

import logging
import os
import re
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

JOB_VARIABLE = "JOB_ID"
"""Environment variable that names the job where the script does not."""
CONTROL_PLANE_VARIABLE = "MIDCOURSE_CONTROL_PLANE"
"""Environment variable with the control plane's address where the script gives none."""
DEFAULT_CONTROL_PLANE = "127.0.0.1:50051"
"""Where ``midcourse serve`` listens unless told otherwise."""

logger = logging.getLogger(__name__)

_JOB_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")

# fmt: off
_ADJECTIVES = (
    "amber", "brave", "brisk", "calm", "clear", "crisp", "eager", "early", "fair", "fresh",
    "gentle", "glad", "golden", "happy", "keen", "kind", "lively", "lucky", "merry", "mild",
    "neat", "nimble", "noble", "patient", "proud", "quick", "quiet", "ready", "silent",
    "smooth", "steady", "sunny", "swift", "warm", "wise", "witty",
)
_NOUNS = (
    "acorn", "badger", "beacon", "birch", "breeze", "canyon", "cedar", "comet", "coral",
    "crane", "delta", "ember", "falcon", "fern", "fjord", "forest", "harbor", "heron", "island",
    "kestrel", "lagoon", "lynx", "maple", "meadow", "ocean", "orchid", "otter", "owl", "pine",
    "prairie", "raven", "river", "sparrow", "summit", "swan", "willow",
)
# fmt: on


def check_job_id(job_id: str, source: str = "job") -> str:
    """Return a job id that is well formed.

    Args:
        job_id: The id.
        source: Where it comes from, for the error message.

    Raises:
        ValueError: It is not; says what is allowed.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise ValueError(
            f"{source} must be 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and ending with a "
            f"letter or digit, such as 'my-run-7'; got {job_id!r}"
        )
    return job_id


def given_job_id(argument: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the job id that the script or the environment gives; None: neither does.

    Raises:
        ValueError: It is not well formed.
    """
    if argument is not None:
        return check_job_id(argument)
    from_environment = environ.get(JOB_VARIABLE, "")
    if from_environment:
        return check_job_id(from_environment, f"the environment variable {JOB_VARIABLE}")
    return None


def generated_job_id(method: str) -> str:
    """Return a new readable job id, such as ``sft-brisk-otter-4f1c``.

    Draws from the system's randomness: a training run's own generators are left alone.
    """
    prefix = method if _JOB_ID.fullmatch(method) else "run"
    words = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{secrets.token_hex(2)}"
    return f"{prefix[:30]}-{words}"


def job_id_of(given: str | None, saved: str | None, method: str, *, tell: bool) -> str:
    """Return the job id of a run that begins to train.

    Args:
        given: The one asked for; None: none was.
        saved: That of the checkpoint which the run goes on from; None: there is none.
        method: The training method, for an id that is made up.
        tell: Log one that is made up, so that it becomes known.
    """
    job_id = given or saved
    if job_id is None:
        job_id = generated_job_id(method)
        if tell:
            logger.info("this run is job %s; watch it with: midcourse watch %s", job_id, job_id)
    return job_id


def new_instance_id() -> str:
    """Return an id for a training process that is just beginning to train."""
    return uuid.uuid4().hex


def control_plane_address(argument: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the control plane's address: argument, environment, default, in this order."""
    return argument or environ.get(CONTROL_PLANE_VARIABLE, "") or DEFAULT_CONTROL_PLANE


def training_method(*candidates: Any) -> str:
    """Return the training method after the class names of a trainer or its arguments.

    ``SFTTrainer`` and ``SFTConfig`` (and classes derived from them) give ``sft``; a plain
    transformers trainer gives ``trainer``; anything else the empty string, for unknown.

    Args:
        candidates: A trainer, training arguments or None, the one that knows better first.
    """
    for candidate in candidates:
        for cls in type(candidate).__mro__:
            for suffix in ("Trainer", "Config"):
                method = cls.__name__.removesuffix(suffix)
                if (
                    cls.__module__.startswith("trl.")
                    and method != cls.__name__
                    and method.strip("_") not in {"", "Base"}
                ):
                    return method.lower()
            if cls.__name__ in {"Trainer", "TrainingArguments"}:
                return "trainer"
    return ""
