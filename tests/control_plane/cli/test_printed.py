"""What the command prints never controls the terminal, and fits it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.progress import Progress, TextColumn
from rich.text import Text

from control_plane import changes
from control_plane.cli import (
    audit_tables,
    board,
    completion,
    courses,
    describe,
    fleet_tables,
    plot,
    printable,
    tables,
    token_tables,
)
from control_plane.cli.analytics.terminal import markdown
from control_plane.cli.output import Output
from midcourse.control.v1 import access_pb2, batch_pb2, control_pb2, job_pb2, update_pb2
from tests.support.fake_control_plane import make_job, make_series

NOW = 1_800_000_000.0
EVIL = "e\x1b]52;c;cm0=\x07\x1b\\\x9b2J\u202e"


def an_update(text: str) -> update_pb2.Update:
    update = update_pb2.Update(
        name="jobs/pref-run-001/updates/12", revision=12, author=f"ada{text}"
    )
    update.state = update_pb2.UPDATE_STATE_APPLIED
    update.spec.reason = f"a plateau since step 900{text}"
    update.spec.changes.append(changes.set_value("learning_rate", 1e-5))
    update.spec.action.save_checkpoint.SetInParent()
    update.applied.step = 1234
    update.applied.action_result.checkpoint = f"/runs/1{text}"
    return update


def a_refused_update(text: str) -> update_pb2.Update:
    update = update_pb2.Update(name="jobs/sft/updates/3", revision=3)
    update.state = update_pb2.UPDATE_STATE_REJECTED
    update.rejected.message = f"it is above the most allowed, 1{text}"
    update.spec.changes.append(changes.set_value("learning_rate", 5))
    return update


def a_job(text: str) -> job_pb2.Job:
    job = make_job("pref-run-001", state=job_pb2.JOB_STATE_FAILED)
    job.state_message = f"died{text}"
    job.method = f"dpo{text}"
    job.session.host = f"gpu{text}"
    job.exit.message = f"signal 9{text}"
    job.labels["team"] = f"nlp{text}"
    job.parameters[0].unavailable_reason = f"frozen{text}"
    job.effective.parameters[0].value.text = f"auto{text}"
    job.effective.parameters[0].step = 121
    job.metrics.add(name=f"loss{text}", value=1.0)
    return job


def a_token(text: str) -> access_pb2.Token:
    token = access_pb2.Token(
        name="tokens/70bc720ca55b",
        principal=f"ci-deployer@research{text}",
        creator=f"ops-admin@research{text}",
        description=f"nightly steering of the preference runs{text}",
    )
    token.access.role = access_pb2.ROLE_OPERATOR
    token.access.selector = f"team=nlp,method in (dpo,orpo){text}"
    token.expire_time.FromSeconds(int(NOW) + 90 * 86_400)
    return token


def a_record(text: str) -> access_pb2.AuditRecord:
    record = access_pb2.AuditRecord(
        principal=f"ops{text}",
        peer=f"ipv4:10.0.0.1{text}:1",
        method=f"/a/UpdateParameters{text}",
        resource=f"jobs/pref-run-001{text}",
        summary=f"update learning_rate{text}",
        reason=f"plateau{text}",
        error_reason=f"NO{text}",
    )
    record.time.FromSeconds(int(NOW))
    return record


def an_answer(text: str) -> control_pb2.BatchUpdateParametersResponse:
    item = batch_pb2.BatchItem(job="jobs/pref-run-001")
    item.refusal.message = f"it does not take it{text}"
    return control_pb2.BatchUpdateParametersResponse(items=[item])


def a_batch(text: str) -> batch_pb2.Batch:
    batch = batch_pb2.Batch(name="batches/7", selector=f"team=nlp{text}", author=f"ada{text}")
    batch.spec.reason = f"a plateau{text}"
    batch.spec.changes.append(changes.multiply("learning_rate", 0.5))
    return batch


# Each with the header of what names its rows, and such a name.
TABLES: list[tuple[str, str, Callable[[str], RenderableType]]] = [
    ("JOB", "pref-run-001", lambda text: tables.jobs([a_job(text)], NOW)),
    ("JOB", "pref-run-001", lambda text: tables.live([a_job(text)], NOW)),
    ("job", "pref-run-001", lambda text: tables.facts(a_job(text), NOW)),
    ("PARAMETER", "learning_rate", lambda text: tables.parameters(a_job(text))),
    ("METRIC", "learning_rate", lambda text: tables.metrics(a_job(text))),
    ("REV", "12", lambda text: tables.history([an_update(text), a_refused_update(text)], NOW)),
    (
        "JOB",
        "pref-run-001",
        lambda text: tables.history([an_update(text), a_refused_update(text)], NOW, of_all=True),
    ),
    ("TOKEN", "70bc720ca55b", lambda text: token_tables.tokens([a_token(text)], NOW)),
    ("TIME", "2027-01-1", lambda text: audit_tables.records([a_record(text)])),
    ("JOB", "pref-run-001", lambda text: fleet_tables.expected(an_answer(text))),
    (
        "JOB",
        "pref-run-001",
        lambda text: fleet_tables.items(update_pb2.UpdateSpec(), an_answer(text).items),
    ),
    ("BATCH", "7", lambda text: fleet_tables.batches([a_batch(text)], NOW)),
    ("STEP", "2", lambda text: courses.samples([make_series(f"loss{text}", [3.0, 2.0])], [])),
    ("METRIC", "loss", lambda text: courses.statistics([make_series(f"loss{text}", [3.0, 2.0])])),
]


@pytest.mark.parametrize("columns", [20, 27, 40, 60, 72, 80, 100, 120])
def test_every_table_fits_and_keeps_what_its_rows_are_called(columns: int) -> None:
    console = Console(width=columns, color_system=None)
    for first, name, table in TABLES:
        with console.capture() as capture:
            console.print(table(""))
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= columns
        assert "…" not in capture.get()
        assert lines[0].startswith(first)
        assert columns < 72 or name in capture.get()


@pytest.mark.parametrize("terminal", [False, True])
def test_text_of_others_never_controls_the_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "300")
    output = Output()
    progress = Progress(TextColumn("{task.description}"), console=output.console())
    progress.add_task(EVIL)
    shown = [table(EVIL) for *_, table in TABLES]
    for each in (
        *shown,
        EVIL,
        Text(EVIL),
        markdown(f"**{EVIL}** &#x202e;"),
        progress.get_renderable(),
    ):
        output.show(each)
        printed = capsys.readouterr().out
        assert "␛]52" in printed
        ours = r"\x1b\[[0-9;]*m" if terminal else "\n"  # colours
        assert re.sub(ours, "", printed).replace("\n", "").isprintable()
    output.show(Text("ours", style="red"))
    assert ("\x1b[31mours" in capsys.readouterr().out) is terminal


def test_a_line_of_others_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    job = a_job(f"{EVIL}\r\n12:00:00  my-run  FINISHED")
    Output().line(board.line(control_pb2.WatchJobsResponse(job=job), NOW))
    Output().line(describe.applied(an_update(EVIL)))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2
    assert printed.replace("\n", "").isprintable()
    assert "  RUNNING" not in printed
    assert "  FAILED  " in printed


def test_a_plot_names_metrics_and_updates_as_text() -> None:
    lines = [
        *plot.draw([make_series(f"loss{EVIL}", [3.0, 2.0])], [], width=60, colour=False),
        *plot.draw([make_series(f"loss{EVIL}", [])], [], width=60, colour=False),
    ]
    assert all(line.isprintable() for line in lines)


@given(st.text())
def test_json_says_the_same_and_controls_nothing(text: str) -> None:
    plain = printable.json(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(plain) == {text: text}
    assert plain == printable.text(plain)


def test_messages_as_json_keep_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    job = a_job(EVIL)
    Output("json").message(job)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert Parse(printed, job_pb2.Job()) == job


def test_no_columns_are_no_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    Output().show(tables.jobs([make_job("my-run")], time.time()))
    assert capsys.readouterr().out.splitlines()[1].startswith("my-run")


def test_what_a_shell_is_offered_controls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def get_job(self, _job: str) -> Any:
            spec = SimpleNamespace(name="rate", description=EVIL)
            return SimpleNamespace(parameters=[spec], metrics=[SimpleNamespace(name=EVIL)])

        def list_sessions(self) -> Any:
            return [SimpleNamespace(name="sessions/s1", title=EVIL)]

    for client in ("_client", "_analytics_client"):
        monkeypatch.setattr(completion, client, lambda _context: Known())
    line: Any = SimpleNamespace(params={"job": "j"})
    offered = (*completion.complete_assignment(line, ""), *completion.complete_session(line, ""))
    assert offered == (("rate=", printable.line(EVIL)), ("s1", printable.line(EVIL)))
    assert completion.complete_metric(line, "") == []
