"""Does to a run what a file says was done to another one, without agent and control plane.

The same changes, made at the same steps of the same training script, give the same run to the bit.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from midcourse.link.v1 import link_pb2
from trainer_agent.replay import recipe
from trainer_agent.steering.links import CLOSE_TIMEOUT, LinkFactory

if TYPE_CHECKING:
    from midcourse.agent.v1 import session_pb2
    from midcourse.control.v1 import parameter_pb2

logger = logging.getLogger(__name__)

MOST_AHEAD: Final = 500
"""Updates delivered and not settled yet, at most: a trainer holds a bounded number of them."""

_NOTHING: Final[tuple[link_pb2.AgentMessage, ...]] = ()


class ReplayLink:
    """A link whose agent is a file. Fulfils :class:`trainer_agent.steering.links.Link`.

    Every update is for one step. Where it can not be made there it is not made later either: the
    run goes on without it, and a warning says so, as does the summary at the end. What the
    checkpoint holds that a run goes on from is not done again.

    Args:
        content: What the file says.
        source: The file's name, for what is said about it.
        hello: Says what the run stands at.
    """

    def __init__(
        self,
        content: recipe.Recipe,
        source: str,
        hello: Callable[[], link_pb2.TrainerHello],
    ) -> None:
        self._content = content
        self._source = source
        self._hello = hello
        self._todo: list[recipe.UpdateEntry] = []
        self._open: dict[int, recipe.UpdateEntry] = {}
        self._present = 0
        self._replayed = 0
        self._closed = False

    def start(self) -> None:
        """Look at what the run has done already and what it can do at all."""
        hello = self._hello()
        present = _in_force(hello.state)
        self._todo = [each for each in self._content.updates if each.revision not in present]
        self._present = len(self._content.updates) - len(self._todo)
        if self._content.method and hello.method and self._content.method != hello.method:
            logger.warning(
                "job %s replays %s, which is of a run with method %s, in one with method %s",
                hello.job_id,
                self._source,
                self._content.method,
                hello.method,
            )
        self._warn_of_unknown(hello)

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Take how an update ended; the rest is for nobody."""
        if message.HasField("outcome"):
            self._settled(message.outcome)

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Return the updates that come next, long before their steps."""
        room = MOST_AHEAD - len(self._open)
        if not self._todo or room <= 0:
            return _NOTHING
        taken, self._todo = self._todo[:room], self._todo[room:]
        self._open.update((each.revision, each) for each in taken)
        return [
            link_pb2.AgentMessage(delivery=link_pb2.LinkDelivery(update=each.update()))
            for each in taken
        ]

    def wait(self, seconds: float) -> None:
        """Wait: nothing arrives that is not there already."""
        time.sleep(seconds)

    def close(self, error: str | None = None, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Say what became of the file's updates."""
        if self._closed:
            return True
        self._closed = True
        total = len(self._content.updates)
        missing = total - self._present - self._replayed
        say = logger.warning if missing else logger.info
        text = f"replayed {self._replayed} of {total} updates of {self._source}"
        if self._present:
            text += f"; {self._present} more were in the checkpoint that the run went on from"
        if missing:
            text += f"; this is not the run that it tells of: {missing} did not take effect"
        say("%s", text)
        return not missing

    def _warn_of_unknown(self, hello: link_pb2.TrainerHello) -> None:
        specs = {each.name: each for each in hello.state.parameters}
        asked = {change.parameter: each for each in self._todo for change in each.changes}
        for name, entry in asked.items():
            if why := _why_not(specs.get(name)):
                logger.warning(
                    "%s changes %s for step %s, which this run can not do: %s",
                    self._source,
                    name,
                    entry.step,
                    why,
                )

    def _settled(self, outcome: session_pb2.UpdateOutcome) -> None:
        entry = self._open.pop(outcome.revision, None)
        if entry is None:
            return  # of the checkpoint, told once more
        if outcome.HasField("applied") and outcome.applied.step == entry.step:
            self._replayed += 1
            return
        if outcome.HasField("applied"):
            why = f"it was made for step {outcome.applied.step}"
        elif outcome.HasField("rejected"):
            why = f"{outcome.rejected.message} ({outcome.rejected.reason})"
        else:
            why = outcome.expired.message or "it was not made in time"
        logger.warning(
            "update %s of %s, for step %s, was not replayed: %s; training goes on without it",
            outcome.revision,
            self._source,
            entry.step,
            why,
        )


def replay_link_factory(path: str | os.PathLike[str]) -> LinkFactory:
    """Return what makes the links of a run that replays a file.

    Args:
        path: The file, as :mod:`trainer_agent.replay.recipe` describes it. It is read now.

    Raises:
        OSError: It can not be read.
        ValueError: It is not as it has to be; every line that is wrong is named.
    """
    content, source = recipe.load(path), os.fspath(path)

    def make(*, hello: Callable[[], link_pb2.TrainerHello], **_: Any) -> ReplayLink:
        return ReplayLink(content, source, hello)

    return make


def _in_force(state: session_pb2.FullState) -> set[int]:
    """Return the revisions that the run has in it: in force, and settled or about to be."""
    present = {revision for each in state.in_force for revision in range(each.first, each.last + 1)}
    return present | {
        each.revision
        for each in state.outcomes
        if each.HasField("applied") and not each.rolled_back
    }


def _why_not(spec: parameter_pb2.ParameterSpec | None) -> str | None:
    if spec is None:
        return "it has no such parameter"
    return spec.unavailable_reason or None
