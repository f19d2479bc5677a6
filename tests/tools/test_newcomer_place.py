"""A step that can not be done is a row of the table, and does not end the others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.newcomer.place import Place, SkippedError


def _skipped() -> str:
    raise SkippedError("not here")


@pytest.mark.parametrize(
    ("what", "result"),
    [
        (lambda: "1 passed", "1 passed"),
        (lambda: None, "ok"),
        (_skipped, "skipped: not here"),
        (lambda: str(compile("a block (", "README.md", "exec")), "FAILED"),
        (lambda: str(int("no number")), "FAILED"),
    ],
)
def test_a_step_is_a_row(what: Callable[[], str | None], result: str, tmp_path: Path) -> None:
    place = Place(tmp_path, argparse.Namespace())
    assert place.step("it", what) is (result != "FAILED")
    assert place.failed is (result == "FAILED")
    [(name, _, came)] = place.rows
    assert (name, came) == ("it", result)
