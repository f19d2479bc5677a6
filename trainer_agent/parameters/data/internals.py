"""Whether a trainer works inside as it must for its accumulation and batch sizes to be changed.

What is relied on is private to transformers and TRL. Where it is not as expected nothing is
wrapped, and the parameters say why they are not available.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

_SIGNATURES: Final = {
    "_inner_training_loop": ("batch_size", "args", "resume_from_checkpoint"),
    "set_initial_training_values": ("args", "dataloader"),
    "_init_training_state": (
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
    ),
    "_run_epoch": (
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "get_batch_samples": ("epoch_iterator", "num_batches"),
}
_FRAGMENTS: Final = {
    # The rule of when gradients are synchronised, which aligned changes rest on.
    "_run_epoch": (
        "(step + 1) % self.args.gradient_accumulation_steps == 0 or (step + 1) == steps_in_epoch",
        "range(num_update_steps_trained, num_update_steps_per_epoch)",
        "step = steps_trained_in_current_epoch - 1",
        "self.current_gradient_accumulation_steps = len(batch_samples)",
        "epoch + (step + 1) / steps_in_epoch",
    ),
    "_init_training_state": ("return epochs_trained, steps_trained_in_current_epoch",),
    "_inner_training_loop": (
        "self.get_train_dataloader()",
        "for epoch in range(epochs_trained, num_train_epochs)",
        "self.callback_handler.on_epoch_begin(self.args, self.state, self.control)",
    ),
}
# What plans the data: if a class derived from transformers' uses the accumulation there, it has a
# layout of its own that a change would break.
_PLANNERS: Final = (
    "__init__",
    "get_train_dataloader",
    "_get_train_sampler",
    "get_batch_samples",
    "training_step",
    "compute_loss",
    "_prepare_inputs",
)


def why_not_at_all(trainer: Any) -> str | None:
    """Return why neither accumulation nor batch size can be changed; None: they can."""
    base = _transformers_trainer()
    for name, parameters in _SIGNATURES.items():
        method, here = getattr(base, name, None), getattr(trainer, name, None)
        if method is None or here is None:
            return f"transformers' Trainer has no {name}"
        for each in (method, here):
            if not set(parameters) <= set(inspect.signature(each).parameters):
                return (
                    f"{name} of {type(trainer).__name__} does not take "
                    f"{', '.join(parameters)}, as this version of Midcourse expects"
                )
        if name in {"_run_epoch", "_inner_training_loop"}:
            own = _plain(getattr(type(trainer), name, None))
            if own is not _plain(method):
                return f"{type(trainer).__name__} has a training loop of its own ({name})"
    for name, fragments in _FRAGMENTS.items():
        try:
            source = inspect.getsource(getattr(base, name))
        except (OSError, TypeError):
            return f"the source of transformers' Trainer.{name} is not there to be checked"
        if missing := next((each for each in fragments if each not in source), None):
            return (
                f"transformers' Trainer.{name} is not what this version of Midcourse knows: it "
                f"has no {missing!r}"
            )
    if not isinstance(getattr(trainer, "_train_batch_size", None), int):
        return "transformers' Trainer has no _train_batch_size, which its loader is built with"
    kind = str(getattr(trainer.accelerator.distributed_type, "value", ""))
    if kind in {"DEEPSPEED", "MEGATRON_LM"}:
        return f"{kind} fixes accumulation and batch size when its engine is built"
    if trainer.get_sp_size() > 1:
        return "sequences are split over several processes, which changes what a micro-batch is"
    return None


def why_no_accumulation(trainer: Any) -> str | None:
    """Return why the accumulation can not be changed; None: it can."""
    strategy = _sampling_strategy(trainer)
    if strategy in {"group_by_length", "batch_rebalance"}:
        return f"the sampling strategy {strategy} lays the epoch out for the accumulation it has"
    for name, method in _own_methods(trainer):
        if "gradient_accumulation_steps" in method.__code__.co_names:
            return (
                f"{type(trainer).__name__}.{name} lays its batches out for the accumulation it has"
            )
    if hasattr(trainer, "_buffered_inputs") and generation_length(trainer) is None:
        return f"{type(trainer).__name__} keeps generated batches in a way that is not known"
    return None


def why_no_batch_size(trainer: Any) -> str | None:
    """Return why the batch size can not be changed; None: it can."""
    args = trainer.args
    strategy = _sampling_strategy(trainer)
    if strategy not in {"random", "sequential"}:
        return f"the sampling strategy {strategy} lays the epoch out for the batch size it has"
    if hasattr(trainer, "_buffered_inputs"):
        return (
            "a generation batch is laid out for the batch size that it has (steps_per_generation × "
            "per_device_train_batch_size × ranks, a multiple of num_generations); change "
            "gradient_accumulation_steps instead"
        )
    if getattr(trainer, "calculate_KL", False):
        return (
            "the data set was prepared for this batch size (the KL estimate pairs the samples of "
            "a batch); change gradient_accumulation_steps instead"
        )
    if args.auto_find_batch_size:
        return "auto_find_batch_size chooses the batch size"
    return None


def generation_length(trainer: Any) -> int | None:
    """Return how many micro-batches are generated together; None: not known."""
    if not hasattr(trainer, "_buffered_inputs"):
        return 1
    steps = getattr(trainer.args, "steps_per_generation", None)
    iterations = getattr(trainer, "num_iterations", None)
    counted = isinstance(getattr(trainer, "_step", None), int)
    if counted and isinstance(steps, int) and isinstance(iterations, int):
        return max(steps * iterations, 1)
    return None


def train_batch_size(trainer: Any) -> int:
    """Return the samples of a micro-batch in one process, as its loader is built with them."""
    return int(trainer._train_batch_size)  # noqa: SLF001 - checked above


def put_batch_size(trainer: Any, per_device: int) -> None:
    """Let the next loader have micro-batches of so many samples for each device."""
    trainer.args.per_device_train_batch_size = per_device
    trainer._train_batch_size = trainer.args.train_batch_size  # noqa: SLF001 - checked above


def between_generations(trainer: Any) -> bool:
    """Say whether all samples that were generated together have been used.

    Resumed in the middle of them TRL counts from there, so that it is asked what it counts.
    """
    length = generation_length(trainer) or 1
    return length == 1 or trainer._step % length == 0  # noqa: SLF001 - TRL tells it nowhere else


def _sampling_strategy(trainer: Any) -> str:
    return str(getattr(trainer.args, "train_sampling_strategy", "unknown"))


def _own_methods(trainer: Any) -> Iterator[tuple[str, Any]]:
    """Return the planning methods of the classes between the trainer's and transformers'."""
    base = _transformers_trainer()
    for cls in type(trainer).__mro__:
        if cls is base:
            return
        for name in _PLANNERS:
            if name in vars(cls):
                method = _plain(vars(cls)[name])
                if hasattr(method, "__code__"):
                    yield name, method


def _transformers_trainer() -> Any:
    # Whoever has a trainer has transformers, and has imported it; a raw loop may have neither.
    from transformers import Trainer

    return Trainer


def _plain(function: Any) -> Any:
    return None if function is None else inspect.unwrap(function)
