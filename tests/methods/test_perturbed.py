"""A callback that perturbs training is noticed by what shows that ours does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.support.scripted_link import LinkScript
from tests.support.tiny_runs import run
from trainer_agent import RuntimeParameterUpdateCallback, attach


@pytest.mark.long
def test_one_random_number_more_is_another_run(tmp_path: Path) -> None:
    on_step_end = RuntimeParameterUpdateCallback.on_step_end

    def drawing(*args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return on_step_end(*args, **kwargs)

    plain = run("grpo", tmp_path / "plain")
    with mock.patch.object(RuntimeParameterUpdateCallback, "on_step_end", drawing):
        watched = run(
            "grpo",
            tmp_path / "drawing",
            lambda trainer: attach(trainer, "job", link_factory=LinkScript()),
        )
    with pytest.raises(AssertionError):
        watched.assert_same(plain)
