"""The demo that asks a model about a run, with the model that needs no key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from analytics_service.providers import local
from examples.demo import stage
from examples.demo.processes import DemoError
from examples.demo_chat.__main__ import choose
from examples.demo_chat.scenario import RAISE_AFTER, STEPS
from midcourse.analytics.v1 import model_pb2

ROOT = Path(__file__).parents[2]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path, as that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    local.unavailable() is not None, reason=f"no local model: {local.unavailable()}"
)
def test_the_demo_asks_about_a_run_that_it_made_spike(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo_chat", "--model", local.MODEL],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    raised, tamed = map(int, re.findall(r"APPLIED at step (\d+)", done.stdout))
    assert RAISE_AFTER < raised < tamed <= STEPS
    # What the service read for the model, and says that the answer rests on.
    assert re.search(r"metric_series demo-chat .*loss \d+ samples, spike", done.stderr)
    assert re.search(r"sources: .*demo-chat loss.*demo-chat updates", done.stderr)
    usage = re.search(r"^smollm2-135m +1 +(\d+) +(\d+) +(.+)$", done.stdout, re.MULTILINE)
    assert usage, done.stdout
    assert int(usage[1]) > 300
    assert int(usage[2]) > 0
    assert usage[3].strip() == "$0"
    assert not list(temporary.iterdir()), "databases, logs and sockets are gone"


def model(model_id: str, **values: object) -> model_pb2.Model:
    made = model_pb2.Model(
        model_id=model_id,
        provider="openai",
        available=True,
        supports_tools=True,
        lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
    )
    made.MergeFrom(model_pb2.Model(**values))  # type: ignore[arg-type]  # as the fields are
    return made


TINY = model_pb2.Model(
    model_id="tiny",
    provider="local",
    available=True,
    lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
)
OLD = model("old", lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_DEPRECATED))
CHEAP, STRONG = model("cheap", aliases=["nice"]), model("strong")
KEYLESS = model_pb2.Model(model_id="keyless", unavailable_reason="set A_KEY")


def test_who_names_no_model_gets_the_cheapest_there_is_a_key_for() -> None:
    assert choose([TINY, OLD, CHEAP, STRONG, KEYLESS], "").model_id == "cheap"
    assert choose([TINY, OLD, KEYLESS], "").model_id == "tiny"
    gone = model_pb2.Model(model_id="tiny", provider="local", unavailable_reason="install it")
    with pytest.raises(DemoError, match="no model can be asked; install it"):
        choose([gone, KEYLESS], "")


def test_who_names_a_model_gets_that_one() -> None:
    models = [TINY, OLD, CHEAP, STRONG, KEYLESS]
    assert choose(models, "old").model_id == "old"
    assert choose(models, "nice").model_id == "cheap"
    with pytest.raises(DemoError, match="keyless can not be asked: set A_KEY"):
        choose(models, "keyless")
    with pytest.raises(DemoError, match="no model 'other'; there are: tiny, old, cheap"):
        choose(models, "other")


def test_a_command_that_takes_long_is_seen_to_go_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_TELL_SECONDS", 0.001)
    shown = stage.Stage()
    shown.midcourse("--version")
    said = capfd.readouterr()
    assert "$ midcourse --version" in said.out
    assert "… 0 s so far" in said.err
    with pytest.raises(DemoError, match="midcourse nonsense ended with exit status 2"):
        shown.midcourse("nonsense")
