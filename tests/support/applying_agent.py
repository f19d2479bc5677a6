"""An agent that applies every update at once, on threads of its own."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import grpc

from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from midcourse.control.v1 import update_pb2
from tests.support.fake_control_plane import LEARNING_RATE


class ScriptedAgent:
    """An agent that applies every update at once, at step 121.

    Attributes:
        rejects: It rejects them instead.
        silent: It answers nothing.
    """

    def __init__(
        self, address: str, job: str, *, instance: str = "instance-1", **labels: str
    ) -> None:
        self._instance = instance
        self.rejects = False
        self.silent = False
        self._channel = grpc.insecure_channel(address)
        self._out: queue.SimpleQueue[session_pb2.SessionRequest | None] = queue.SimpleQueue()
        self._sequence = 0
        self.welcomed = threading.Event()
        hello = session_pb2.Hello(
            protocol_version=1,
            job_id=job,
            method="sft",
            instance_id=instance,
            agent_id="agent-1",
            host="gpu-01",
            trainer_pid=4242,
            labels=labels,
        )
        hello.state.parameters.append(LEARNING_RATE)
        hello.state.actions.extend(
            [update_pb2.ACTION_KIND_PAUSE, update_pb2.ACTION_KIND_SAVE_CHECKPOINT]
        )
        hello.state.progress.step = 120
        hello.state.progress.max_steps = 1000
        hello.state.phase = session_pb2.TRAINER_PHASE_TRAINING
        self.send(hello=hello)
        self._stream = session_pb2_grpc.AgentServiceStub(self._channel).Session(
            iter(self._out.get, None)
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self.welcomed.wait(30)

    def send(self, **message: Any) -> None:
        self._sequence += 1
        self._out.put(session_pb2.SessionRequest(sequence=self._sequence, **message))

    def beat(
        self,
        step: int,
        phase: session_pb2.TrainerPhase.ValueType = session_pb2.TRAINER_PHASE_TRAINING,
        **metrics: float,
    ) -> None:
        beat = session_pb2.Heartbeat(phase=phase)
        beat.progress.step = step
        beat.progress.max_steps = 1000
        for name, value in metrics.items():
            column = beat.metrics.add(name=name)
            column.steps.append(step)
            column.values.append(value)
            column.time_micros.append(time.time_ns() // 1000)
        self.send(heartbeat=beat)

    def _read(self) -> None:
        try:
            for response in self._stream:
                if response.HasField("welcome"):
                    self.welcomed.set()
                elif response.HasField("delivery") and not self.silent:
                    self._apply(response.delivery)
        except grpc.RpcError:
            pass  # the stream is closed at the end of the test

    def _apply(self, delivery: session_pb2.Delivery) -> None:
        outcome = session_pb2.UpdateOutcome(revision=delivery.update.revision)
        if self.rejects:
            outcome.rejected.reason = "NOT_NOW"
            outcome.rejected.message = "the optimizer is shut"
            self._reply(delivery, outcome)
            return
        outcome.applied.step = 121
        outcome.applied.instance_id = self._instance
        outcome.applied.apply_time.GetCurrentTime()
        if delivery.update.spec.action.HasField("save_checkpoint"):
            outcome.applied.action_result.checkpoint = "/runs/checkpoint-120"
        for change in delivery.update.spec.changes:
            made = outcome.applied.transitions.add(parameter=change.parameter)
            made.old_value.number = 2e-5
            made.new_value.CopyFrom(change.set.value)
            if change.HasField("multiply"):
                made.new_value.number = 2e-5 * change.multiply.factor
        self._reply(delivery, outcome)

    def _reply(self, delivery: session_pb2.Delivery, outcome: session_pb2.UpdateOutcome) -> None:
        reply = session_pb2.DeliveryReply(
            nonce=delivery.nonce, revision=delivery.update.revision, settled=outcome
        )
        self.send(reply=reply)

    def close(self) -> None:
        self._out.put(None)
        self._stream.cancel()
        self._reader.join(30)
        self._channel.close()
