"""Calls tools for a model: bounded, with the caller's rights, and never to change anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from analytics_service.chat.conversation import Citation, ProposalPart
from analytics_service.chat.fence import clipped, whole
from analytics_service.chat.tools.arguments import describe_faults
from analytics_service.chat.tools.bounds import bounded
from analytics_service.chat.tools.digest import MAX_JOBS, jobs_in_question, requests_about
from analytics_service.chat.tools.jobs import GET_JOB, LIST_JOBS
from analytics_service.chat.tools.metrics import METRIC_SERIES
from analytics_service.chat.tools.proposals import PROPOSE_UPDATE
from analytics_service.chat.tools.tool import Reading, Tool, ToolError
from analytics_service.chat.tools.updates import UPDATE_HISTORY
from analytics_service.chat.tools.values import plain_json
from analytics_service.ports import Clock
from analytics_service.providers.base import ToolRequest, ToolSpec
from analytics_service.threads import Threads
from control_plane.client import Client, MidcourseError, job_id

TOOLS: Final[Mapping[str, Tool[Any]]] = {
    tool.name: tool for tool in (LIST_JOBS, GET_JOB, METRIC_SERIES, UPDATE_HISTORY, PROPOSE_UPDATE)
}

MAX_RESULT_BYTES: Final = 16_384
MAX_ERROR_LENGTH: Final = 1_000
CALL_SECONDS: Final = 20.0
CALLS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What came of one call of a tool.

    Attributes:
        call_id: Id of the call.
        tool: Name of the tool, as the model wrote it.
        arguments: What it was called with; None: they could not be read.
        result: What it returned; None: it failed.
        error: Why it failed, for the model; empty: it did not.
        citations: The data that it handed out.
        proposal: The change that it drafted; None: none.
        duration: Seconds that it took.
        raw: The arguments as the model wrote them.
        by_service: The service called it by itself.
    """

    call_id: str
    tool: str
    arguments: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: str
    citations: tuple[Citation, ...]
    proposal: ProposalPart | None
    duration: float
    raw: str
    by_service: bool = False


class Toolbox:
    """The tools of one caller.

    They read and draft; what the caller may not see, the control plane refuses. Whatever a
    model writes and whatever the control plane answers becomes an outcome; only a fault of the
    service itself raises.
    """

    def __init__(
        self,
        client: Client,
        threads: Threads,
        jobs: Sequence[str] = (),
        clock: Clock | None = None,
        *,
        timeout: float = CALL_SECONDS,
    ) -> None:
        """Takes its parts.

        Args:
            client: Of the control plane, with the caller's credentials.
            threads: Where it is asked.
            jobs: Ids of the jobs that the question is about; empty: whichever. They say where
                `digest` looks; the tools may read others too.
            clock: Tells the time that results say they were read at; None: they do not say.
            timeout: Seconds that a call may take.
        """
        self.specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool in TOOLS.values())
        self._client = client
        self._threads = threads
        self._jobs = tuple(dict.fromkeys(job_id(each) for each in jobs))
        self._clock = clock
        self._timeout = timeout
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)

    async def call(self, request: ToolRequest) -> ToolOutcome:
        """Calls a tool as a model asked for it."""
        started = time.monotonic()
        result: Mapping[str, Any] | None = None
        error = ""
        reading = Reading({})
        try:
            reading = await self._read(request)
            result = self._stamped(bounded(reading.result, MAX_RESULT_BYTES))
        except ValidationError as wrong:
            error = describe_faults(wrong)
        except (ToolError, MidcourseError) as failed:
            error = str(failed)
        except TimeoutError:
            error = f"the tool did not answer within {self._timeout:g} s; ask for less at once"
        return ToolOutcome(
            request.call_id,
            whole(request.name),
            None if request.arguments is None else plain_json(request.arguments),
            result,
            clipped(whole(error), MAX_ERROR_LENGTH),
            reading.citations,
            reading.proposal,
            time.monotonic() - started,
            whole(request.raw),
        )

    async def digest(self, question: str) -> tuple[ToolOutcome, ...]:
        """Reads what a model that can not call tools is likely to need for a question.

        The jobs are those that the toolbox was made for, else those that the question names,
        else those that were active last; a few at most.
        """
        outcomes: list[ToolOutcome] = []
        jobs: Sequence[str] = self._jobs
        if not jobs:
            try:
                async with asyncio.timeout(self._timeout):
                    jobs = await self._threads.run(jobs_in_question, self._client, question)
            except (MidcourseError, TimeoutError):
                jobs = ()
            if not jobs:  # says that there are none, or why they could not be listed
                outcomes.append(await self.call(ToolRequest("", LIST_JOBS.name, {"limit": 5})))
        for job in jobs[:MAX_JOBS]:
            about = await self.call(ToolRequest("", GET_JOB.name, {"job": job}))
            outcomes.append(about)
            metrics = [each["metric"] for each in (about.result or {}).get("metrics", ())]
            outcomes += [await self.call(each) for each in requests_about(job, question, metrics)]
        return tuple(
            replace(each, call_id=f"service_{number}", by_service=True)
            for number, each in enumerate(outcomes)
        )

    async def _read(self, request: ToolRequest) -> Reading:
        tool = TOOLS.get(request.name)
        if tool is None:
            raise ToolError(
                f"there is no tool {clipped(ascii(request.name), 60)}; there are: "
                f"{', '.join(TOOLS)}"
            )
        if request.arguments is None:
            raise ToolError(
                f"the arguments could not be read ({clipped(request.error, 200) or 'no JSON'}); "
                "send one JSON object"
            )
        async with self._slots, asyncio.timeout(self._timeout):
            return await self._threads.run(tool.read, self._client, request.arguments)

    def _stamped(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._clock is None:
            return result
        return {**result, "read_at": self._clock().isoformat().replace("+00:00", "Z")}
