"""Callers that change parameters all the time, and watchers; both record what they see."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from control_plane.rpc.convert_job import read_position
from grpc_runtime.errors import StatusError, from_rpc_error
from grpc_runtime.options import client_options
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import control_pb2_grpc, update_pb2
from tests.faults.history import Recorder
from tests.faults.records import Answered, Asked, Change, Failed, WatchBegan, Watched, WatchEnded

CALL_SECONDS = 3.0
PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""After these it is not known whether the request was carried out: it is sent again."""
_WATCH_EVENTS: Mapping[int, Any] = {
    pb.JOB_EVENT_TYPE_SNAPSHOT: "snapshot",
    pb.JOB_EVENT_TYPE_CREATED: "created",
    pb.JOB_EVENT_TYPE_MODIFIED: "modified",
    pb.JOB_EVENT_TYPE_DELETED: "deleted",
    pb.JOB_EVENT_TYPE_BOOKMARK: "bookmark",
}


def state_name(state: update_pb2.UpdateState.ValueType) -> str:
    """A state of an update, as the store calls it."""
    return update_pb2.UpdateState.Name(state).removeprefix("UPDATE_STATE_").lower()


def job_name(job: str) -> str:
    """Resource name of a job."""
    return f"jobs/{job}"


def _pause(attempt: int, rng: random.Random) -> float:
    """Seconds between two attempts."""
    return rng.uniform(0.5, 1.0) * min(0.05 * 2.0**attempt, 0.5)


class Servers:
    """A connection to each of the servers, and the history that goes with them."""

    def __init__(self, addresses: Sequence[str], recorder: Recorder) -> None:
        self.addresses = addresses
        self.recorder = recorder
        options = [
            *client_options(),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        self._channels = {
            address: grpc.aio.insecure_channel(address, options=options) for address in addresses
        }
        self._stubs: dict[str, Any] = {
            address: control_pb2_grpc.ControlPlaneServiceStub(channel)
            for address, channel in self._channels.items()
        }

    def at(self, address: str) -> Any:
        """The stub of one server."""
        return self._stubs[address]

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def send(self, asked: Asked, rng: random.Random) -> Answered | StatusError:
        """Sends a request until there is an answer, or an error that is final."""
        for attempt in itertools.count():
            asked = replace(asked, call=self.recorder.number(), to=rng.choice(self.addresses))
            self.recorder.add(asked)
            try:
                answered = await self._once(asked)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                self.recorder.add(
                    Failed(call=asked.call, code=error.code.name, reason=error.reason)
                )
                if error.code not in PASSING:
                    return error
                await asyncio.sleep(_pause(attempt, rng))
            else:
                self.recorder.add(answered)
                return answered
        raise AssertionError("there is always another attempt")

    async def _once(self, asked: Asked) -> Answered:
        stub = self.at(asked.to)
        call = asked.call
        if asked.method == "cancel":
            name = f"{job_name(asked.jobs[0])}/updates/{asked.revision}"
            cancel = pb.CancelUpdateRequest(name=name, reason="changed my mind")
            cancel.timeout.FromMilliseconds(500)
            cancelled = (await stub.CancelUpdate(cancel, timeout=CALL_SECONDS)).update
            revisions = {asked.jobs[0]: int(cancelled.revision)}
            return Answered(call=call, revisions=revisions, state=state_name(cancelled.state))
        if asked.method == "batch":
            batch = pb.BatchUpdateParametersRequest(
                jobs=map(job_name, asked.jobs), spec=spec_of(asked), request_id=asked.request_id
            )
            made = await stub.BatchUpdateParameters(batch, timeout=CALL_SECONDS)
            revisions = {each.job.removeprefix("jobs/"): int(each.revision) for each in made.items}
            return Answered(call=call, revisions=revisions, batch=made.batch.name)
        request = pb.UpdateParametersRequest(
            job=job_name(asked.jobs[0]),
            spec=spec_of(asked),
            request_id=asked.request_id,
            expected_revision=asked.expected_revision,
        )
        update = (await stub.UpdateParameters(request, timeout=CALL_SECONDS)).update
        revisions = {asked.jobs[0]: int(update.revision)}
        return Answered(call=call, revisions=revisions, state=state_name(update.state))


def spec_of(asked: Asked) -> update_pb2.UpdateSpec:
    """What a request asks for."""
    # Only hard limits are to be met: a chance course of factors goes far.
    spec = update_pb2.UpdateSpec(force=True)
    for change in asked.changes:
        made = spec.changes.add(parameter=change.parameter)
        if change.op == "multiply":
            made.multiply.factor = change.value
        elif isinstance(change.value, int):
            made.set.value.integer = change.value
        else:
            made.set.value.number = change.value
    if asked.at_step is not None:
        spec.apply_at.step = asked.at_step
    if asked.max_step is not None:
        spec.apply_at.max_step = asked.max_step
    if asked.deadline is not None:
        spec.deadline.FromMilliseconds(round(asked.deadline * 1e3))
    if asked.action:
        getattr(spec.action, asked.action).SetInParent()
    if asked.checkpoint:
        spec.action.roll_back.checkpoint = asked.checkpoint
    return spec


@dataclass
class Fleet:
    """What callers know of the jobs.

    Attributes:
        step: The steps that each job has done, as far as is known.
        newest: The newest revision that each job is known to have.
        keep: Jobs whose updates nobody cancels.
        saved: Names of a job's checkpoints.
    """

    step: Mapping[str, int]
    keep: frozenset[str] = frozenset()
    saved: Callable[[str], Sequence[str]] = lambda _: ()
    newest: dict[str, int] = field(default_factory=dict)

    def note(self, answered: Answered) -> None:
        """Takes note of the revisions that an answer tells of."""
        for job, revision in answered.revisions.items():
            self.newest[job] = max(revision, self.newest.get(job, 0))


_REQUESTS = {
    "one": 46,
    "two": 12,
    "later": 12,
    "expecting": 8,
    "batch": 8,
    "soon": 5,
    "pause": 3,
    "evaluate": 3,
    "save_checkpoint": 3,
    "roll_back": 3,
    "stop": 1,
}
"""What is asked for, and how often in comparison."""


class Caller:
    """Sends one request after another, each until it is answered."""

    def __init__(
        self, name: str, servers: Servers, fleet: Fleet, rng: random.Random, pause: float
    ) -> None:
        self._name = name
        self._servers = servers
        self._fleet = fleet
        self._rng = rng
        self._pause = pause
        self._numbers = 0

    async def run(self, ended: asyncio.Event) -> None:
        """Goes on until it is told that it is enough."""
        while not ended.is_set():
            await self.request()
            await asyncio.sleep(self._rng.uniform(0.0, 2 * self._pause))

    async def request(self) -> None:
        """One request, and perhaps one that has to do with it."""
        rng = self._rng
        asked = self._draw()
        answer = await self._servers.send(asked, rng)
        if isinstance(answer, StatusError):
            if answer.reason == "REVISION_MISMATCH":
                self._fleet.newest[asked.jobs[0]] = int(answer.metadata["current_revision"])
            return
        self._fleet.note(answer)
        chance = rng.random()
        if asked.at_step is not None and chance < 0.5 and asked.jobs[0] not in self._fleet.keep:
            revision = answer.revisions[asked.jobs[0]]
            await self._servers.send(
                self._asked(method="cancel", jobs=asked.jobs, revision=revision), rng
            )
        elif asked.action == "pause":
            await asyncio.sleep(rng.uniform(0.0, 0.3))
            await self.resume(asked.jobs[0])
        elif chance > 0.97:
            # Perhaps it is in force by now.
            revision = answer.revisions[asked.jobs[0]]
            if asked.jobs[0] not in self._fleet.keep:
                await self._servers.send(
                    self._asked(method="cancel", jobs=asked.jobs[:1], revision=revision), rng
                )
        elif chance > 0.9:
            # The same again, as when an answer was lost.
            await self._servers.send(asked, rng)
        elif chance > 0.85:
            other = replace(asked, changes=(Change("max_grad_norm", "set", 77.0),))
            await self._servers.send(other, rng)

    async def resume(self, job: str) -> None:
        """Ends a pause; does nothing where there is none."""
        await self._servers.send(self._asked(jobs=(job,), action="resume"), self._rng)

    def _draw(self) -> Asked:
        rng = self._rng
        jobs = list(self._fleet.step)
        job = rng.choice(jobs)
        kind = rng.choices(
            list(_REQUESTS),
            weights=list(_REQUESTS.values()),
        )[0]
        changes = self._changes(2 if kind == "two" else 1)
        match kind:
            case "later":
                at = self._fleet.step[job] + rng.randint(1, 60)
                most = at + rng.randint(0, 20) if rng.random() < 0.3 else None
                return self._asked(jobs=(job,), changes=changes, at_step=at, max_step=most)
            case "expecting":
                expected = self._fleet.newest.get(job, 0)
                return self._asked(jobs=(job,), changes=changes, expected_revision=expected)
            case "batch":
                several = tuple(sorted(rng.sample(jobs, min(len(jobs), rng.randint(2, 5)))))
                return self._asked(method="batch", jobs=several, changes=changes)
            case "soon":
                deadline = time.time() + rng.uniform(0.0, 2.0)
                due = self._fleet.step[job] + rng.randint(1, 60) if rng.random() < 0.5 else None
                return self._asked(jobs=(job,), changes=changes, at_step=due, deadline=deadline)
            case "pause" | "evaluate" | "save_checkpoint" | "stop":
                with_it = changes if rng.random() < 0.3 else ()
                return self._asked(jobs=(job,), changes=with_it, action=kind)
            case "roll_back":
                saved = ["", "", *self._fleet.saved(job)]
                back = {"action": kind, "checkpoint": rng.choice(saved)}
                with_it = changes if rng.random() < 0.5 else ()
                return self._asked(jobs=(job,), changes=with_it, **back)
            case _:
                return self._asked(jobs=(job,), changes=changes)

    def _asked(self, **fields: Any) -> Asked:
        self._numbers += 1
        request_id = f"{self._name}-{self._numbers}"
        given = {"method": "update", "request_id": request_id, **fields}
        return Asked(caller=self._name, call=0, to="", **given)

    def _changes(self, count: int) -> tuple[Change, ...]:
        rng = self._rng
        possible = [
            Change("learning_rate", "set", rng.uniform(1e-4, 1e-3)),
            Change("weight_decay", "multiply", rng.choice([0.5, 0.9, 1.1, 2.0])),
            Change("max_grad_norm", "multiply", rng.choice([0.5, 0.9, 1.1, 2.0])),
            Change("max_grad_norm", "set", rng.uniform(0.5, 2.0)),
            Change("gradient_accumulation_steps", "set", rng.randint(1, 64)),
        ]
        rng.shuffle(possible)
        return tuple({change.parameter: change for change in possible}.values())[:count]


class Watcher:
    """Watches all jobs, or one, and goes on where it was, at whatever server."""

    def __init__(self, name: str, servers: Servers, rng: random.Random, job: str = "") -> None:
        self.name = name
        self.job = job
        self.position: int | None = None
        self._token = ""
        self._servers = servers
        self._rng = rng

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        recorder = self._servers.recorder
        failures = 0
        while True:
            before = self.position
            address = self._rng.choice(self._servers.addresses)
            recorder.add(
                WatchBegan(watcher=self.name, to=address, job=self.job, position=self.position)
            )
            asked = pb.WatchJobsRequest(
                position=self._token, name=job_name(self.job) if self.job else ""
            )
            try:
                async for event in self._servers.at(address).WatchJobs(asked):
                    self._saw(event)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                recorder.add(
                    WatchEnded(watcher=self.name, code=error.code.name, reason=error.reason)
                )
            failures = 0 if self.position != before else failures + 1
            await asyncio.sleep(_pause(failures, self._rng))

    def _saw(self, event: pb.WatchJobsResponse) -> None:
        self._token = event.position or self._token
        position = read_position(event.position) if event.position else None
        self.position = self.position if position is None else position
        changed = event.update if event.HasField("update") else None
        self._servers.recorder.add(
            Watched(
                watcher=self.name,
                event=_WATCH_EVENTS[event.type],
                position=position,
                job=event.job.name.removeprefix("jobs/"),
                revision=None if changed is None else int(changed.revision),
                state="" if changed is None else state_name(changed.state),
            )
        )
