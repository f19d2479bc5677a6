"""The training process: ``python -m trainer_agent.training.worker ORDER``. Loads torch and TRL."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_agent.steering import checkpoints
from trainer_agent.training.channel import Send, Sender
from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.exits import CONFIGURATION
from trainer_agent.training.order import Order
from trainer_agent.training.settings import Settings, with_launcher_options
from trainer_agent.training.tell import tell_problems

logger = logging.getLogger("trainer_agent.training")  # __name__ may be __main__


def main(arguments: Sequence[str]) -> int:
    """Train what an order says, and return the exit status."""
    _outlive_the_launcher()
    order = Order.load(Path(arguments[0]))
    return run(order, Sender(order.progress))


def run(order: Order, send: Send) -> int:
    """Train what an order says.

    Args:
        order: The order.
        send: Takes events about progress.

    Returns:
        The exit status: 0 at the end of training, 128 + N where signal N stopped it,
        ``CONFIGURATION`` where what the order says is not right.
    """
    rank = int(os.environ.get("RANK", "0"))
    _set_up_messages(first=rank == 0)

    from trainer_agent.training.stop import StopOnSignal

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    stop = StopOnSignal(rank, Path(order.stop_note) if several and order.stop_note else None)
    if not several or order.stop_note is not None:  # under torchrun, ranks could not agree
        stop.install()
    try:
        settings = order.settings()
        trainer, resume = _prepare(order, settings, stop, send if rank == 0 else _nobody)
    except ConfigurationError as error:
        if rank == 0:
            tell_problems(order.source, error.problems)
        return CONFIGURATION
    trainer.train(resume_from_checkpoint=resume)
    if stop.stopped_by is not None and trainer.state.global_step < trainer.state.max_steps:
        return 128 + stop.stopped_by
    trainer.save_model()
    return 0


def _prepare(order: Order, settings: Settings, stop: Any, send: Send) -> tuple[Any, str | None]:
    """Return a trainer that is ready, and the checkpoint to go on from."""
    import datasets
    from transformers import PrinterCallback
    from transformers.utils import logging as transformers_logging

    from trainer_agent import attach
    from trainer_agent.training import arguments, data
    from trainer_agent.training.reporting import Reporter

    datasets.disable_progress_bars()  # the launcher has a bar of its own
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    args = arguments.training_arguments(settings, int(os.environ.get("WORLD_SIZE", "1")))
    peft = arguments.peft_config(settings)
    resume = _checkpoint(order, Path(args.output_dir))
    train, evaluation = data.load(settings, args)
    extra: dict[str, Any] = {} if peft is None else {"peft_config": peft}
    if settings.method.rewarded:
        extra["reward_funcs"] = _rewards(settings)
    trainer = _trainer(settings, args, train, evaluation, extra)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop)
    midcourse = with_launcher_options(
        settings.sections.midcourse,
        job=order.job,
        control_plane=order.control_plane,
        labels=order.labels,
        replay=None if order.replay is None else Path(order.replay),
    )
    options: dict[str, Any] = {
        "guard_rails": midcourse.guard_rails or None,
        "protection": midcourse.protection,
        "replay": midcourse.replay,
    }
    try:
        attached = attach(
            trainer,
            job=midcourse.job,
            control_plane=midcourse.control_plane,
            labels=midcourse.labels,
            **options,
        )
    except (OSError, ValueError) as error:
        # Of the recipe, the only thing here that is read as late as this.
        key = "midcourse.replay" if midcourse.replay is not None else "midcourse"
        raise ConfigurationError([settings.problem(key, _short(error))]) from error
    stop.steering = attached
    trainer.add_callback(Reporter(send, attached))
    return trainer, resume


def _trainer(
    settings: Settings, args: Any, train: Any, evaluation: Any, extra: dict[str, Any]
) -> Any:
    try:
        return settings.method.trainer_class()(
            model=str(Path(settings.sections.model.path).expanduser())
            if settings.sections.model.path.startswith("~")
            else settings.sections.model.path,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=_tokenizer(settings),
            **extra,
        )
    except OSError as error:
        # How transformers says that neither a directory nor the hub has the model.
        message = f"{settings.sections.model.path!r} cannot be loaded: {_short(error)}"
        raise ConfigurationError([settings.problem("model.path", message)]) from error


def _tokenizer(settings: Settings) -> Any:
    """Return the tokenizer; None: the trainer loads the model's own."""
    section, model = settings.sections.tokenizer, settings.sections.model
    if section is None and settings.method.makes_tokenizer:
        return None
    from transformers import AutoTokenizer

    path = model.path if section is None or section.path is None else section.path
    revision = model.revision if section is None or section.path is None else section.revision
    trust = model.trust_remote_code if section is None else section.trust_remote_code
    side = None if section is None else section.padding_side
    if side is None and settings.method.rewarded:
        side = "left"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(Path(path).expanduser()),
            revision=revision or "main",
            trust_remote_code=trust,
            **({} if side is None else {"padding_side": side}),
        )
    except (OSError, ValueError) as error:
        key = "model.path" if section is None or section.path is None else "tokenizer.path"
        message = f"no tokenizer can be loaded from {path!r}: {_short(error)}"
        raise ConfigurationError([settings.problem(key, message)]) from error
    if section is not None and section.pad_token is not None:
        if section.pad_token not in tokenizer.get_vocab():
            message = f"the tokenizer has no token {section.pad_token!r}"
            raise ConfigurationError([settings.problem("tokenizer.pad_token", message)])
        tokenizer.pad_token = section.pad_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as TRL's trainers do
    if section is not None and section.chat_template is not None:
        tokenizer.chat_template = section.chat_template.read_text(encoding="utf-8")
    return tokenizer


def _rewards(settings: Settings) -> list[Any]:
    from trainer_agent.training import rewards

    try:
        return [rewards.load(reward) for reward in settings.rewards]
    except ValueError as error:
        raise ConfigurationError([settings.problem("reward", str(error))]) from error


def _checkpoint(order: Order, output_dir: Path) -> str | None:
    """Return the checkpoint to go on from, and say so."""
    if order.resume not in ("auto", "never"):
        logger.info("going on from %s", order.resume)
        return order.resume
    found = checkpoints.newest(output_dir)
    if order.resume == "never":
        if found.newest is not None:
            logger.warning(
                "beginning anew over the checkpoints in %s; --resume auto goes on from %s",
                output_dir,
                found.newest,
            )
        return None
    for skipped in found.skipped:
        logger.warning("skipping %s", skipped)
    if found.newest is None:
        logger.info("there is no whole checkpoint in %s: beginning from the start", output_dir)
        return None
    logger.info("going on from %s", found.newest)
    return str(found.newest)


def _nobody(event: object) -> None:
    """Take no note of an event: only the first rank reports."""


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _set_up_messages(*, first: bool) -> None:
    """Have our own messages shown on the first rank, and of others what goes wrong."""
    logging.basicConfig(format="%(levelname).1s %(name)s: %(message)s")
    if not first:
        logging.getLogger().setLevel(logging.ERROR)
    elif logging.getLogger("trainer_agent").level == logging.NOTSET:
        logging.getLogger("trainer_agent").setLevel(logging.INFO)
    if not sys.warnoptions:
        # What TRL still uses of transformers, and transformers of itself, is nobody's concern here.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\b")


class _MayBeGone(io.FileIO):
    """An output that may lose its reader: what is written then is lost, and nothing fails."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _outlive_the_launcher() -> None:
    """Let training go on where the launcher was killed and nobody reads this process's output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        raw = _MayBeGone(stream.fileno(), "w", closefd=False)
        wrapped = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True
        )
        setattr(sys, name, wrapped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
