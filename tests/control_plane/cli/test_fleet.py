"""Many jobs from the shell: batches, labels, history; everything real but the trainers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli import fleet
from control_plane.cli.exits import ExitCode
from control_plane.cli.main import app
from control_plane.cli.output import Output
from control_plane.client import Client, FailedPreconditionError, NotFoundError, UnavailableError
from midcourse.control.v1 import job_pb2, parameter_pb2
from tests.support.applying_agent import ScriptedAgent
from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.midcourse_command import Midcourse


@pytest.fixture
def team(request: pytest.FixtureRequest) -> str:
    """A label's value that no other test has."""
    return str(request.node.name).replace("_", "-")[5:40].strip("-")


@pytest.fixture
def agents(address: str, team: str) -> Iterator[dict[str, ScriptedAgent]]:
    """Three jobs of the team."""
    with ExitStack() as stack:
        made = {}
        for number in (1, 2, 3):
            name = f"{team[:30]}-{number}"
            made[name] = ScriptedAgent(address, name, team=team)
            stack.callback(made[name].close)
        yield made


@pytest.fixture
def plane(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def run(address: str) -> Any:
    def command(*args: str, code: int = 0, say: str | None = None) -> Result:
        env = {"MIDCOURSE_CONTROL_PLANE": address, "COLUMNS": "180", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, args, env=env, input=say)
        assert result.exit_code == code, result.output
        return result

    return command


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_one_change_for_a_team(
    run: Any, agents: dict[str, ScriptedAgent], team: str, plane: Client
) -> None:
    dry = run("set", "-l", f"team={team}", "learning_rate*0.5", "--dry-run").stdout.splitlines()
    assert dry[0].split() == ["JOB", "WOULD", "CHANGE"]
    assert [line.split(maxsplit=1) for line in dry[1:-1]] == [
        [name, "learning_rate 2e-05 → 1e-05"] for name in agents
    ]
    assert dry[-1] == "valid for 3 jobs; nothing was changed"
    assert not any(plane.get_job(name).desired.revision for name in agents)
    done = run("set", "-l", f"team={team}", "learning_rate=x0.5", "--wait", "--reason", "why")
    *table, summary = done.stdout.splitlines()
    assert [row[:4] for row in rows("\n".join(table))] == [
        ["JOB", "REV", "STATE", "STEP"],
        *([name, "1", "APPLIED", "121"] for name in agents),
    ]
    assert summary.endswith(": 3 applied of 3, at step 121")
    number = summary.partition(":")[0].removeprefix("batches/")
    shown = run("batch", number).stdout
    assert "3 applied" in shown
    assert "2e-05 → 1e-05" in shown
    assert number in [row[0] for row in rows(run("batches").stdout)]
    answer = json.loads(run("batch", f"batches/{number}", "-o", "json").stdout)
    assert [item["revision"] for item in answer["items"]] == ["1", "1", "1"]
    settled = run("batch", number, "--cancel", code=ExitCode.REFUSED)
    assert "settled already" in settled.stderr


def test_what_comes_back_from_a_batch(
    run: Any, agents: dict[str, ScriptedAgent], team: str
) -> None:
    first, second, _ = agents
    agents[first].rejects = True
    done = run("set", "-l", f"team={team}", "learning_rate=1e-5", "--wait", code=6)
    assert done.stderr == "midcourse: not applied at 1 of 3 jobs\n"
    assert f"{first}    1  REJECTED     –  the optimizer is shut" in done.stdout
    assert ": 2 applied, 1 rejected of 3, at step 121" in done.stdout
    agents[second].silent = True
    again = ("set", "-l", f"team={team},job={second}", "learning_rate=3e-5")
    late = run(*again, "--wait", "--timeout", "200ms", "-o", "json", code=ExitCode.TIMEOUT)
    assert "1 of 1 jobs have not settled it after 0.2 s" in late.stderr
    answer = json.loads(late.stdout)
    name = answer["batch"]["name"]
    assert answer["items"][0]["revision"] == "2"
    withdrawn = run("batch", name, "--cancel", "--reason", "a slip").stdout
    assert withdrawn.startswith(f"{name}: 1 ")
    run("batch", name, "--reason", "a slip", code=ExitCode.USAGE)
    run("batch", "batches/99999", code=ExitCode.NOT_FOUND)


class Silence:
    """A watch that hears of nothing until it is closed."""

    on_interruption: Any = None

    def __init__(self, *_: object) -> None:
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        assert self._closed.wait(30)
        return iter(())

    def close(self) -> None:
        self._closed.set()


def test_a_batch_that_nothing_is_heard_of(
    run: Any, agents: dict[str, ScriptedAgent], team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agent in agents.values():
        agent.silent = True
    monkeypatch.setattr(Client, "watch_batch", Silence)
    asked = ("set", "-l", f"team={team}", "learning_rate=4e-5", "--wait", "--timeout", "50ms")
    late = run(*asked, code=ExitCode.TIMEOUT)
    assert "3 of 3 jobs have not settled it after 0.05 s" in late.stderr
    for name in agents:
        assert name in late.stdout


def test_a_wait_for_a_batch_that_is_ended_says_what_stays(
    run: Any, agents: dict[str, ScriptedAgent], team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Silence):
        def __iter__(self) -> Iterator[Any]:
            self.on_interruption(UnavailableError("nobody there"))
            raise KeyboardInterrupt

    for agent in agents.values():
        agent.silent = True
    monkeypatch.setattr(Client, "watch_batch", Interrupted)
    ended = run("pause", "-l", f"team={team}", "--wait", code=ExitCode.INTERRUPTED)
    assert re.fullmatch(
        r"nobody there; trying again\n"
        r"it stays accepted as batches/(\d+); `midcourse batch \1 --cancel` takes it back\n",
        ended.stderr,
    )


def test_values_are_read_as_jobs_have_them_that_can_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not as one that has ended, or that has not begun, which may have none."""
    sent: list[Any] = []
    monkeypatch.setattr(
        fleet, "send", lambda _session, _plane, _to, changes, *_: sent.extend(changes)
    )
    flag = parameter_pb2.ParameterSpec(name="flag", kind=parameter_pb2.PARAMETER_KIND_BOOLEAN)
    with FakeControlPlane() as server:
        for state in (job_pb2.JOB_STATE_FINISHED, job_pb2.JOB_STATE_PENDING):
            labels = {"team": "nlp"}
            server.add(job_pb2.Job(name=f"jobs/a-{state}", state=state, labels=labels))
        live = make_job("live")
        live.parameters.append(flag)
        server.add(live)
        Midcourse(server.address)("set", "-l", "team=nlp", "flag=on")
    assert [change.set.value.boolean for change in sent] == [True]


def test_a_batch_whose_jobs_were_deleted(
    run: Any, agents: dict[str, ScriptedAgent], team: str, plane: Client
) -> None:
    first, *others = agents
    for agent in agents.values():
        agent.silent = True
    number = plane.batch_set(f"team={team}", {"learning_rate": 5e-5}).batch.name

    def delete(name: str) -> None:
        agents[name].close()
        with plane.watch_jobs(job=name) as watch:
            seen = (event.job for event in watch if event.HasField("job"))
            next(job for job in seen if not job.session.connected)
        plane.delete_job(name)

    delete(first)
    shown = run("batch", number).stdout
    assert first not in shown
    assert all(name in shown for name in others)
    assert "1 deleted" in shown
    for name in others:
        delete(name)
    assert "3 deleted" in run("batch", number).stdout
    assert "items" not in json.loads(run("batch", number, "-o", "json").stdout)
    watched = run("batch", number, "--watch", code=ExitCode.NOT_APPLIED)
    assert watched.stderr == (
        "midcourse: 3 of 3 jobs were deleted, and what became of it there is not known\n"
    )


def test_all_or_those_that_take_it(
    run: Any, agents: dict[str, ScriptedAgent], team: str, plane: Client
) -> None:
    waits = f"{team[:30]}-0"
    plane.create_job(waits, labels={"team": team})
    refused = run("checkpoint", "-l", f"team={team}", code=ExitCode.REFUSED)
    assert refused.stderr.splitlines()[0] == (
        "midcourse: nothing was sent: 1 of 4 jobs do not take it;"
        " --best-effort leaves those out that do not take it"
    )
    assert refused.stderr.splitlines()[1].startswith(f"  {waits}: job '{waits}' has not said yet")
    assert not any(plane.get_job(name).desired.revision for name in agents)
    done = run("checkpoint", "-l", f"team={team}", "--best-effort", "--wait")
    assert f"{waits}    –  REFUSED" in done.stdout
    assert done.stdout.count("save checkpoint") == 3
    assert "3 applied, 1 refused of 4" in done.stdout
    dry = run("checkpoint", "-l", f"team={team}", "--best-effort", "--dry-run").stdout
    assert dry.endswith("valid for 3 jobs, not for 1; nothing was changed\n")
    assert "not valid: " in dry


@pytest.mark.parametrize(
    "args",
    [
        ["set", "-l", "team=nlp"],
        ["set", "my-run"],
        ["set", "learning_rate=1e-5"],
        ["set", "my-run", "learning_rate=1e-5", "-l", "team=nlp"],
        ["set", "my-run", "learning_rate=1e-5", "--best-effort"],
        ["set", "my-run", "learning_rate=1e-5", "--yes"],
        ["set", "-l", "team=nlp", "learning_rate=1e-5", "--expect-revision", "1"],
        ["pause"],
        ["pause", "my-run", "-l", "team=nlp"],
        ["history", "my-run", "-l", "team=nlp"],
        ["history", "--export", "-"],
        ["history", "my-run", "--export", "-", "--author", "me"],
        ["label", "my-run", "team"],
        ["label", "my-run", "=x"],
    ],
)
def test_what_does_not_go_together(run: Any, args: list[str]) -> None:
    assert run(*args, code=ExitCode.USAGE).stderr.count("\n") == 1


def test_nobody_is_chosen(run: Any) -> None:
    nobody = run("set", "-l", "team=nobody-at-all", "learning_rate=1e-5", code=ExitCode.NOT_FOUND)
    assert "team=nobody-at-all chooses no job" in nobody.stderr


def test_a_person_is_asked_before_many_jobs_change(
    run: Any,
    agents: dict[str, ScriptedAgent],
    team: str,
    plane: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "ASK_ABOVE", 2)
    monkeypatch.setattr(fleet, "_is_a_person", lambda _: True)
    monkeypatch.setattr(Output, "is_live", False)
    change = ("set", "-l", f"team={team}", "learning_rate*0.5")
    asked = run(*change, say="n\n", code=ExitCode.FAILURE)
    assert "learning_rate × 0.5 for 3 jobs? [y/N]" in asked.stderr
    assert not any(plane.get_job(name).desired.revision for name in agents)
    assert "accepted as batches/" in run(*change, say="y\n").stdout
    assert "[y/N]" not in run(*change, "--yes").stderr
    one = run("set", "-l", f"team={team},job={next(iter(agents))}", "learning_rate*0.5")
    assert "[y/N]" not in one.stderr


def test_labels_from_the_shell(
    run: Any, agents: dict[str, ScriptedAgent], team: str, plane: Client
) -> None:
    name = next(iter(agents))
    would = run("label", name, "tier=gold", "team-", "--dry-run").stdout
    assert would == f"{name} would have tier=gold\n"
    assert run("label", name, "tier=gold", "note=").stdout == (
        f"{name} has note=, team={team}, tier=gold\n"
    )
    assert run("label", name, "note-", "team-").stdout == f"{name} has tier=gold\n"
    etag = plane.get_job(name).etag
    answer = json.loads(run("label", name, "a=b", "--etag", etag, "-o", "json").stdout)
    assert answer["job"]["labels"] == {"a": "b", "tier": "gold"}
    run("label", name, "a=c", "--etag", etag, code=ExitCode.REFUSED)
    run("label", name, "a=b c", code=ExitCode.REFUSED)
    run("label", f"{name}-not", "a=b", code=ExitCode.NOT_FOUND)


def test_history_across_jobs(
    run: Any, agents: dict[str, ScriptedAgent], team: str, plane: Client
) -> None:
    for name in agents:
        plane.set(name, learning_rate=1e-5, wait=True, reason=f"for {name}")
    header, *listed = rows(run("history", "-l", f"team={team}", "--since", "10m").stdout)
    assert header[:3] == ["JOB", "REV", "STATE"]
    assert [row[0] for row in listed] == list(agents)[::-1]
    assert len(rows(run("history", "-l", f"team={team}", "-n", "2").stdout)) == 3
    nothing = run("history", "-l", f"team={team}", "--author", "somebody").stdout
    assert nothing == "no such updates\n"
    answer = json.loads(run("history", "-l", f"team={team}", "-o", "json").stdout)
    assert len(answer["updates"]) == 3


def test_a_batch_from_python(agents: dict[str, ScriptedAgent], team: str, plane: Client) -> None:
    first, *others = agents
    agents[first].rejects = True
    answer = plane.batch_set(jobs=list(agents), values={"learning_rate": 5e-5}, reason="why")
    assert [item.job for item in answer.items] == [f"jobs/{name}" for name in agents]
    with plane.watch_batch(answer.batch.name) as watch:
        ends = {item.job: item for news in watch for item in news.items}
    assert [ends[f"jobs/{name}"].step for name in others] == [121, 121]
    assert ends[f"jobs/{first}"].refusal.reason == "NOT_NOW"
    batch = plane.get_batch(answer.batch.name)
    assert (batch.progress.applied, batch.progress.rejected) == (2, 1)
    assert batch in plane.list_batches(page_size=1)
    assert len(list(plane.list_updates(selector=f"team={team}"))) == 3
    with pytest.raises(FailedPreconditionError):
        plane.cancel_batch(batch.name)
    with pytest.raises(NotFoundError):
        plane.get_batch("99999")
