"""Going back to a checkpoint: this process ends, and its launcher starts the next one from there.

What the next process needs goes through a file whose path the launcher gives to both. The last
word is the next one's: only there can it be said that the run has gone back.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused

FILE_VARIABLE = "MIDCOURSE_ROLL_BACK_FILE"
"""Environment variable: where a launcher that supervises this process looks for a roll back."""
ROLLED_BACK_VARIABLE = "MIDCOURSE_ROLLED_BACK_FILE"
"""Environment variable: the same file, for the process that goes on from the checkpoint."""
EXIT_CODE = 75
"""Exit code of a process that is to be started again (EX_TEMPFAIL of sysexits.h)."""
MAX_HISTORY = 1_000
"""Updates handed over; of more than that, the newest."""

_STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class HandOver:
    """What a process that goes back to a checkpoint leaves to the next one."""

    checkpoint: str
    """Path of the checkpoint."""
    update: update_pb2.Update
    """The update that asked for it; revision 0: this process itself did."""
    history: Sequence[update_pb2.Update] = ()
    """What was in force besides, in the order it was applied; the checkpoint may contain it."""
    in_a_row: int = 1
    """Roll backs to this checkpoint one after another, this one counted."""

    def applied(self) -> list[update_pb2.Update]:
        """Return what was in force, each as applied before: its changes alone are made again."""
        again = []
        for each in self.history:
            update = update_pb2.Update()
            update.CopyFrom(each)
            update.state = update_pb2.UPDATE_STATE_APPLIED
            again.append(update)
        return again

    def write(self, path: str) -> None:
        """Write it to a file, whole or not at all.

        Raises:
            OSError: That did not work.
        """
        data = {
            "checkpoint": self.checkpoint,
            "update": _text(self.update),
            "history": [_text(each) for each in self.history],
            "in_a_row": self.in_a_row,
        }
        new = Path(f"{path}.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    @classmethod
    def read(cls, path: str) -> HandOver:
        """Read what ``write`` wrote.

        Raises:
            ValueError: It is something else.
            OSError: It can not be read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                checkpoint=str(data["checkpoint"]),
                update=_update(data["update"]),
                history=tuple(_update(each) for each in data["history"]),
                in_a_row=int(data["in_a_row"]),
            )
        except (KeyError, TypeError, ValueError, DecodeError) as error:
            raise ValueError(f"{path} is no record of a roll back: {error!r}") from error


class RollBackExit(SystemExit):
    """Ends a process whose launcher is to start it again from a checkpoint."""

    def __init__(self) -> None:
        """Has the process end with ``EXIT_CODE``."""
        super().__init__(EXIT_CODE)


def why_not(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return why this process can not go back to a checkpoint; None: it can."""
    if environ.get(FILE_VARIABLE):
        return None
    return (
        "nothing would start it again from the checkpoint; start it with midcourse train, which "
        "supervises it"
    )


def take_over(environ: MutableMapping[str, str] = os.environ) -> HandOver | None:
    """Return what this process was started again for, the first time; None: it was not.

    Raises:
        ValueError: The record is damaged.
        OSError: It can not be read.
    """
    path = environ.pop(ROLLED_BACK_VARIABLE, None)
    return HandOver.read(path) if path else None


def find_checkpoint(output_dir: str, path: str, before: int | None = None) -> str:
    """Return the absolute path of a checkpoint.

    Args:
        output_dir: Where the run saves its checkpoints.
        path: The checkpoint, or the name of one under ``output_dir``; empty: the newest there.
        before: For the newest: one of fewer optimizer steps than this; None: of whatever step.

    Raises:
        Refused: There is none.
    """
    if not path:
        found = newest_checkpoint(output_dir, before)
        if found is None:
            than = "" if before is None else f" from before step {before}"
            raise Refused(
                "NO_CHECKPOINT", f"there is no checkpoint{than} in {Path(output_dir).absolute()}"
            )
        return found
    for candidate in (Path(path), Path(output_dir) / path):
        if (candidate / _STATE_FILE).is_file():
            return str(candidate.absolute())
    raise Refused(
        "NO_CHECKPOINT",
        f"{path} is no checkpoint: it has no {_STATE_FILE}; the newest one is "
        f"{newest_checkpoint(output_dir) or 'not saved yet'}",
    )


def newest_checkpoint(output_dir: str, before: int | None = None) -> str | None:
    """Return the checkpoint of the highest step (below ``before``); None: there is none."""
    try:
        names = [each.name for each in Path(output_dir).iterdir()]
    except OSError:
        return None
    steps = [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]
    for step in sorted(steps, reverse=True):
        if before is not None and step >= before:
            continue
        path = Path(output_dir) / f"checkpoint-{step}"
        if (path / _STATE_FILE).is_file():
            return str(path.absolute())
    return None


def step_of(checkpoint: str) -> int:
    """Return the optimizer steps done at a checkpoint.

    Raises:
        ValueError: It does not tell.
        OSError: It can not be read.
    """
    state: Any = json.loads((Path(checkpoint) / _STATE_FILE).read_text(encoding="utf-8"))
    try:
        return int(state["global_step"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint} does not tell its step: {error!r}") from error


def _text(update: update_pb2.Update) -> str:
    return base64.b64encode(update.SerializeToString(deterministic=True)).decode("ascii")


def _update(text: str) -> update_pb2.Update:
    return update_pb2.Update.FromString(base64.b64decode(text, validate=True))
