from __future__ import annotations

import io

import pytest

from trainer_agent.training.display import Display, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def began(step: int = 0, max_steps: int | None = 40) -> dict[str, object]:
    return {
        "kind": "began",
        "step": step,
        "max_steps": max_steps,
        "output_dir": "out",
        "job": "my-run",
    }


def test_in_a_pipe_there_are_lines_now_and_then_and_a_last_one() -> None:
    out, error = io.StringIO(), io.StringIO()
    display = Display(out, error)
    display.event(began())
    for step in range(1, 21):
        display.event({"kind": "step", "step": step, "max_steps": 40})
        display.event({"kind": "log", "metrics": {"loss": 4 / step, "learning_rate": 1e-4}})
    display.event({"kind": "ended", "step": 20, "max_steps": 40})
    display.event({"kind": "of a later version"})
    first, last = out.getvalue().splitlines()
    assert first == "step 1/40  loss 4  lr 0.0001"
    assert last.startswith("step 20/40  loss 0.2  lr 0.0001  ")
    assert last.endswith(" left")
    assert (display.step, display.job, display.output_dir) == (20, "my-run", "out")
    assert not error.getvalue()


def test_streams_stay_apart_in_a_pipe() -> None:
    out, error = io.StringIO(), io.StringIO()
    display = Display(out, error)
    display.line("hello [bold]", error=False)
    display.line("trouble", error=True)
    display.say("something")
    assert out.getvalue() == "hello [bold]\n"
    assert error.getvalue() == "trouble\nmidcourse: something\n"


def test_on_a_terminal_there_is_a_bar_and_lines_go_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    display = Display(terminal, terminal)
    display.event(began(5))
    display.line("[not markup] of the trainer", error=True)
    display.event({"kind": "step", "step": 7, "max_steps": 40})
    display.event({"kind": "log", "metrics": {"loss": 0.25}})
    display.event({"kind": "ended", "step": 8, "max_steps": 40})
    display.close()
    written = terminal.getvalue()
    assert "[not markup] of the trainer" in written
    assert "loss 0.25" in written
    assert "8/40" in written
    assert written.endswith("\x1b[?25h")  # the cursor is back


def test_a_run_without_an_end_shows_its_steps() -> None:
    out = io.StringIO()
    display = Display(out, io.StringIO())
    display.event(began(max_steps=None))
    display.event({"kind": "step", "step": 3, "max_steps": None})
    display.event({"kind": "ended", "step": 3, "max_steps": None})
    assert out.getvalue() == "step 3\n"


def test_only_numbers_that_are_known_are_shown() -> None:
    assert shown({"loss": 1, "learning_rate": 2.0, "epoch": 3, "reward": "x", "kl": None}) == {
        "loss": 1.0,
        "learning_rate": 2.0,
    }
