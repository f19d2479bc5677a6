"""The accumulation, the batch size and the place in the data of one trainer, and changing them.

What the training loop does with it is in ``loop``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from trainer_agent.parameters.base import Refused
from trainer_agent.parameters.data import chunking, internals, loaders
from trainer_agent.parameters.data.chunking import Position
from trainer_agent.parameters.data.saved import Plan, SavedFlow, Sizes
from trainer_agent.parameters.data.stretch import Stretch, depends_on_length, follow_stretched

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a change can touch."""

    sizes: Sizes
    loader: Any
    next_length: int | None
    state_batch: int | None
    max_steps: int
    expected_max_steps: int
    steps_set: bool
    stretch: Stretch
    changed: bool


class DataFlow:
    """How one trainer's data becomes updates.

    Args:
        trainer: A transformers trainer, which is not training.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.why_unavailable: str | None = None
        """Why nothing here can be changed in this run; None: something can."""
        self.why_no_accumulation: str | None = None
        self.why_no_batch_size: str | None = None
        self._left: Sizes | None = None
        self._forget()
        try:
            self.why_unavailable = internals.why_not_at_all(trainer)
            self.why_no_accumulation = internals.why_no_accumulation(trainer)
            self.why_no_batch_size = internals.why_no_batch_size(trainer)
        except Exception as error:  # noqa: BLE001 - an unknown trainer is left alone, and trains
            self.why_unavailable = f"this trainer is not as expected inside: {error!r}"

    def _forget(self) -> None:
        self.changed = False
        """Whether anything was ever changed in this run, before a resumption included."""
        self.plan: Plan | None = None
        """What the script asked for; None: training has not begun."""
        self.resumed: SavedFlow | None = None
        """Where the checkpoint that the run goes on from stands; None: nothing was changed."""
        self.position = Position(0, 0, None)
        """Where the next update that has no micro-batches yet begins."""
        self._done = self.position
        self._taken_at: int | None = None
        self.steps_in_epoch = 0
        """Micro-batches of an epoch as transformers takes them, also where it does not know."""
        self.loader: Any = None
        """The loader of the epochs to come; None: the one that the trainer began with."""
        self.used_loader: Any = None
        """The loader of the epoch that runs."""
        self.asked = self.got = 1
        """Micro-batches that the last update was to take, and took."""
        self.max_steps = 0
        """Steps in the run as planned here; if the state says otherwise somebody moved them."""
        self.steps_set = False
        """The steps of the run were set live, and stay so whatever becomes of the plan."""
        self._next_length: int | None = None
        self._stretch = Stretch()

    # ---- What is in force ----

    @property
    def sizes(self) -> Sizes:
        """The sizes in force, read where the training loop reads them."""
        args = self.trainer.args
        return Sizes(
            accumulation=int(args.gradient_accumulation_steps),
            per_device=int(args.per_device_train_batch_size),
            train_batch=internals.train_batch_size(self.trainer),
        )

    @property
    def script_sizes(self) -> Sizes:
        """The sizes that the script asked for."""
        return self.sizes if self.plan is None else self.plan.sizes

    @property
    def samples_of_micro_batch(self) -> int:
        """Samples of a micro-batch, over all processes."""
        trainer = self.trainer
        return int(trainer.get_total_train_batch_size(trainer.args)) // self.sizes.accumulation

    @property
    def generation(self) -> int:
        """Micro-batches that are generated together; a change waits until they are used up."""
        return internals.generation_length(self.trainer) or 1

    @property
    def steps_moved(self) -> bool:
        """Whether somebody else changed how many steps the run has."""
        return self.steps_set or bool(self.trainer.state.max_steps != self.max_steps)

    @property
    def in_hand(self) -> bool:
        """Whether the next update has its micro-batches already: it can not have others.

        A run that is held may be held right before a step, with the data of that step taken.
        """
        return self._taken_at is not None and self._taken_at == self.trainer.state.global_step

    @property
    def ends_epoch(self) -> bool:
        """Whether all of the epoch has been used."""
        return self.position.ends_epoch and not self.in_hand

    def opens(self, accumulation: int) -> bool:
        """Say whether the next update may begin with this accumulation."""
        if self.in_hand:
            return False
        if self.position.ends_epoch:
            return True
        aligned = chunking.opens(self.position, accumulation, self.generation)
        return aligned and internals.between_generations(self.trainer)

    def updates_until_open(self, accumulation: int) -> int:
        """Return how many updates run before one may begin with this accumulation."""
        return int(self.in_hand) + chunking.updates_until_open(
            self.position, self.sizes.accumulation, accumulation, self.generation
        )

    def deviation(self) -> str | None:
        """Return what of the last update was not as it should have been; None: nothing."""
        if self.got != self.asked:
            return f"the update was to take {self.asked} micro-batches and took {self.got}"
        if self.loader is not None and self.used_loader is not self.loader:
            return "the epoch did not use the new data loader"
        return None

    # ---- Changes ----

    def set_accumulation(self, accumulation: int) -> None:
        """Let updates take so many micro-batches from the next one on.

        Raises:
            Refused: No update may begin with it here.
        """
        args = self.trainer.args
        if accumulation == args.gradient_accumulation_steps:
            return
        if not self.opens(accumulation):
            raise Refused(
                "NOT_AT_BOUNDARY",
                "the next update has its micro-batches already"
                if self.in_hand
                else f"{self.position.consumed} micro-batches of the epoch have been used, and an "
                f"update of {accumulation} can not begin there",
                value_in_force=args.gradient_accumulation_steps,
            )
        args.gradient_accumulation_steps = accumulation
        self._replan()

    def set_batch_size(self, per_device: int) -> None:
        """Let the epochs to come use micro-batches of so many samples for each device.

        Raises:
            Refused: The epoch runs still, or the loader does not come out as it should.
        """
        trainer, old = self.trainer, self.sizes
        if per_device == old.per_device:
            return
        if not self.ends_epoch:
            raise Refused(
                "NOT_AT_BOUNDARY",
                "the batch size can change only where an epoch ends",
                value_in_force=old.per_device,
            )
        self._put(replace(old, per_device=per_device))
        loader = loaders.build(trainer, like=self.used_loader)
        got, wanted = loaders.batch_size(loader), internals.train_batch_size(trainer)
        if got != wanted or not len(loader):
            loaders.let_go_of(trainer, loader)
            raise Refused(
                "READ_BACK_DIFFERS",
                f"the new data loader has {len(loader)} batches of {got} instead of "
                f"{wanted}: the trainer builds it in a way of its own, or there "
                "are not as many samples",
                value_in_force=old.per_device,
            )
        self.loader, self._next_length = loader, len(loader)
        trainer.state.train_batch_size = wanted
        self._replan()

    def snapshot(self) -> Snapshot:
        """Return all that a change can touch."""
        state = self.trainer.state
        return Snapshot(
            sizes=self.sizes,
            loader=self.loader,
            next_length=self._next_length,
            state_batch=state.train_batch_size,
            max_steps=state.max_steps,
            expected_max_steps=self.max_steps,
            steps_set=self.steps_set,
            stretch=self._stretch,
            changed=self.changed,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was; to be called where no update has begun since."""
        if self.loader is not snapshot.loader:
            loaders.let_go_of(self.trainer, self.loader)
        self._put(snapshot.sizes)
        self.loader, self._next_length = snapshot.loader, snapshot.next_length
        self.trainer.state.train_batch_size = snapshot.state_batch
        self.trainer.state.max_steps = snapshot.max_steps
        self.max_steps, self.changed = snapshot.expected_max_steps, snapshot.changed
        self.steps_set = snapshot.steps_set
        self._follow(snapshot.stretch)

    def _put(self, sizes: Sizes) -> None:
        args = self.trainer.args
        args.gradient_accumulation_steps = sizes.accumulation
        if args.per_device_train_batch_size != sizes.per_device:
            internals.put_batch_size(self.trainer, sizes.per_device)

    def _replan(self) -> None:
        """Plan the rest of the run anew; one that was given a number of steps keeps it."""
        self.changed = True
        trainer, here = self.trainer, self.position.normalised(self._next_length)
        moved = self.steps_moved and not self.steps_set
        if trainer.args.max_steps > 0 or moved or here.length is None:
            return
        done, accumulation = trainer.state.global_step, self.sizes.accumulation
        until = done + chunking.updates_left(here, trainer.args.num_train_epochs, accumulation)
        self.max_steps = until
        if not self.steps_set:
            trainer.state.max_steps = until
            self._stretch_to_plan()

    def follow_plan(self) -> None:
        """Go on as planned, where the steps of the run were set live and are the plan's again."""
        self.steps_set = False
        if self.changed:
            self._stretch_to_plan()

    def _stretch_to_plan(self) -> None:
        trainer = self.trainer
        if self.plan is not None and depends_on_length(trainer.lr_scheduler):
            done = trainer.state.global_step
            self._follow(self._stretch.replanned(self.plan.max_steps, done, self.max_steps))

    def _follow(self, stretch: Stretch) -> None:
        if stretch != self._stretch:
            self._stretch = stretch
            follow_stretched(self.trainer.lr_scheduler, stretch)

    # ---- Training begins, ends, goes on ----

    def begin_epoch(self, position: Position) -> None:
        """Note where in its data an epoch begins, before any of it is taken."""
        self.position, self._taken_at = position, None
        self.asked = self.got = self.sizes.accumulation

    def take(self, asked: int, got: int) -> None:
        """Note how many micro-batches the next update was to get, and got."""
        here = self.position
        self.asked, self.got = asked, got
        self._done, self.position = here, Position(here.epoch, here.consumed + got, here.length)
        self._taken_at = self.trainer.state.global_step if got else None

    def begin(self, saved: SavedFlow | None) -> None:
        """Begin training anew, or where a checkpoint stands, before its loader is built."""
        if self.plan is not None and self.sizes == self._left:
            self._put(self.plan.sizes)  # what an earlier training in this process was left with
        self._forget()
        if saved is not None:
            self.resumed, self.changed, self._next_length = saved, True, saved.position.length
            self._put(saved.sizes)

    def end(self) -> None:
        """Note what training is left with."""
        self._left = self.sizes

    def planned(self, length: int | None, steps_in_epoch: int, max_steps: int) -> int:
        """Note what transformers plans, and return the steps that the schedule is built for.

        Args:
            length: Micro-batches in an epoch; None: not known.
            steps_in_epoch: The same as transformers takes it, also where it is not known.
            max_steps: Steps in the run.
        """
        args, saved = self.trainer.args, self.resumed
        self.steps_in_epoch, self._next_length = steps_in_epoch, length
        if saved is None:
            self.position = Position(0, 0, length)
            self.plan = Plan(self.sizes, length, max_steps, args.num_train_epochs)
        else:
            if args.max_steps <= 0 and saved.plan.length is not None:
                beginning = Position(0, 0, saved.plan.length)
                max_steps = chunking.updates_left(
                    beginning, args.num_train_epochs, saved.plan.sizes.accumulation
                )
            self.plan = replace(
                saved.plan, max_steps=max_steps, num_train_epochs=args.num_train_epochs
            )
            self.position = saved.position.in_epoch_of(length, self.sizes.accumulation)
            if self.position != saved.position:
                logger.warning(
                    "the epoch had %s micro-batches when the checkpoint was saved, and has %s; the "
                    "run goes on after %s of them",
                    saved.position.length,
                    length,
                    self.position.consumed,
                )
        self.max_steps = max_steps
        return max_steps

    def resume_steps(self) -> None:
        """Give a resumed run the number of steps that it had, or has by now."""
        state, args, saved = self.trainer.state, self.trainer.args, self.resumed
        assert saved is not None
        state.train_batch_size = self.sizes.train_batch
        if args.max_steps > 0 or self.position.length is None:
            return
        as_before = args.num_train_epochs == saved.plan.num_train_epochs
        if as_before and self.position.length == saved.position.length:
            state.max_steps, self.max_steps = saved.max_steps, saved.planned_steps
        else:
            here = self.position.normalised(self._next_length)
            left = chunking.updates_left(here, args.num_train_epochs, self.sizes.accumulation)
            state.max_steps = self.max_steps = state.global_step + left

    def resume_schedule(self) -> None:
        """Follow the schedule as before the resumption; to be called when there is one.

        Raises:
            ValueError: It can not be; or the place in the data was not restored before.
        """
        if self.resumed is None:
            raise ValueError(
                "accumulation or batch size were changed before the checkpoint, and the place in "
                "the data that it was saved at was not restored"
            )
        stretch = self.resumed.stretch
        if not stretch.nothing and not depends_on_length(self.trainer.lr_scheduler):
            raise ValueError("the schedule was stretched, and this run has one of another kind")
        self._follow(stretch)

    def state(self) -> dict[str, Any] | None:
        """Return what a resumed run needs; None: transformers finds its way by itself."""
        trainer = self.trainer
        if self.plan is None or self.why_unavailable or not (self.changed or self.steps_moved):
            return None
        # What is in hand only is not used: a resumed run takes it again.
        used = self._done if self.in_hand else self.position
        here = used.normalised(self._next_length)
        if trainer.control.should_epoch_stop and here == used:
            here = Position(here.epoch + 1, 0, self._next_length)
        return SavedFlow(
            sizes=self.sizes,
            position=here,
            steps_in_epoch=self.steps_in_epoch,
            max_steps=trainer.state.max_steps,
            planned_steps=self.max_steps,
            plan=self.plan,
            stretch=self._stretch,
        ).to_json()
