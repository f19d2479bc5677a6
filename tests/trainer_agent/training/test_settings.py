"""Everything that can be wrong with a configuration, before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_agent.steering.protection import Protection
from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.methods import METHODS
from trainer_agent.training.settings import Settings, settings, with_launcher_options

EXAMPLES = Path(__file__).parents[3] / "examples" / "train"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text('{"prompt": "x"}\n')
    Path("d.csv").write_text("prompt\nx\n")
    Path("d.data").write_text("x")
    Path("files").mkdir()
    Path("saved").mkdir()
    Path("saved/state.json").write_text("{}")
    Path("reward.py").write_text("def rate(completions, **_): ...")


def read(*lines: str, method: str | None = "sft", sets: tuple[str, ...] = ()) -> Settings:
    text = "\n".join(["model: {path: some/model}", "data: {path: d.jsonl}", *lines])
    return settings(text, "run.yaml", method=method, assignments=sets)


def said(*lines: str, method: str | None = "sft", sets: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        read(*lines, method=method, sets=sets)
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize("method", METHODS)
def test_the_examples_are_right(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parents[1])
    path = EXAMPLES / f"{method}.yaml"
    assert settings(path.read_text(), str(path)).method.name == method


def test_the_method_comes_from_the_command_line_or_the_file() -> None:
    assert read("method: dpo", method=None).method.name == "dpo"
    assert read("method: dpo", method="dpo").method.name == "dpo"
    assert read(method="kto").method.name == "kto"


def test_the_command_line_goes_before_the_file() -> None:
    found = read("midcourse: {job: a, labels: {team: nlp, x: y}, control_plane: here:1}")
    section = with_launcher_options(
        found.sections.midcourse, job="b", control_plane=None, labels={"x": "z"}
    )
    assert (section.job, section.control_plane) == ("b", "here:1")
    assert section.labels == {"team": "nlp", "x": "z"}


def test_guard_rails_and_protection_are_typed() -> None:
    section = read(
        "midcourse:",
        "  guard_rails: {learning_rate: {maximum: 1e-3, allowed_principals: [ana]}}",
        "  protection: {on_nonfinite_loss: roll_back, cut: 1}",
    ).sections.midcourse
    assert section.guard_rails["learning_rate"].maximum == 1e-3
    assert section.guard_rails["learning_rate"].allowed_principals == ("ana",)
    assert section.protection == Protection(on_nonfinite_loss="roll_back", cut=1.0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["modle: 3"], "run.yaml:3:1: modle: there is no such key; did you mean model?"),
        (["tokenizer: {path: ./gone}"], "tokenizer.path: there is no directory './gone'"),
        (["tokenizer: {chat_template: t.jinja}"], "chat_template: there is no file 't.jinja'"),
        (["tokenizer: {padding_side: up}"], "padding_side: expected one of left, right, got 'up'"),
        (["midcourse: {job: My Run}"], "run.yaml:3:12: midcourse: job must be 1 to 63 of"),
        (["midcourse: {labels: {team: my team}}"], "labels: a label's value has at most 63"),
        (["midcourse: {control_plane: nonsense}"], "midcourse: control_plane must be host:port"),
        (["method: sfd"], "method: expected one of sft, dpo, orpo, kto, reward, rloo, grpo, got"),
        (["midcourse: {replay: gone.yaml}"], "run.yaml:3:13: midcourse.replay: there is no file"),
        (["midcourse: {protection: {cut: 2}}"], "midcourse.protection: cut must be above 0"),
        (
            ["midcourse: {guard_rails: {beta: {max: 3}}}"],
            "midcourse.guard_rails.beta.max: there is no such key",
        ),
        (["reward: exact_match"], "run.yaml:3:1: reward: sft takes no reward; rloo and grpo do"),
        (["training: 3"], "run.yaml:3:11: training: expected a mapping, got 3"),
    ],
)
def test_problems_of_sections(lines: list[str], message: str) -> None:
    assert message in said(*lines)[0]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.path=gone.jsonl", "data.path: there is no file 'gone.jsonl'"),
        ("data.path=./gone", "data.path: there is no file './gone'"),
        ("data.path=d.data", "data.path: 'd.data' ends in none of .json, "),
        ("data.path=[d.jsonl, d.csv]", "data.path: files of several formats (.csv, .jsonl)"),
        ("data.path=[files, saved]", "data.path: 'files' is a directory: give it alone"),
        ("data.path=[d.jsonl, files]", "data.path: 'files' is a directory: give it alone"),
        ("data.path=[]", "data: path must name a file, a directory or a data set"),
        ("data.limit=0", "data: limit must be 1 or more, got 0"),
        ("data.eval.path=gone.csv", "data.eval.path: there is no file 'gone.csv'"),
        ("data.eval.share=2", "data.eval: share must lie between 0 and 1, got 2.0"),
        ("data.eval.shar=0.2", "there is no such key"),
        ("model.path=/gone/model", "model.path: there is no directory '/gone/model'"),
        ("model.dtype=bf16", "model.dtype: expected one of auto, bfloat16, float16, float32"),
    ],
)
def test_problems_of_assignments_name_the_flag(assignment: str, message: str) -> None:
    (first, *_) = said(sets=(assignment,))
    assert message in first
    if message.startswith(assignment.partition("=")[0]):
        assert first.startswith(f"--set {assignment}: ")


@pytest.mark.parametrize(
    ("path", "assignment", "what"),
    [
        ("d.jsonl", "data.revision=main", "files"),
        ("d.jsonl", "data.name=english", "files"),
        ("files", "data.format=json", "a directory"),
        ("files", "data.revision=main", "a directory"),
        ("saved", "data.format=json", "what save_to_disk left"),
        ("saved", "data.name=english", "what save_to_disk left"),
        ("saved", "data.revision=main", "what save_to_disk left"),
    ],
)
def test_what_would_be_passed_over_is_refused(path: str, assignment: str, what: str) -> None:
    key = assignment.partition("=")[0]
    assert said(sets=(f"data.path={path}", assignment)) == [
        f"--set {assignment}: {key}: this means nothing for {what}: take it out"
    ]


def test_what_has_a_format_is_a_file() -> None:
    (problem,) = said(sets=("data.path=gone.data", "data.format=csv"))
    assert problem.endswith("data.path: there is no file 'gone.data'")


def test_files_with_another_ending_are_taken_with_their_format() -> None:
    found = read(sets=("data.path=d.data", "data.format=csv"))
    assert found.sections.data.format == "csv"


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ConfigurationError) as error:
        settings("", "run.yaml", method="sft")
    assert str(error.value).splitlines() == [
        "run.yaml:1:1: model: this key is missing",
        "run.yaml:1:1: data: this key is missing",
    ]
    (problem,) = said(method=None)
    assert problem.startswith("run.yaml: method: the method is missing: give --method, one of sft")
    assert said("method: dpo") == [
        "run.yaml:3:1: method: the file is for dpo, but --method sft was given"
    ]


def test_rewards() -> None:
    assert "grpo needs a reward: module:function" in said(method="grpo")[0]
    assert said("reward: gone.py:rate", method="grpo") == [
        "run.yaml:3:1: reward: there is no file 'gone.py'"
    ]
    assert "no directory './gone'" in said("reward: [exact_match, ./gone]", method="rloo")[0]
    found = read("reward: [reward.py:rate, exact_match, my.module:rate]", method="rloo")
    assert found.rewards == ["reward.py:rate", "exact_match", "my.module:rate"]
