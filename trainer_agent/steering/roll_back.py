"""Going back to a checkpoint: this process ends, and its launcher starts the next one from there.

The run is then what it was at the checkpoint, its live parameters included; what came after it is
superseded. Only the changes of the roll back itself are made, there.

What the next process needs goes through a file whose path the launcher gives to both. The last
word is the next one's: only there can it be said that the run has gone back.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Refused
from trainer_agent.steering import checkpoints
from trainer_agent.steering.lineage import decoded, encoded

if TYPE_CHECKING:
    from midcourse.agent.v1 import session_pb2

FILE_VARIABLE = "MIDCOURSE_ROLL_BACK_FILE"
"""Environment variable: where a launcher that supervises this process looks for a roll back."""
LAUNCHER_VARIABLE = "MIDCOURSE_LAUNCHER_PID"
"""Environment variable: the process id of that launcher, which starts this process itself."""
WHY_NOT_VARIABLE = "MIDCOURSE_NO_ROLL_BACK"
"""Environment variable: why that launcher starts this process no more."""
ROLLED_BACK_VARIABLE = "MIDCOURSE_ROLLED_BACK_FILE"
"""Environment variable: the same file, for the process that goes on from the checkpoint."""
EXIT_CODE = 75
"""Exit code of a process that is to be started again (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """What a process that goes back to a checkpoint leaves to the next one."""

    checkpoint: str
    """Path of the checkpoint."""
    update: update_pb2.Update
    """The update that asked for it; revision 0: this process itself did."""
    in_a_row: int = 0
    """Roll backs to this checkpoint that the run made by itself one after another, this one
    counted; 0: somebody asked for it."""
    local: Sequence[Mapping[str, Any]] = ()
    """What the process did by itself and has no revision for yet, as ``LocalUpdates`` saves it."""
    outcomes: Sequence[session_pb2.UpdateOutcome] = ()
    """How updates ended in it that nobody has confirmed to have on disk."""

    def write(self, path: str) -> None:
        """Write it to a file, whole or not at all.

        Raises:
            OSError: That did not work.
        """
        data = {
            "checkpoint": self.checkpoint,
            "update": _text(self.update),
            "in_a_row": self.in_a_row,
            "local": list(self.local),
            "outcomes": [encoded(each) for each in self.outcomes],
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
                in_a_row=int(data["in_a_row"]),
                local=tuple(dict(each) for each in data["local"]),
                outcomes=tuple(decoded(each) for each in data["outcomes"]),
            )
        except (KeyError, TypeError, ValueError, DecodeError) as error:
            raise ValueError(f"{path} is no record of a roll back: {error!r}") from error


class RollBackExit(SystemExit):
    """Ends a process whose launcher is to start it again from a checkpoint."""

    def __init__(self) -> None:
        """Has the process end with ``EXIT_CODE``."""
        super().__init__(EXIT_CODE)


def supervised(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher has started this process, and is still there."""
    return environ.get(LAUNCHER_VARIABLE) == str(os.getppid())


def why_not(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return why this process can not go back to a checkpoint now; None: it can."""
    if why := environ.get(WHY_NOT_VARIABLE):
        return why
    if not environ.get(FILE_VARIABLE):
        return (
            "nothing would start it again from the checkpoint; start it with midcourse train, "
            "which supervises it"
        )
    if not supervised(environ):
        return "its launcher is gone, and nothing else would start it again from the checkpoint"
    return None


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
    directory = Path(output_dir).absolute()
    if not path:
        found = checkpoints.newest(directory, before)
        if found.newest is None:
            than = "" if before is None else f" from before step {before}"
            skipped = "".join(f"; {each}" for each in found.skipped)
            raise Refused("NO_CHECKPOINT", f"there is no checkpoint{than} in {directory}{skipped}")
        return str(found.newest)
    asked = Path(path).absolute()
    fault = checkpoints.fault(asked)
    if fault is None:
        return str(asked)
    named = directory / path
    if checkpoints.fault(named) is None:
        return str(named)
    fault = checkpoints.fault(named) if named.exists() else fault
    raise Refused(
        "NO_CHECKPOINT",
        f"the run can not go on from {path}: {fault}; the newest one that it can go on from is "
        f"{checkpoints.newest(directory).newest or 'not saved yet'}",
    )


def _text(update: update_pb2.Update) -> str:
    return base64.b64encode(update.SerializeToString(deterministic=True)).decode("ascii")


def _update(text: str) -> update_pb2.Update:
    return update_pb2.Update.FromString(base64.b64decode(text, validate=True))
