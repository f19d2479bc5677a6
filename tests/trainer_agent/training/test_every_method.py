"""Each method trains from its example configuration, and wrong arguments are told of with lines."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.train.prepare import main as prepare
from tests.support.scripted_link import LinkScript
from tests.trainer_agent.steering.test_checkpoints import save
from trainer_agent import attachment
from trainer_agent.steering import checkpoints
from trainer_agent.training import worker
from trainer_agent.training.app import main
from trainer_agent.training.exits import CONFIGURATION
from trainer_agent.training.methods import METHODS
from trainer_agent.training.order import Order

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "train"

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    prepare(str(path))
    return path


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LinkScript]:
    """The link goes to nobody, caches are the test's own, signals are put back."""
    script = LinkScript()
    attach = functools.partial(attachment.attach, link_factory=script)
    monkeypatch.setattr("trainer_agent.attachment.attach", attach)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield script
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def nobody(event: object) -> None:
    """Takes no note of progress."""


def order(method: str, model: Path, out: Path, *sets: str, **rest: Any) -> Order:
    path = EXAMPLES / f"{method}.yaml"
    assignments = [
        f"model.path={model}",
        f"training.output_dir={out}",
        "training.max_steps=2",
        "training.save_steps=1",
        "data.limit=16",
        *sets,
    ]
    return Order(source=str(path), text=path.read_text(), assignments=assignments, **rest)


@pytest.mark.parametrize("method", METHODS)
def test_the_example_trains(
    method: str, model: Path, tmp_path: Path, surroundings: LinkScript
) -> None:
    events: list[Any] = []
    code = worker.run(
        order(method, model, tmp_path, job="my-run", labels={"team": "nlp"}), events.append
    )
    assert code == 0
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert (tmp_path / "model.safetensors").exists()
    hello = surroundings.link.first_hello
    assert hello is not None
    assert (hello.method, dict(hello.labels)) == (method, {"team": "nlp"})
    assert events[0] == {
        "kind": "began",
        "job": "my-run",
        "output_dir": str(tmp_path),
        "step": 0,
        "max_steps": 2,
    }
    assert events[-1] == {"kind": "ended", "step": 2, "max_steps": 2}
    assert any("loss" in event.get("metrics", {}) for event in events)


def test_resume_auto_goes_on_from_the_newest_whole_checkpoint(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trainer_agent")
    assert worker.run(order("sft", model, tmp_path, resume="auto"), nobody) == 0
    assert "there is no whole checkpoint" in caplog.text
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    events: list[Any] = []
    assert worker.run(order("sft", model, tmp_path, resume="auto"), events.append) == 0
    assert f"skipping {tmp_path / 'checkpoint-2'}: it has no trainer_state.json" in caplog.text
    assert f"going on from {tmp_path / 'checkpoint-1'}" in caplog.text
    assert events[0]["step"] == 1


def test_beginning_anew_takes_no_checkpoint_of_an_earlier_run_for_its_own(
    model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = save(tmp_path, 40)
    used = f"model.path={earlier}"
    shutil.copytree(model, earlier, dirs_exist_ok=True)
    assert worker.run(order("sft", model, tmp_path, used), nobody) == CONFIGURATION
    assert "is a checkpoint in training.output_dir" in capsys.readouterr().err
    assert checkpoints.newest(tmp_path).newest == earlier

    assert worker.run(order("sft", model, tmp_path), nobody) == 0
    moved = tmp_path / "earlier-1" / "checkpoint-40"
    assert checkpoints.fault(moved) is None
    assert checkpoints.newest(tmp_path).newest == tmp_path / "checkpoint-2"
    assert f"moved to {moved.parent}; --resume {moved} goes on from the newest" in caplog.text


def test_a_signal_stops_after_the_step_with_a_checkpoint(model: Path, tmp_path: Path) -> None:
    sent: list[Any] = []

    def send(event: Any) -> None:
        if event["kind"] == "step" and event["step"] >= 3 and not sent:
            sent.append(event)
            os.kill(os.getpid(), signal.SIGTERM)

    sets = ("training.max_steps=100", "training.save_strategy=no", "training.eval_strategy=no")
    code = worker.run(order("sft", model, tmp_path, *sets), send)
    assert code == 128 + signal.SIGTERM
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert 3 <= int(checkpoint.name.removeprefix("checkpoint-")) <= 5
    assert not (tmp_path / "model.safetensors").exists()


def test_what_may_be_changed_reaches_the_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surroundings: LinkScript
) -> None:
    given: dict[str, Any] = {}

    def attach(trainer: Any, **options: Any) -> Any:
        given.update(options)
        return attachment_attach(trainer, job=options["job"], link_factory=surroundings)

    attachment_attach = attachment.attach.func  # type: ignore[attr-defined]  # see surroundings
    monkeypatch.setattr("trainer_agent.attachment.attach", attach)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    sets = (
        "midcourse.guard_rails.learning_rate.maximum=0.1",
        "midcourse.protection.cut=0.5",
        "midcourse.job=of-the-file",
    )
    code = worker.run(order("sft", model, tmp_path / "out", *sets, replay=str(recipe)), nobody)
    assert code == 0
    assert given["job"] == "of-the-file"
    assert given["guard_rails"]["learning_rate"].maximum == 0.1
    assert given["protection"].cut == 0.5
    assert given["replay"] == recipe


@pytest.mark.parametrize(
    ("method", "assignment", "message"),
    [
        ("sft", "learnign_rate=1", "there is no such key; did you mean learning_rate?"),
        ("sft", "beta=0.1", "there is no such key"),
        ("sft", "learning_rate=fast", "expected a number, got 'fast'"),
        ("sft", "max_steps=1.5", "expected a whole number, got 1.5"),
        ("sft", "eval_strategy=step", "expected one of no, steps, epoch, got 'step'; did you"),
        ("sft", "lr_scheduler_type=cosinus", "expected one of linear, cosine, "),
        ("sft", "packing_strategy=1", "expected text, got 1; put it in quotes"),
        ("sft", "resume_from_checkpoint=x", "this is not given here: midcourse train --resume"),
        ("sft", "model_init_kwargs={a: 1}", "this is not given here: the section model"),
        ("grpo", "num_generations=3", "GRPOConfig refuses: generation_batch_size (8) must be"),
    ],
)
def test_wrong_arguments_of_the_method_name_their_flag(
    method: str,
    assignment: str,
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flag, key = f"training.{assignment}", f"training.{assignment.partition('=')[0]}"
    (problem,) = told(capsys, order(method, model, tmp_path, flag))
    assert problem.startswith(f"--set {flag}: {key}: {message}")


@pytest.mark.parametrize(
    ("method", "assignment", "key", "message"),
    [
        ("sft", "peft.r=8", "peft", "this section needs peft, which is not installed: pip install"),
        (
            "sft",
            "data.columns={prompt: qestion}",
            "data.columns.prompt",
            "the data have no column 'qestion'; they have question + answer",
        ),
        (
            "sft",
            "data.columns={prompt: question}",
            "data.path",
            "sft learns from the columns text, or messages, or completion + prompt, or input_ids",
        ),
        (
            "sft",
            "data.columns={answer: question}",
            "data.columns.answer",
            "the data have a column 'answer' already, beside 'question'",
        ),
        (
            "sft",
            "data.eval=null",
            "data.eval",
            "training.eval_strategy is 'steps', and there is nothing to evaluate with",
        ),
        (
            "sft",
            "data.split=test",
            "data.path",
            "examples/train/data/sft.jsonl cannot be loaded: ValueError: Unknown split",
        ),
        ("sft", "data.path=nobody/nothing", "data.path", "nobody/nothing cannot be loaded: "),
        ("dpo", "model.path=nobody/nothing", "model.path", "'nobody/nothing' cannot be loaded: "),
        ("orpo", "model.path=nobody/nothing", "model.path", "no tokenizer can be loaded from"),
        (
            "sft",
            "tokenizer.pad_token=<gone>",
            "tokenizer.pad_token",
            "the tokenizer has no token '<gone>'",
        ),
        (
            "grpo",
            "reward=examples/offline.py:gone",
            "reward",
            "'gone' is not there in examples/offline.py",
        ),
        ("rloo", "reward=gone_module:rate", "reward", "there is no module 'gone_module'"),
        (
            "sft",
            "midcourse.guard_rails={lerning_rate: {maximum: 1}}",
            "midcourse.guard_rails",
            "guard_rails names lerning_rate, and this run has no such live parameter; it has: ",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_with_its_place(
    method: str,
    assignment: str,
    key: str,
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (problem,) = told(capsys, order(method, model, tmp_path, assignment))
    assert f": {key}: {message}" in problem
    assert problem.startswith((f"--set {assignment}: ", f"{EXAMPLES / method}.yaml:"))


def told(capsys: pytest.CaptureFixture[str], wrong: Order) -> list[str]:
    """The problems that the training process tells of."""
    assert worker.run(wrong, nobody) == CONFIGURATION
    lines = capsys.readouterr().err.splitlines()
    # What is logged meanwhile may be there as well.
    first = lines.index(f"midcourse: {wrong.source} cannot be trained with: a problem")
    problems = lines[first + 1 :]
    return [problem.removeprefix("  ") for problem in problems]


def test_lines_of_the_file_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"model: {{path: {model}}}\ndata: {{path: {EXAMPLES}/data/sft.jsonl}}\n"
    text += "training:\n  seed: 1\n  learnign_rate: 3\n"
    assert worker.run(Order(source="run.yaml", text=text, method="sft"), nobody) != 0
    assert "  run.yaml:5:3: training.learnign_rate: there" in capsys.readouterr().err


def test_without_supervision_the_command_itself_trains(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    data = {"path": str(EXAMPLES / "data" / "sft.jsonl"), "limit": 8}
    columns = {"prompt": "question", "completion": "answer"}
    training = {"max_steps": 1, "use_cpu": True, "bf16": False, "output_dir": str(tmp_path / "out")}
    path.write_text(
        json.dumps(
            {
                "model": {"path": str(model)},
                "data": {**data, "columns": columns},
                "training": training,
            },
            indent="\t",
        )
    )
    options = ["-c", str(path), "--method", "sft", "--no-supervise", "--job", "alone"]
    assert main(options) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert main([*options, "--set", "training.max_stesp=1"]) == 2
    assert "did you mean max_steps?" in capsys.readouterr().err
