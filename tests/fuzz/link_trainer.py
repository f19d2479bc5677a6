"""An agent that says anything, to a real training loop, over the real socket."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.fuzz.exploring import Fuzzer
from tests.fuzz.material import Draw, altered, any_of, chance, noise, pick, spoiled
from tests.support.scripted_link import (
    delivery,
    evaluate,
    multiply_change,
    pause,
    resume,
    save_checkpoint,
    set_change,
    stop,
    withdrawal,
)
from trainer_agent.link import trainer as link_trainer
from trainer_agent.link.address import locate, prepare_directory
from trainer_agent.link.framing import MAX_MESSAGE_BYTES, FrameDecoder, frame
from trainer_agent.link.trainer import TrainerLink
from trainer_agent.loop import Loop
from trainer_agent.steering import session as steering_session

STEPS = 8
_LONGEST_PAUSE = 20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once and with an error for the other end


class WildAgent:
    """Listens where a trainer looks for its agent, and speaks when it is told to."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._connection: socket.socket | None = None
        self._decoder = FrameDecoder()
        self.heard: list[link_pb2.TrainerMessage] = []

    def listen(self) -> None:
        """Takes a new connection, and what has come in: always messages that can be read."""
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                self.hang_up()
                connection.setblocking(False)
                self._connection, self._decoder = connection, FrameDecoder()
        while self._connection is not None:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.hang_up()
                return
            self.heard += map(link_pb2.TrainerMessage.FromString, self._decoder.feed(data))

    def say(self, data: bytes) -> None:
        """Sends what the socket takes; nothing where nobody is connected."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(data)

    def hang_up(self, *, rudely: bool = False) -> None:
        """Closes the connection."""
        if self._connection is not None:
            if rudely:
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


class WatchedLink(TrainerLink):
    """A link that lets the agent go on, in the same thread, where the loop waits for it."""

    agent: WildAgent
    waits: Callable[[], None]

    def wait(self, seconds: float) -> None:
        self.waits()
        super().wait(min(seconds, 0.001))

    def _wait(self, seconds: float) -> None:
        self.agent.listen()
        super()._wait(min(seconds, 0.001))


class _Failures(logging.Handler):
    """Keeps what the training side logs of failures of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(logging.Formatter().format(record))


class Training:
    """A few steps of a small model, the same each time."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.full((3,), 0.5))
        self.x = torch.randn(STEPS, 4, 3, generator=generator)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1.0 - step / (2 * STEPS)
        )
        self.rates: dict[int, float] = {}

    def run(self, boundary: Callable[[int], bool]) -> bytes:
        """Trains until the end, or until the boundary says stop; returns the weights' bits."""
        for index in range(STEPS):
            loss = ((self.x[index] @ self.weight - self.x[index].sum(dim=1)) ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack
            self.rates[index + 1] = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.scheduler.step()
            if boundary(index + 1):
                break
        return self.weight.detach().numpy().tobytes()


class TrainerSideFuzzer(Fuzzer):
    """Fuzzes the local link from the agent's side."""

    name = "link: agent -> training loop"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        for module, name, value in (
            (link_trainer, "_CONNECT_INTERVAL", 0.0),
            (link_trainer, "_LOOK_INTERVAL", 0.0),
            (link_trainer, "_FAILURE_BACKOFF_LAST", 0.0),
            (steering_session, "CLOSE_TIMEOUT", 0.02),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        self.plain = Training().run(lambda _step: False)

    async def converse(self, draw: Draw) -> None:
        address = locate("fuzz", self.folder / "s")
        prepare_directory(address.directory)
        address.socket.unlink(missing_ok=True)
        agent, failures = WildAgent(address.socket), _Failures()
        logger = logging.getLogger("trainer_agent")
        propagates, logger.propagate = logger.propagate, False
        logger.addHandler(failures)
        try:
            trained, rates, stopped = self._train(draw, agent)
        finally:
            logger.removeHandler(failures)
            logger.propagate = propagates
            agent.close()
        assert failures.records == [], "\n".join(failures.records)
        self._told_the_truth(agent.heard, trained, rates, stopped=stopped)

    def _train(self, draw: Draw, agent: WildAgent) -> tuple[bytes, dict[int, float], bool]:
        links: list[WatchedLink] = []
        resumed = iter(range(10**6, 2 * 10**6))

        def waits() -> None:
            revision = next(resumed)
            if revision - 10**6 > _LONGEST_PAUSE:
                raise InterruptedError  # as a person would who finds the run paused for good
            links[-1]._attempt_at = 0.0
            agent.listen()
            agent.say(_framed(delivery(revision, action=resume())))

        def link_factory(**options: Any) -> WatchedLink:
            link = WatchedLink(socket_dir=self.folder / "s", spawn=False, **options)
            link.agent, link.waits = agent, waits
            links.append(link)
            return link

        stopped = False

        def boundary(step: int) -> bool:
            nonlocal stopped
            agent.listen()
            for _ in range(draw(st.integers(0, 2))):
                self._act(draw, agent)
            with contextlib.suppress(InterruptedError):
                signal = loop.step(step, loss=1.0 / step)
                stopped = stopped or signal.stop
                if signal.save:
                    loop.saved("checkpoint")
                if signal.evaluate:
                    loop.report({"eval_loss": 1.0})
            return stopped

        training = Training()
        loop = Loop(
            training.optimizer,
            training.scheduler,
            job="fuzz",
            total_steps=STEPS,
            link_factory=link_factory,
        )
        with loop:
            trained = training.run(boundary)
        agent.listen()
        return trained, training.rates, stopped

    def _act(self, draw: Draw, agent: WildAgent) -> None:
        self.said += 1
        match pick(draw, *("message",) * 10, "raw", "raw", "large", "part", "hang up", "reset"):
            case "message":
                agent.say(_framed(self._message(draw)))
            case "raw" if chance(draw, 2):
                agent.say(spoiled(draw, _framed(self._message(draw))))
            case "raw":
                raw = spoiled(draw, self._message(draw).SerializeToString())
                agent.say(frame(raw))
            case "large":
                size = draw(st.sampled_from([MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1, 2**32 - 1]))
                agent.say(size.to_bytes(4, "big") + noise(size, 1000))
            case "part":
                agent.say(_framed(self._message(draw))[: draw(st.integers(1, 12))])
            case "reset":
                agent.hang_up(rudely=True)
            case _:
                agent.hang_up()

    def _message(self, draw: Draw) -> link_pb2.AgentMessage:
        how = pick(draw, "right", "right", "altered", "altered", "any")
        if how == "any":
            return any_of(draw, link_pb2.AgentMessage)
        message = _plausible(draw)
        return altered(draw, message) if how == "altered" else message

    def _told_the_truth(
        self,
        heard: Sequence[link_pb2.TrainerMessage],
        trained: bytes,
        rates: dict[int, float],
        *,
        stopped: bool,
    ) -> None:
        assert not [each.fault for each in heard if each.HasField("fault")]
        outcomes: dict[int, session_pb2.UpdateOutcome] = {}
        for each in heard:
            told = [each.outcome] if each.HasField("outcome") else []
            for outcome in [*told, *each.state.outcomes, *each.hello.state.outcomes]:
                assert outcome.WhichOneof("result"), outcome
                first = outcomes.setdefault(outcome.revision, outcome)
                assert first == outcome, f"told two things of one update: {first} and {outcome}"
        applied = [o.applied for o in outcomes.values() if o.HasField("applied")]
        moves = [o for o in applied if o.transitions]
        # What was applied and could not be told, as nobody was there, rides in what follows.
        unknown = len(rates) < STEPS and not stopped
        if not moves and not stopped and not unknown and self._all_heard(heard):
            assert trained == self.plain, "training was changed, and no update was applied"
        for one in moves:
            others = [o for o in moves if o is not one and o.step == one.step]
            if others or one.step not in rates:
                continue
            for moved in one.transitions:
                if moved.parameter == "learning_rate":
                    assert rates[one.step] == moved.new_value.number, (one, rates)

    @staticmethod
    def _all_heard(heard: Sequence[link_pb2.TrainerMessage]) -> bool:
        return bool(heard) and heard[-1].HasField("goodbye")


def _framed(message: link_pb2.AgentMessage) -> bytes:
    return frame(message.SerializeToString())


def _plausible(draw: Draw) -> link_pb2.AgentMessage:
    """What an agent might say."""
    revision = draw(st.integers(1, 4))
    match pick(draw, "welcome", "delivery", "delivery", "action", "withdrawal", "stored", "gone"):
        case "welcome":
            welcome = link_pb2.AgentWelcome(protocol_version=1, agent_version="0", pid=1)
            return link_pb2.AgentMessage(welcome=welcome)
        case "delivery":
            change = pick(draw, set_change(0.02), multiply_change(0.5), set_change(-1.0))
            at_step = pick(draw, None, None, 3)
            return delivery(revision, change, at_step=at_step, deadline=pick(draw, None, 1))
        case "action":
            action = pick(draw, pause, resume, save_checkpoint, evaluate, stop)()
            return delivery(revision, action=action)
        case "withdrawal":
            return withdrawal(revision)
        case "stored":
            stored = link_pb2.OutcomesStored(revisions=[revision])
            return link_pb2.AgentMessage(stored=stored)
        case _:
            reason = pick(draw, "INSTANCE_SUPERSEDED", "CONTROL_PLANE_UNKNOWN", "SOMETHING_NEW")
            return link_pb2.AgentMessage(detached=link_pb2.Detached(reason=reason, message="no"))
