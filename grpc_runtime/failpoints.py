"""Places where a test can have a process die, stand still or fail; off in production.

Each place calls :func:`reached` with its name, which does nothing unless this process was started
with ::

    MIDCOURSE_FAILPOINTS="commit.before=crash@3; session.acknowledge=pause:200ms"
    MIDCOURSE_FAILPOINTS_NOTES=/tmp/an-existing-folder

Both are read once, when this module is loaded. Without the second the first is refused: a line on
stderr says so, and nothing is armed. What can be asked for, of each place once:

``crash``        the process dies as by SIGKILL
``pause:TIME``   the thread that comes by stands still: ``200ms``, ``1.5s``
``error``        :class:`FailpointError` is raised
``…@N``          only when it is reached for the Nth time; without it ``crash`` takes the first
                 time, and the others each time

What happens at a given time happens once: it leaves a file with the name of the place in the
folder, and as long as that lies there, whoever takes the dead process's place lives.

Imports nothing that a training process must not load.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POINTS: Final[Mapping[str, str]] = {
    "commit.before": "a transaction's work is done, and its commit is about to begin",
    "commit.after": "a commit is on disk, and nobody knows of it yet",
    "wakeup.before": "something is committed, and whoever waits for it is about to be woken",
    "wakeup.after": "whoever waits for it has been woken, and the caller has no answer yet",
    "session.deliver": "a delivery is about to go to an agent",
    "session.delivered": "a delivery has gone to an agent",
    "session.outcome": "an outcome has come from an agent, and is not stored yet",
    "session.acknowledge": "an acknowledgement is about to go to an agent",
    "session.acknowledged": "an acknowledgement has gone to an agent",
    "agent.pass_on": "the agent is about to give the trainer an update",
    "agent.passed_on": "the agent has given the trainer an update, and has told nobody",
    "agent.outcome": "the trainer has said how an update ended, and the agent has not kept it yet",
    "agent.kept": "the agent has kept an outcome, and has told nobody",
    "trainer.apply": "an update is due, and nothing of it is done",
    "trainer.applied": "an update's changes are made, and nothing is noted of them",
    "trainer.tell": "a trainer knows how an update ended, and is about to tell its agent",
    "trainer.told": "a trainer has told its agent how an update ended",
    "trainer.acknowledge": "a trainer hears that outcomes are stored, and still keeps them",
    "trainer.acknowledged": "a trainer keeps outcomes no longer that are stored",
    "trainer.checkpoint": "what rides in a checkpoint is about to be put together",
    "trainer.checkpointed": "what rides in a checkpoint is put together, and not saved yet",
}
"""What there is, and what has happened there."""

VARIABLE: Final = "MIDCOURSE_FAILPOINTS"
NOTES: Final = "MIDCOURSE_FAILPOINTS_NOTES"

_TERM: Final = re.compile(
    r"(?P<name>[a-z_.]+)=(?:(?P<action>crash|error)|pause:(?P<time>\d+(?:\.\d+)?)(?P<unit>ms|s))"
    r"(?:@(?P<nth>[1-9]\d*))?"
)


class FailpointError(OSError):
    """Stands for whatever a system can say no to."""


class _Armed:
    """What is asked for at the places of this process."""

    def __init__(self, spec: str, notes: Path) -> None:
        self._notes = notes
        self._lock = threading.Lock()
        self._reached: dict[str, int] = {}
        self._plans = dict(_plan(term.strip()) for term in spec.split(";") if term.strip())

    def reached(self, name: str) -> None:
        if name not in POINTS:
            raise AssertionError(f"there is no failpoint {name!r}")
        plan = self._plans.get(name)
        if plan is None:
            return
        act, nth = plan
        with self._lock:
            count = self._reached[name] = self._reached.get(name, 0) + 1
        if nth is None or (nth == count and self._is_first(name)):
            act(name)

    def _is_first(self, name: str) -> bool:
        try:
            (self._notes / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _plan(term: str) -> tuple[str, tuple[Callable[[str], None], int | None]]:
    found = _TERM.fullmatch(term)
    if found is None or found["name"] not in POINTS:
        raise ValueError(
            f"{VARIABLE}: got {term!r}; expected NAME=crash, NAME=error or NAME=pause:200ms, each "
            f"with @N or without, and one of the names {', '.join(POINTS)}"
        )
    nth = int(found["nth"]) if found["nth"] else None
    if found["action"] == "crash":
        return found["name"], (_crash, nth or 1)
    if found["action"] == "error":
        return found["name"], (_fail, nth)
    seconds = float(found["time"]) / (1_000 if found["unit"] == "ms" else 1)
    return found["name"], (lambda _: time.sleep(seconds), nth)


def _crash(name: str) -> None:
    os.write(2, f"crashes at the failpoint {name}\n".encode())
    if sys.platform == "win32":
        os._exit(137)
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # until it arrives


def _fail(name: str) -> None:
    raise FailpointError(f"the failpoint {name} fails, as {VARIABLE} asks for")


def _armed_by(environ: Mapping[str, str]) -> Callable[[str], None] | None:
    spec, notes = environ.get(VARIABLE, ""), environ.get(NOTES, "")
    if not spec.strip():
        return None
    if not notes or not Path(notes).is_dir():
        sys.stderr.write(
            f"{VARIABLE} is set and ignored: it makes this process fail on purpose, which takes "
            f"{NOTES} as well, an existing folder; unset it\n"
        )
        return None
    return _Armed(spec, Path(notes)).reached


_reached: Callable[[str], None] | None = _armed_by(os.environ)


def armed() -> bool:
    """Tells whether this process is to fail anywhere."""
    return _reached is not None


def reached(name: str) -> None:
    """Says that a place was reached.

    Args:
        name: One of :data:`POINTS`.

    Raises:
        FailpointError: It was asked for.
    """
    if _reached is not None:
        _reached(name)


def rearm(environ: Mapping[str, str]) -> None:
    """Reads the variables again, for a process that was forked from one that had read others.

    Raises:
        ValueError: They ask for what there is not.
    """
    global _reached  # noqa: PLW0603 - one for each process
    _reached = _armed_by(environ)
