"""Outputs that fail: a launcher's, of which training must notice nothing."""

from __future__ import annotations

import io
import os
import pty
from pathlib import Path

import pytest

from trainer_agent.training.display import Display
from trainer_agent.training.outputs import unfailing

BEGAN = {"kind": "began", "step": 0, "max_steps": 4, "output_dir": "out", "job": "my-run"}


def show_everything(display: Display) -> None:
    """Prints all that a display prints, and puts the terminal back."""
    display.event(BEGAN)
    display.line("a line", error=False)
    display.event({"kind": "step", "step": 2, "max_steps": 4})
    display.event({"kind": "log", "metrics": {"loss": 1.0}})
    display.say("a message")
    display.event({"kind": "ended", "step": 4, "max_steps": 4})
    display.close()


def test_a_reader_that_has_gone() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        out = unfailing(stream)
        os.close(reader)
        show_everything(Display(out, out))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has it")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("w") as stream:
        out = unfailing(stream)
        show_everything(Display(out, out))


def test_a_terminal_that_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        out = unfailing(stream)
        display = Display(out, out)
        display.event(BEGAN)
        assert os.read(ours, 1) == b"\x1b"  # there is a bar
        os.close(ours)
        show_everything(display)


def test_what_would_have_to_wait_is_lost() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stream:
        out = unfailing(stream)
        out.write("x" * 10_000_000 + "\n")
        out.flush()


def test_characters_that_an_encoding_lacks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="latin-1") as stream:
        out = unfailing(stream)
        Display(out, io.StringIO()).line("down \N{DOWNWARDS ARROW} and \N{POUND SIGN}", error=False)
        assert path.read_text(encoding="latin-1") == "down ? and \N{POUND SIGN}\n"
