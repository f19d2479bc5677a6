from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer_agent.training import rewards


def test_built_in_rewards_compare_with_the_answer() -> None:
    conversation = [{"role": "assistant", "content": "the answer is 7"}]
    completions: list[Any] = ["7 ", conversation, "8"]
    answer = ["7", "7", "7"]
    exact: Any = rewards.load("exact_match")
    contains: Any = rewards.load("contains_answer")
    assert exact(completions=completions, answer=answer, prompts=[]) == [1, 0, 0]
    assert contains(completions=completions, answer=answer, prompts=[]) == [1, 1, 0]


def test_functions_come_from_files_and_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rate_a_7f3.py").write_text("def rate(completions, **_): return [1.0]\nnumber = 3\n")
    Path("broken_a_7f3.py").write_text("import a_module_that_is_not_there\n")
    for written in ("rate_a_7f3.py:rate", "rate_a_7f3:rate"):
        function: Any = rewards.load(written)
        assert function(["x"]) == [1.0]
    assert rewards.load("some/model") == "some/model"
    for wrong, said in (
        ("rate_a_7f3.py:gone", "'gone' is not there in rate_a_7f3.py"),
        ("rate_a_7f3:number", "'number' is no function in rate_a_7f3"),
        ("gone_a_7f3.deep:rate", "there is no module 'gone_a_7f3'"),
    ):
        with pytest.raises(ValueError, match=said):
            rewards.load(wrong)
    with pytest.raises(ModuleNotFoundError):  # of a module that is there
        rewards.load("broken_a_7f3:rate")
