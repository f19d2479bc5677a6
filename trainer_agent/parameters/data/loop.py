"""A trainer's own methods, wrapped so that its data flow can be changed while it trains.

On this one object, and with the same signatures:

- ``_inner_training_loop``: training begins; a checkpoint's sizes are put in force before its
  loader is built.
- ``set_initial_training_values``: what the script planned is noted; of a resumed run put right.
- ``_init_training_state``: a resumed run is told where in the data it stands.
- ``_run_epoch``: an epoch gets the loader in force, and room for as many updates as it may come to
  have; where more epochs are needed than were planned they are run.
- ``get_batch_samples``: an update takes as many micro-batches as it is to take.

Until something is changed an update takes what the trainer planned for it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from trainer_agent.parameters.data import chunking, loaders
from trainer_agent.parameters.data.chunking import Position
from trainer_agent.parameters.data.flow import DataFlow
from trainer_agent.parameters.data.saved import SavedFlow, read_checkpoint

logger = logging.getLogger(__name__)

_HOLDER: Final = "_midcourse_data_flow"
# What ``set_initial_training_values`` returns, and the places in it of what is used of it.
_VALUES, _EPOCHS, _STEPS_IN_EPOCH, _MAX_STEPS = 7, 0, 5, 6

Call = Callable[[], Any]
Arguments = dict[str, Any]
T = TypeVar("T")
P = ParamSpec("P")


def prepare(trainer: Any) -> None:
    """Make ready for changes of accumulation and batch size; to be called before it trains.

    Training goes on as without it, to the bit, until something is changed. Calling it again does
    nothing. Where the trainer is not as expected inside, it is left alone, and the parameters say
    so.
    """
    if _HOLDER not in vars(trainer):
        vars(trainer)[_HOLDER] = WrappedLoop(trainer)


def flow_of(trainer: Any) -> DataFlow | None:
    """Return the data flow of a trainer that was made ready; None: it was not."""
    loop = vars(trainer).get(_HOLDER)
    return loop.flow if isinstance(loop, WrappedLoop) else None


class WrappedLoop:
    """The wrapped methods of one trainer.

    Attributes:
        flow: What they do it by.
    """

    def __init__(self, trainer: Any) -> None:
        self.flow = DataFlow(trainer)
        self._trainer = trainer
        # What the trainer planned: epochs; updates of the epoch that runs, and of the last of them
        # the micro-batches. And how many updates have begun.
        self._epochs = 0
        self._updates = 0
        self._last = 0
        self._begun = 0
        self._spent: _Spent | None = None
        if self.flow.why_unavailable is None:
            self._wrap("_inner_training_loop", self._train)
            self._wrap("set_initial_training_values", self._plan)
            self._wrap("_init_training_state", self._init_state)
            self._wrap("_run_epoch", self._run_epoch)
            own = self._get_batch_samples(trainer.get_batch_samples)
            vars(trainer)["get_batch_samples"] = own

    def _wrap(self, name: str, around: Callable[[Call, Arguments], Any]) -> None:
        original = getattr(self._trainer, name)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()

            def call() -> Any:
                return original(*bound.args, **bound.kwargs)

            return around(call, bound.arguments)

        vars(self._trainer)[name] = wrapped

    def _ours(self, otherwise: T, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do our part of a method, unless some of it has failed before.

        A failure ends training only where something was changed, the number of steps included, as
        going on without us would then be another run.

        Args:
            otherwise: What to go on with where it fails, or has failed.
            do: Our part.
            args: For it.
            kwargs: Likewise.
        """
        flow = self.flow
        if flow.why_unavailable is not None:
            return otherwise
        try:
            return do(*args, **kwargs)
        except Exception as error:
            if flow.changed or flow.steps_set:
                raise
            flow.why_unavailable = f"following the trainer's data failed: {error!r}"
            logger.exception(
                "Midcourse failed to follow the trainer's data, and changes nothing of it any "
                "more; training goes on"
            )
            return otherwise

    # ---- The methods ----

    def _train(self, call: Call, arguments: Arguments) -> Any:
        checkpoint = arguments.get("resume_from_checkpoint")
        saved = None if checkpoint is None else _read(str(checkpoint))
        self._ours(None, self.flow.begin, saved)
        try:
            return call()
        finally:
            self._ours(None, self.flow.end)

    def _plan(self, call: Call, arguments: Arguments) -> Any:
        values = call()
        return self._ours(values, self._planned, values, arguments)

    def _planned(self, values: Any, arguments: Arguments) -> Any:
        from transformers.trainer_utils import has_length

        if not isinstance(values, tuple) or len(values) != _VALUES:
            self.flow.why_unavailable = f"transformers plans with {values!r}, which is not known"
            return values
        flow, saved = self.flow, self.flow.resumed
        planned = list(values)
        loader = arguments["dataloader"]
        length = planned[_STEPS_IN_EPOCH] if has_length(loader) else None
        if saved is not None:
            planned[_EPOCHS] = max(planned[_EPOCHS], saved.position.epoch + 1)
            if length is None:
                planned[_STEPS_IN_EPOCH] = saved.steps_in_epoch
        planned[_MAX_STEPS] = flow.planned(length, planned[_STEPS_IN_EPOCH], planned[_MAX_STEPS])
        self._epochs = planned[_EPOCHS]
        return tuple(planned)

    def _init_state(self, call: Call, arguments: Arguments) -> Any:
        found, flow = call(), self.flow
        if flow.resumed is None:
            return found
        flow.resume_steps()
        skipped = 0 if self._trainer.args.ignore_data_skip else flow.position.consumed
        return flow.position.epoch, skipped

    def _run_epoch(self, call: Call, arguments: Arguments) -> Any:
        trainer = self._trainer
        while True:
            self._spent = None
            self._ours(None, self._begin_epoch, arguments)
            call()
            if not self._ours(False, self._falls_short, arguments["epoch"]):
                return None
            # As the trainer does between two epochs that it planned.
            trainer.control = trainer.callback_handler.on_epoch_begin(
                trainer.args, trainer.state, trainer.control
            )
            arguments["epoch"] += 1

    def _get_batch_samples(self, original: Callable[..., Any]) -> Callable[..., Any]:
        flow = self.flow

        @functools.wraps(original)
        def get_batch_samples(
            epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any
        ) -> Any:
            if self._spent is not None:
                # As often as the epoch might have had more updates, which may be very often.
                return self._spent, None
            count = self._ours(num_batches, self._chunk, num_batches)
            if count == 0:
                self._spent = _Spent(flow.got)
                return self._spent, None
            samples, items = original(epoch_iterator, count, *args, **kwargs)
            self._begun += 1
            self._ours(None, flow.take, count, len(samples))
            return samples, items

        return get_batch_samples

    # ---- Within ----

    def _begin_epoch(self, arguments: Arguments) -> None:
        flow, args = self.flow, self._trainer.args
        own = arguments["train_dataloader"]
        accumulation = args.gradient_accumulation_steps
        if flow.loader is not None:
            if flow.loader is not flow.used_loader:
                loaders.let_go_of(self._trainer, flow.used_loader)
            arguments["train_dataloader"] = own = flow.loader
            self._trainer.callback_handler.train_dataloader = own
            arguments["steps_in_epoch"] = flow.steps_in_epoch = len(own)
        flow.used_loader = own
        resumed = (
            arguments["epoch"] == arguments["epochs_trained"]
            and arguments["resume_from_checkpoint"] is not None
            and not args.ignore_data_skip
        )
        skipped = arguments["steps_trained_in_current_epoch"] if resumed else 0
        length = None if flow.position.length is None else arguments["steps_in_epoch"]
        flow.begin_epoch(Position(arguments["epoch"], skipped, length))
        if length is None:
            if flow.changed:
                arguments["steps_in_epoch"] = flow.steps_in_epoch = self._horizon(accumulation)
            return
        updates = chunking.updates_in(length, accumulation)
        self._updates = updates
        self._last = length % accumulation or accumulation
        self._begun = skipped // accumulation
        arguments["num_update_steps_per_epoch"] = max(length, updates)

    def _horizon(self, accumulation: int) -> int:
        """Return how far an epoch without a known length may go.

        There transformers steps the optimizer once more, so that it must be where an update ends.
        """
        state, before = self._trainer.state, self.flow.steps_in_epoch
        left = max(state.max_steps - state.global_step, 1) * accumulation
        return before if before % accumulation == 0 or left <= before else int(left)

    def _chunk(self, num_batches: int) -> int:
        flow = self.flow
        if flow.changed:
            return chunking.chunk(flow.position, self._trainer.args.gradient_accumulation_steps)
        if flow.position.length is None:
            return num_batches
        if self._begun >= self._updates:
            return 0
        return self._last if self._begun == self._updates - 1 else num_batches

    def _falls_short(self, epoch: int) -> bool:
        """Say whether the planned epochs are over and the run's steps are not."""
        trainer, flow = self._trainer, self.flow
        return bool(
            epoch + 1 >= self._epochs
            and (flow.steps_moved or (flow.changed and trainer.args.max_steps > 0))
            and trainer.state.global_step < trainer.state.max_steps
            and not trainer.control.should_training_stop
        )


class _Spent(list[Any]):
    """No batches, after the end of an epoch, for which the trainer notes the last number again.

    It divides losses by that number, also those of a loss of one's own in an evaluation there.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last

    def __len__(self) -> int:
        return self._last


def _read(checkpoint: str) -> SavedFlow | None:
    try:
        return read_checkpoint(checkpoint)
    except Exception:
        logger.exception(
            "where in the data %s was saved can not be read, and training goes on where it would "
            "be without live changes",
            checkpoint,
        )
        return None
