"""A few conversations with each fuzzer, always the same; `make fuzz` has many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.exploring import Fuzzer, ready
from tests.fuzz.fuzzers import FUZZERS

FEW = 8
MANY = 1_000


@pytest.mark.parametrize("kind", FUZZERS, ids=lambda kind: kind.name)
def test_whatever_is_said_nothing_suffers(kind: type[Fuzzer], tmp_path: Path) -> None:
    with ready(kind, tmp_path) as exploration:
        exploration.explore(FEW)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", FUZZERS, ids=lambda kind: kind.name)
def test_whatever_is_said_often_nothing_suffers(kind: type[Fuzzer], tmp_path: Path) -> None:
    with ready(kind, tmp_path) as exploration:
        exploration.explore(MANY, seed=0)
