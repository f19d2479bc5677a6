"""A training process without any training: its link, driven from standard input.

Run as a program, it takes one JSON list per line, ``[verb, argument…]``, and answers each with one
line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import parameter_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link import TrainerLink


def applied(revision: int, step: int) -> session_pb2.UpdateOutcome:
    """An outcome."""
    return session_pb2.UpdateOutcome(
        revision=revision,
        applied=update_pb2.Applied(
            step=step,
            transitions=[
                update_pb2.ParameterTransition(
                    parameter="learning_rate",
                    old_value=parameter_pb2.Value(number=1e-3),
                    new_value=parameter_pb2.Value(number=1e-4),
                )
            ],
        ),
    )


def step_message(step: int, metrics: dict[str, float]) -> link_pb2.TrainerMessage:
    """A step report."""
    report = link_pb2.StepReport(step=step, time_nanos=time.time_ns())
    report.names.extend(metrics)
    report.values.extend(metrics.values())
    return link_pb2.TrainerMessage(step=report)


class Book:
    """The little of a trainer that a hello tells."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.step = 0
        self.outcomes: dict[int, session_pb2.UpdateOutcome] = {}
        self.phase = session_pb2.TRAINER_PHASE_TRAINING
        self.local_updates: list[session_pb2.LocalUpdate] = []

    def hello(self) -> link_pb2.TrainerHello:
        state = session_pb2.FullState(
            parameters=[
                parameter_pb2.ParameterSpec(
                    name="learning_rate",
                    kind=parameter_pb2.PARAMETER_KIND_NUMBER,
                    boundary=parameter_pb2.BOUNDARY_STEP,
                    operations=[parameter_pb2.OPERATION_SET],
                    current_value=parameter_pb2.Value(number=1e-3),
                )
            ],
            outcomes=list(self.outcomes.values()),
            phase=self.phase,
            local_updates=self.local_updates,
        )
        state.progress.step = self.step
        return link_pb2.TrainerHello(
            instance_id=self.instance_id, method="sft", labels={"team": "nlp"}, state=state
        )


class TrainerProcess:
    """Drives such a process from a test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, *, environ: dict[str, str] | None = None, **options: Any
    ) -> TrainerProcess:
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")]),
            **(environ or {}),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def do(self, verb: str, *arguments: Any) -> Any:
        """Lets the process do something and returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *arguments]).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(30):
            line = await self._process.stdout.readline()
        assert line, f"the trainer ended while it did {verb}"
        return json.loads(line)

    async def poll_until(self, count: int, timeout: float = 30.0) -> list[str]:
        """Polls until so many messages have come, in short."""
        messages: list[str] = []
        async with asyncio.timeout(timeout):
            while len(messages) < count:
                messages += await self.poll()
        return messages

    async def poll(self) -> list[str]:
        """Polls once, at the pace of a trainer with steps of some milliseconds."""
        await asyncio.sleep(0.005)
        messages: list[str] = await self.do("poll")
        return messages

    async def ready(self) -> None:
        assert await self.do("wait_ready", 30.0)

    async def exit(self, code: int) -> int:
        """Lets the process exit at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(["exit", code]).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._ended()

    async def kill(self, number: int = signal.SIGKILL) -> int:
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._ended()

    async def _ended(self) -> int:
        code = await self._process.wait()
        # A child that it forked may keep the other end of its output open.
        self._process._transport.close()  # type: ignore[attr-defined]  # there is no public way
        return code


def _in_short(message: link_pb2.AgentMessage) -> str:
    match message.WhichOneof("message"):
        case "delivery":
            deadline = message.delivery.HasField("deadline_monotonic_nanos")
            return f"delivery {message.delivery.update.revision}" + (" deadline" * deadline)
        case "withdrawal":
            return f"withdrawal {message.withdrawal.revision}"
        case "stored":
            return f"stored {sorted(message.stored.revisions)}"
        case "detached":
            return f"detached {message.detached.reason}"
        case other:
            return str(other)


def _run(options: dict[str, Any]) -> None:
    book = Book(options.pop("instance_id", "instance-1"))
    link = TrainerLink(hello=book.hello, **options)
    link.start()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answer: Any = None
        match verb:
            case "wait_ready":
                answer = link.wait_ready(*arguments)
            case "step":
                book.step = arguments[0]
                link.send(step_message(*arguments))
            case "applied":
                outcome = applied(*arguments)
                book.outcomes[outcome.revision] = outcome
                link.send(link_pb2.TrainerMessage(outcome=outcome))
            case "poll":
                messages = link.poll()
                for message in messages:
                    for revision in message.stored.revisions:
                        book.outcomes.pop(revision, None)
                answer = [_in_short(message) for message in messages]
            case "status":
                status = link.status
                answer = {
                    "state": status.state.value,
                    "reason": status.reason,
                    "message": status.message,
                    "agent_pid": status.agent_pid,
                    "dropped": status.dropped_steps,
                    "connections": status.connections,
                }
            case "phase":
                book.phase = session_pb2.TrainerPhase.Value(f"TRAINER_PHASE_{arguments[0]}")
                link.send(link_pb2.TrainerMessage(state=book.hello().state))
            case "local":
                local = session_pb2.LocalUpdate(request_id=arguments[0])
                local.spec.action.pause.SetInParent()
                book.local_updates.append(local)
                link.send(link_pb2.TrainerMessage(local_update=local))
            case "finished":
                finished = session_pb2.TrainingFinished(step=book.step)
                link.send(link_pb2.TrainerMessage(finished=finished))
            case "fault":
                fault = session_pb2.Fault(component="callback", message="ValueError: x")
                link.send(link_pb2.TrainerMessage(fault=fault))
            case "close":
                answer = link.close(*arguments)
            case "fork":
                child = os.fork()
                if child == 0:
                    os.closerange(0, 3)  # the test waits for the end of the trainer's output
                    state = link.status.state.value
                    link.send(step_message(999, {"loss": 9.0}))
                    link.poll()
                    Path(arguments[0]).write_text(state, encoding="utf-8")
                    signal.pause()
                answer = child
            case "new_link":
                book.instance_id = arguments[0]
                link = TrainerLink(hello=book.hello, **options)
                link.start()
            case "children":
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii")
                answer = {
                    pid: Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
                    for pid in children.split()
                }
            case "modules":
                answer = [name for name in arguments if name in sys.modules]
            case "exit":
                os._exit(arguments[0])
            case _:
                raise ValueError(verb)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
