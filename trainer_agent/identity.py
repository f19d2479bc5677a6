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
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_ADDRESS = re.compile(r"unix:.+|(?:\[[^\[\]\s]+\]|[^\[\]\s:/]+):[0-9]{1,5}")
_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "xds:", "unix-abstract:")

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


def check_labels(labels: Mapping[str, str], source: str = "labels") -> None:
    """Say whether the control plane takes labels: those that Kubernetes would take.

    Args:
        labels: The labels.
        source: Where they come from, for the error message.

    Raises:
        ValueError: It does not; says what is allowed.
    """
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            raise ValueError(
                f"{source}: a label's key is [prefix/]name; the name has at most 63 of a-z, A-Z, "
                "0-9, '-', '_' and '.', beginning and ending with a letter or digit; the prefix is "
                f"a DNS name; got {key!r}"
            )
        if value and not _LABEL_NAME.fullmatch(value):
            raise ValueError(
                f"{source}: a label's value has at most 63 of a-z, A-Z, 0-9, '-', '_' and '.', "
                f"beginning and ending with a letter or digit, or is empty; got {key}={value!r}"
            )


def check_control_plane(address: str, source: str = "control_plane") -> str:
    """Return an address that can be one of a control plane, or those of its replicas.

    Args:
        address: The address.
        source: Where it comes from, for the error message.

    Raises:
        ValueError: It can not; says what is allowed.
    """
    several = [one.strip() for one in address.split(",") if one.strip()]
    if address.startswith(_GRPC_SCHEMES) or (several and all(map(_ADDRESS.fullmatch, several))):
        return address
    raise ValueError(
        f"{source} must be host:port, such as {DEFAULT_CONTROL_PLANE}, [ipv6]:port or unix:/path, "
        f"or several with commas between; got {address!r}"
    )


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
