"""python -m tests.compatibility.record: freezes the present version anew.

To be run where a version is released, never to make a test pass: docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc

from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from tests.compatibility import frozen
from tests.compatibility.frozen import Said
from tests.compatibility.parties import (
    BOUND_SECONDS,
    METHOD,
    BytesServer,
    LinkEnd,
    present_agent,
)
from tests.support.plain_loop import PlainLoop
from tests.support.plane import RunningPlane, request, running_plane, set_rate
from tests.support.scripted_link import multiply_change, set_change
from tests.support.scripted_trainer import Book, applied
from trainer_agent.link.protocol import PROTOCOL_VERSION

JOB = "job"
CONTROL = "control.v1.ControlPlaneService"


class Recorder:
    """Stands between a real agent and a real control plane, and between trainer and agent."""

    def __init__(self, plane: RunningPlane) -> None:
        self.session: list[Said] = []
        self.link: list[Said] = []
        self.lose_heartbeat = False
        self.part = asyncio.Event()
        self._plane = plane

    async def serve(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        """Passes a stream on."""
        call: Any = self._plane.channel.stream_stream(METHOD)()
        passing = asyncio.create_task(self._pass(call, requests))
        parting = asyncio.create_task(self.part.wait())
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                await asyncio.wait({reading, parting}, return_when=asyncio.FIRST_COMPLETED)
                if self.part.is_set():
                    self.part.clear()
                    away = pb.SessionResponse()
                    away.go_away.reason = "the server is shutting down"
                    away.go_away.reconnect_delay.FromMilliseconds(100)
                    self.session.append(Said("server", away.SerializeToString()))
                    yield self.session[-1].raw
                    parting = asyncio.create_task(self.part.wait())
                raw = await reading
                if raw is grpc.aio.EOF:
                    return
                self.session.append(Said("server", raw))
                yield raw
        finally:
            parting.cancel()
            passing.cancel()

    async def _pass(self, call: Any, requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            if self.lose_heartbeat and pb.SessionRequest.FromString(raw).HasField("heartbeat"):
                self.lose_heartbeat = False
                continue
            self.session.append(Said("agent", raw))
            await call.write(raw)
        await call.done_writing()

    async def until(self, by: str, kind: str, count: int = 1) -> None:
        """Waits until something has been said in the session."""
        of = pb.SessionRequest if by == "agent" else pb.SessionResponse
        async with asyncio.timeout(BOUND_SECONDS):
            while count > sum(  # noqa: ASYNC110 - a proxy says it, in this very loop
                each.by == by and of.FromString(each.raw).WhichOneof("message") == kind
                for each in self.session
            ):
                await asyncio.sleep(0.01)


async def _converse(folder: Path) -> tuple[Recorder, Path]:
    database = folder / "control.db"
    async with running_plane(database, heartbeat_interval=0.2) as plane:
        recorder = Recorder(plane)
        async with (
            BytesServer(recorder.serve) as between,
            present_agent(JOB, between.address, folder / "s") as address,
        ):
            await _train(recorder, LinkEnd(address), plane)
            await recorder.until("agent", "goodbye")
    return recorder, database


async def _train(recorder: Recorder, trainer: LinkEnd, plane: RunningPlane) -> None:
    """All that a trainer, an agent, a server and a caller may say."""

    async def say(**message: Any) -> None:
        raw = link_pb2.TrainerMessage(**message).SerializeToString()
        recorder.link.append(Said("trainer", raw))
        await trainer.say(raw)

    async def hear(kind: str) -> None:
        while True:
            raw = await trainer.hear()
            recorder.link.append(Said("agent", raw))
            if link_pb2.AgentMessage.FromString(raw).WhichOneof("message") == kind:
                return

    async def call(method: str, asked: Any) -> None:
        recorder.session.append(Said(f"caller {CONTROL}/{method}", asked.SerializeToString()))
        await getattr(plane.control, method)(asked)

    book = Book("instance-1")
    hello = book.hello()
    hello.protocol_version, hello.job_id, hello.pid = PROTOCOL_VERSION, JOB, 4242
    await say(hello=hello)
    await hear("welcome")
    await recorder.until("agent", "heartbeat", 3)
    await call("UpdateParameters", request(JOB, 5e-4, request_id="r1"))
    await hear("delivery")
    step = link_pb2.StepReport(step=1, time_nanos=1, names=["loss"], values=[0.5], max_steps=100)
    await say(step=step)
    await say(outcome=applied(1, 2))
    await hear("stored")
    later = set_rate(2e-4, apply_at=update_pb2.ApplyAt(step=1_000_000))
    await call("UpdateParameters", request(JOB, spec=later, request_id="r2"))
    await hear("delivery")
    name = f"jobs/{JOB}/updates/2"
    cancel = control_pb2.CancelUpdateRequest(name=name, reason="no more")
    cancelling = asyncio.create_task(call("CancelUpdate", cancel))  # waits for the trainer's word
    await hear("withdrawal")
    await say(outcome=pb.UpdateOutcome(revision=2, withdrawn=pb.Withdrawn()))
    await hear("stored")
    await cancelling
    await call("UpdateParameters", request(JOB, 5e-4, request_id="r3"))
    await hear("delivery")
    rejected = update_pb2.Rejected(reason="NO_SCALE", message="the rate is 0 here", step=2)
    await say(outcome=pb.UpdateOutcome(revision=3, rejected=rejected))
    await hear("stored")
    batch = link_pb2.StepReports(
        steps=[2, 3], time_nanos=[2, 3], names=["loss"], values=[0.4, float("nan")], epoch=0.5
    )
    await say(steps=batch)
    await say(fault=pb.Fault(component="telemetry", message="OSError: no such device"))
    await recorder.until("agent", "event")
    local = pb.LocalUpdate(request_id="guard-1")
    local.spec.action.pause.SetInParent()
    local.spec.reason = "the loss is not finite"
    await say(local_update=local)
    await hear("delivery")
    await say(outcome=pb.UpdateOutcome(revision=4, applied=update_pb2.Applied(step=3)))
    await hear("stored")
    recorder.lose_heartbeat = True
    await recorder.until("server", "state_request")
    await recorder.until("agent", "state")
    recorder.part.set()
    await recorder.until("agent", "hello", 2)
    await recorder.until("server", "welcome", 2)
    await say(finished=pb.TrainingFinished(step=100))
    await recorder.until("agent", "event", 2)
    await say(goodbye=link_pb2.TrainerGoodbye())
    trainer.close()


def _checkpoint() -> dict[str, Any]:
    """What a run keeps of itself: one update in force and confirmed, one not yet, one rejected."""
    loop = PlainLoop(shape=lambda step: 1.0 - step / 100)
    loop.deliver(1, set_change(0.02))
    loop.steps(2)
    loop.deliver(2, set_change(-1.0))
    loop.deliver(3, multiply_change(0.5))
    loop.steps(1)
    return {
        "controller": loop.controller.state_dict(),
        "rate": loop.rate,
        "optimizer_rate": loop.optimizer.param_groups[0]["lr"],
        "initial_rate": loop.optimizer.param_groups[0]["initial_lr"],
        "scheduler": {
            key: value
            for key, value in loop.scheduler.state_dict().items()
            if key in {"base_lrs", "last_epoch", "_step_count", "_last_lr"}
        },
        "step": loop.global_step,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.record")
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorder, database = asyncio.run(_converse(Path(folder)))
        with closing(sqlite3.connect(database)) as connection:
            dump = "\n".join(connection.iterdump())
    frozen.FOLDER.mkdir(exist_ok=True)
    frozen.write(frozen.SESSION, recorder.session)
    frozen.write(frozen.LINK, recorder.link)
    frozen.CHECKPOINT.write_text(json.dumps(_checkpoint(), indent=1) + "\n", "utf-8")
    frozen.DATABASE.write_text(dump + "\n", "utf-8")
    build = [str(Path(sys.executable).parent / "buf"), "build", "--as-file-descriptor-set"]
    subprocess.run([*build, "--exclude-source-info", "-o", str(frozen.IMAGE)], check=True)
    print(f"frozen in {frozen.FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
