"""Automatic protection, where the job's owner has switched it on: a loss that is not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from midcourse.control.v1 import update_pb2

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2

Reaction = Literal["pause", "roll_back"]

_MOST_PENDING = 64


@dataclass(frozen=True, slots=True)
class Protection:
    """What a run does by itself when a loss is NaN or infinite.

    It is reported as an update with the author ``guard``.

    Args:
        on_nonfinite_loss: Hold the run, or take it back to its newest checkpoint. Where it can not
            be taken back it is held.
        cut: The learning rate is multiplied by this; 1: it stays.
        max_roll_backs: Roll backs in a row to the same checkpoint; after that the run is held.

    Raises:
        ValueError: A value makes no sense.
    """

    on_nonfinite_loss: Reaction = "pause"
    cut: float = 0.5
    max_roll_backs: int = 3

    def __post_init__(self) -> None:
        if self.on_nonfinite_loss not in get_args(Reaction):
            raise ValueError(
                f"on_nonfinite_loss must be one of {', '.join(get_args(Reaction))}, got "
                f"{self.on_nonfinite_loss!r}"
            )
        if not 0 < self.cut <= 1:
            raise ValueError(f"cut must be above 0 and at most 1, got {self.cut!r}")
        if self.max_roll_backs < 1:
            raise ValueError(f"max_roll_backs must be at least 1, got {self.max_roll_backs!r}")

    def attempts(
        self, alarm: link_pb2.LossAlarm, checkpoint: str | None, roll_backs: int
    ) -> Iterator[update_pb2.UpdateSpec]:
        """Return what to do about an alarm; each is for where the one before it is refused.

        A roll back takes the cuts back with it that were made since the checkpoint. So each of
        several to the same checkpoint says the whole factor.

        Args:
            alarm: The loss.
            checkpoint: Where the run can be taken back to; None: nowhere.
            roll_backs: Times in a row that it was, by itself, to this checkpoint.
        """
        what = f"the loss of step {alarm.step} is {alarm.loss:g}"
        if alarm.rank:
            what += f" on rank {alarm.rank}"
        pause = update_pb2.Action(pause=update_pb2.PauseAction())
        reactions = [(what, pause, self.cut)]
        if self.on_nonfinite_loss == "roll_back":
            reactions = [(f"{what}, and it can not be taken back", pause, self.cut)]
            if checkpoint is not None and roll_backs < self.max_roll_backs:
                back = update_pb2.Action(roll_back=update_pb2.RollBackAction(checkpoint=checkpoint))
                reactions.insert(
                    0, (what + self._repeated(roll_backs), back, self._factor(roll_backs))
                )
            elif checkpoint is not None:
                reactions = [(f"{what}, again after {roll_backs} roll backs", pause, self.cut)]
        for reason, action, factor in reactions:
            if self.cut < 1:
                change = update_pb2.Change(parameter="learning_rate")
                change.multiply.factor = factor
                yield update_pb2.UpdateSpec(changes=[change], action=action, reason=reason)
            uncut = "" if self.cut == 1 else "; the learning rate can not be cut"
            yield update_pb2.UpdateSpec(action=action, reason=reason + uncut)

    def _factor(self, roll_backs: int) -> float:
        return float(self.cut ** (roll_backs + 1))

    def _repeated(self, roll_backs: int) -> str:
        if not roll_backs:
            return ""
        times = roll_backs + 1
        cut = f", with the learning rate cut {times} times, to {self._factor(roll_backs):g} times"
        return f", again: roll back {times} in a row to this checkpoint" + (
            f"{cut} its value there" if self.cut < 1 else ""
        )


class LossWatch:
    """Looks at the loss of every micro-batch of a trainer, and never waits for an accelerator.

    There a loss is copied to the host behind the trainer's back, and looked at once it is there,
    mostly a step later.

    Args:
        trainer: The transformers trainer; its ``training_step`` is watched.
        next_step: The optimizer step that comes next.
    """

    def __init__(self, trainer: Any, next_step: int) -> None:
        self._trainer = trainer
        self._step = next_step
        self._pending: deque[tuple[int, Any, Any]] = deque()
        self._found: tuple[int, float] | None = None
        self._failure: Exception | None = None
        self._training_step = trainer.training_step
        self._was_its_own = "training_step" in vars(trainer)
        trainer.training_step = self._watched

    @classmethod
    def of(cls, trainer: Any, next_step: int) -> LossWatch:
        """Watch a trainer from an optimizer step on.

        Raises:
            TypeError: There is none to watch.
        """
        if not callable(getattr(trainer, "training_step", None)):
            raise TypeError(
                "protection needs a trainer whose training_step can be watched; switch it on with "
                "attach(trainer, protection=...)"
            )
        return cls(trainer, next_step)

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._training_step(*args, **kwargs)
        try:
            self._look_at(loss)
        except Exception as error:  # noqa: BLE001 - told at the boundary; it must not stop a step
            self._failure = error
        return loss

    def _look_at(self, loss: Any) -> None:
        if self._found is not None or self._failure is not None:
            return
        if loss.device.type == "cpu":
            self._judge(self._step, loss)
        elif loss.device.type == "cuda":
            import torch

            host = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
            host.copy_(loss.detach(), non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no type for it
            copied.record()
            self._await(host, copied)
        else:
            raise RuntimeError(
                f"protection against a loss that is not finite can not watch losses on "
                f"{loss.device.type}, only on cpu and cuda"
            )

    def _await(self, host: Any, copied: Any) -> None:
        """Look later at a loss that is on its way, and now at those that have arrived."""
        self._look_at_arrived()
        self._pending.append((self._step, host, copied))
        if len(self._pending) > _MOST_PENDING:
            self._pending.popleft()

    def _look_at_arrived(self) -> None:
        while self._pending and self._pending[0][2].query():
            step, host, _ = self._pending.popleft()
            self._judge(step, host)

    def _judge(self, step: int, loss: Any) -> None:
        value = float(loss)
        if not math.isfinite(value) and self._found is None:
            self._found = step, value

    def alarm(self, next_step: int) -> tuple[int, float] | None:
        """Return step and loss of the first loss that was not finite since the last call.

        Args:
            next_step: The optimizer step that comes next.

        Raises:
            Exception: The losses could not be looked at, and are looked at no more.
        """
        if self._failure is not None:
            self._pending.clear()
            raise self._failure
        self._look_at_arrived()
        self._step = next_step
        found, self._found = self._found, None
        return found

    def detach(self) -> None:
        """Watch no more."""
        if self._trainer.__dict__.get("training_step") == self._watched:
            del self._trainer.training_step
            if self._was_its_own:
                self._trainer.training_step = self._training_step
        self._pending.clear()
