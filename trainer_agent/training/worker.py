"""The training process: ``python -m trainer_agent.training.worker ORDER``. Loads torch and TRL."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_agent.steering import checkpoints
from trainer_agent.training.channel import Send, Sender
from trainer_agent.training.document import ConfigurationError, Problem
from trainer_agent.training.exits import CONFIGURATION
from trainer_agent.training.order import Order
from trainer_agent.training.outputs import outlive_readers
from trainer_agent.training.rewards import is_model
from trainer_agent.training.settings import Settings, TokenizerSection, with_launcher_options
from trainer_agent.training.tell import in_a_line, tell_problems

logger = logging.getLogger("trainer_agent.training")  # __name__ may be __main__


def main(arguments: Sequence[str]) -> int:
    """Train what an order says, and return the exit status."""
    outlive_readers("utf-8")  # the launcher may be killed
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
        trainer.train(resume_from_checkpoint=resume)
    except ConfigurationError as error:
        tell_problems(order.source, error.problems)
        return CONFIGURATION
    if stop.stopped_by is not None and trainer.state.global_step < trainer.state.max_steps:
        return 128 + stop.stopped_by
    trainer.save_model()
    return 0


def _prepare(order: Order, settings: Settings, stop: Any, send: Send) -> tuple[Any, str | None]:
    """Return a trainer that is ready, and the checkpoint to go on from."""
    import datasets
    from transformers import PrinterCallback
    from transformers.utils import logging as transformers_logging

    from trainer_agent import attach, identity
    from trainer_agent.training import arguments, data
    from trainer_agent.training.limits import KnownLimits
    from trainer_agent.training.reporting import Reporter

    datasets.disable_progress_bars()  # the launcher has a bar of its own
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    midcourse = with_launcher_options(
        settings.sections.midcourse,
        job=order.job,
        control_plane=order.control_plane,
        labels=order.labels,
        replay=None if order.replay is None else Path(order.replay),
    )
    try:
        identity.given_job_id(midcourse.job)
        if midcourse.control_plane is None:
            identity.check_control_plane(
                identity.control_plane_address(None),
                f"the environment variable {identity.CONTROL_PLANE_VARIABLE}",
            )
    except ValueError as error:
        raise ConfigurationError([settings.problem("midcourse", str(error))]) from error
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
        problem = settings.problem("midcourse.replay", in_a_line(error))
        raise ConfigurationError([problem]) from error
    stop.steering = attached
    trainer.add_callback(KnownLimits(settings, attached))
    trainer.add_callback(Reporter(send, attached))
    if order.resume == "never" and args.should_save:
        # Late, so that what fails leaves them where they are; all but the names of guard rails.
        _begin_anew(settings, Path(args.output_dir))
    return trainer, resume


def _trainer(
    settings: Settings, args: Any, train: Any, evaluation: Any, extra: dict[str, Any]
) -> Any:
    try:
        return settings.method.trainer_class()(
            model=_expanded(settings.sections.model.path),
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=_tokenizer(settings),
            **extra,
        )
    except OSError as error:
        raise ConfigurationError([_not_loaded(settings, error)]) from error


def _not_loaded(settings: Settings, error: OSError) -> Problem:
    """Return what is told of an error that transformers raises where a model is not to be had.

    Raises:
        OSError: The error, where it is the system's, such as a full disk: no fault of the settings.
    """
    if error.errno is not None:
        raise error
    said = in_a_line(error)
    models = [("reward", reward) for reward in settings.rewards if is_model(reward)]
    models.append(("model.path", settings.sections.model.path))
    # The longest that it names, as one name may begin another.
    for key, path in sorted(models, key=lambda each: -len(each[1])):
        if len(models) == 1 or _expanded(path) in said:
            return settings.problem(key, f"{path!r} cannot be loaded: {said}")
    return settings.problem("", said)


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _tokenizer(settings: Settings) -> Any:
    """Return the tokenizer; None: the trainer loads the model's own."""
    section, model = settings.sections.tokenizer, settings.sections.model
    if section is None and settings.method.makes_tokenizer:
        return None
    from transformers import AutoTokenizer

    given = section or TokenizerSection()
    path, revision, trust = given.path or model.path, given.revision, given.trust_remote_code
    if path == model.path:
        revision = revision or model.revision
        trust = model.trust_remote_code if trust is None else trust
    side = given.padding_side
    if side is None and settings.method.rewarded:
        side = "left"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(Path(path).expanduser()),
            revision=revision or "main",
            trust_remote_code=bool(trust),
            **({} if side is None else {"padding_side": side}),
        )
    except (OSError, ValueError) as error:
        key = "model.path" if given.path is None else "tokenizer.path"
        message = f"no tokenizer can be loaded from {path!r}: {in_a_line(error)}"
        raise ConfigurationError([settings.problem(key, message)]) from error
    if given.pad_token is not None:
        if given.pad_token not in tokenizer.get_vocab():
            message = f"the tokenizer has no token {given.pad_token!r}"
            raise ConfigurationError([settings.problem("tokenizer.pad_token", message)])
        tokenizer.pad_token = given.pad_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as TRL's trainers do
    if given.chat_template is not None:
        tokenizer.chat_template = given.chat_template.read_text(encoding="utf-8")
    return tokenizer


def _rewards(settings: Settings) -> list[Any]:
    from trainer_agent.training import rewards

    try:
        return [rewards.load(reward) for reward in settings.rewards]
    except ValueError as error:
        raise ConfigurationError([settings.problem("reward", str(error))]) from error


def _checkpoint(order: Order, output_dir: Path) -> str | None:
    """Return the checkpoint to go on from, and say so."""
    if order.resume == "never":
        return None
    if order.resume != "auto":
        logger.info("going on from %s", order.resume)
        return order.resume
    found = checkpoints.newest(output_dir)
    for skipped in found.skipped:
        logger.warning("skipping %s", skipped)
    if found.newest is None:
        logger.info("there is no whole checkpoint in %s: beginning from the start", output_dir)
        return None
    logger.info("going on from %s", found.newest)
    return str(found.newest)


def _begin_anew(settings: Settings, output_dir: Path) -> None:
    """Move away the checkpoints of an earlier run, which must not be taken for this one's."""
    sections = settings.sections
    read = [("model.path", sections.model.path), *(("reward", each) for each in settings.rewards)]
    if sections.tokenizer is not None and sections.tokenizer.path is not None:
        read.append(("tokenizer.path", sections.tokenizer.path))
    for key, path in read:
        if checkpoints.holds(output_dir, Path(path).expanduser()):
            message = (
                f"{path!r} is a checkpoint in training.output_dir, which a run that begins anew"
                " moves away: give another output_dir"
            )
            raise ConfigurationError([settings.problem(key, message)])
    try:
        moved = checkpoints.set_aside_all(output_dir)
    except OSError as error:
        message = f"the checkpoints of an earlier run cannot be moved away: {error}"
        raise ConfigurationError([settings.problem("training.output_dir", message)]) from error
    if moved:
        newest = checkpoints.newest(moved[0].parent).newest
        way_on = "" if newest is None else f"; --resume {newest} goes on from the newest"
        logger.warning(
            "beginning anew: the checkpoints of an earlier run were moved to %s%s",
            moved[0].parent,
            way_on,
        )


def _nobody(event: object) -> None:
    """Take no note of an event: only the first rank reports."""


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
