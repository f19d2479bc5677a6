"""docs/client.md: its code runs, and it names what there is."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane import client
from midcourse.control.v1 import update_pb2
from tests.support.applying_agent import ScriptedAgent
from tests.support.blocking_client import EventLoop
from tests.support.plane import running_plane

TEXT = Path("docs/client.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

SHOWN = [
    r"learning_rate 2e-05 -> 5e-05",
    r"\{'jobs/my-run': \[\]\}",
    r"\[\('spec\.changes\[0\]\.\S+', '.*-1.*'\)\]",
    r"JOB_EVENT_TYPE_SNAPSHOT jobs/my-run \nJOB_EVENT_TYPE_BOOKMARK  \n.*jobs/my-run/updates/3",
    rf"\['jobs/my-run'\]\n.*jobs/my-run {update_pb2.UPDATE_STATE_APPLIED} ",
]
"""What each block prints."""


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A control plane where the environment says, with a job."""
    loop = EventLoop()
    running = running_plane(tmp_path / "c.db")
    address = loop.run(running.__aenter__()).address
    monkeypatch.setenv(client.ADDRESS_VARIABLE, address)
    try:
        with contextlib.closing(ScriptedAgent(address, "my-run", team="nlp")):
            yield
    finally:
        loop.run(running.__aexit__(None, None, None))
        loop.stop()


def test_its_code_runs(plane: None) -> None:
    for block, shown in zip(BLOCKS, SHOWN, strict=True):
        lines: list[str] = []
        names = {"print": lambda *words, out=lines: out.append(" ".join(map(str, words)))}
        exec(compile(block, "docs/client.md", "exec"), {"__name__": "__main__", **names})
        assert re.fullmatch(shown, "\n".join(lines), re.DOTALL), lines


def test_it_names_every_exception() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    exceptions = {
        name
        for name in client.__all__
        if inspect.isclass(getattr(client, name)) and issubclass(getattr(client, name), Exception)
    }
    assert rows == exceptions - {"UpdateError"}
    assert "`UpdateError`" in TEXT


def test_what_it_calls_is_there() -> None:
    for name in ("batch_update_parameters", "with_metadata", "label_job", "cancel_batch"):
        assert f"`{name}`" in TEXT
        assert hasattr(client.AsyncClient, name)
