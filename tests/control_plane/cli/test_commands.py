"""Every verb against a real gRPC server."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from control_plane.cli.exits import ExitCode
from control_plane.cli.main import app
from control_plane.client import Client, UnavailableError
from grpc_runtime.errors import StatusError
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.fake_control_plane import FakeControlPlane, make_job, make_series
from tests.support.midcourse_command import Midcourse

NAN = float("nan")


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def last_update(server: FakeControlPlane) -> update_pb2.Update:
    return server.updates["jobs/my-run"][-1]


# jobs, job, delete


def test_jobs(midcourse: Midcourse, server: FakeControlPlane) -> None:
    server.add(job_pb2.Job(name="jobs/new", state=job_pb2.JOB_STATE_PENDING))
    server.add(make_job("third"))
    header, first, second, third = rows(midcourse("jobs").stdout)
    assert header[:6] == ["JOB", "METHOD", "STATE", "STEP", "LOSS", "LR"]
    assert first[:6] == ["my-run", "sft", "RUNNING", "120/1000", "1.235", "2e-05"]
    assert second == ["new", "–", "PENDING", "–", "–", "–", "–", "–"]
    assert third[0] == "third"


def test_jobs_are_filtered_by_the_server(midcourse: Midcourse, server: FakeControlPlane) -> None:
    midcourse("jobs", "-l", "team=nlp", "--state", "running", "--state", "LOST")
    request = server.calls[-1][1]
    assert request.selector == "team=nlp"
    assert list(request.states) == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_LOST]
    assert midcourse("jobs", "--state", "failed").stdout == "no such jobs\n"
    server.jobs.clear()
    assert midcourse("jobs").stdout == "no jobs yet that you may see\n"


def test_jobs_as_json_are_one_list_of_all_pages(
    midcourse: Midcourse, server: FakeControlPlane
) -> None:
    for name in ("a", "b", "c"):
        server.add(make_job(name))
    answer = midcourse.json("jobs")
    assert [job["name"] for job in answer["jobs"]] == [
        "jobs/a",
        "jobs/b",
        "jobs/c",
        "jobs/my-run",
    ]
    assert "nextPageToken" not in answer


def test_job(midcourse: Midcourse, server: FakeControlPlane) -> None:
    output = midcourse("job", "my-run").stdout
    for words in (
        "120/1000 at 3.25 steps/s",
        "team=nlp",
        "process 4242 on gpu-01, connected",
        "set hold multiply release",
        "[0, ∞)",
        "1.23457",
    ):
        assert words in output
    job = server.jobs["jobs/my-run"]
    job.exit.signal = 9
    job.exit.message = "killed by signal 9"
    job.dropped_samples = 3
    job.parameters[0].unavailable_reason = "frozen by its owner"
    output = midcourse("job", "jobs/my-run").stdout
    assert "killed by signal 9" in output
    assert "3 samples" in output
    assert "not now: frozen by its owner" in output
    assert midcourse.json("job", "my-run")["job"]["uid"] == "uid-my-run"


def test_delete(midcourse: Midcourse, server: FakeControlPlane) -> None:
    assert "live session" in midcourse("delete", "my-run", code=ExitCode.REFUSED).stderr
    server.jobs["jobs/my-run"].session.connected = False
    assert midcourse("delete", "my-run", "--dry-run").stdout == (
        "my-run can be deleted; nothing was\n"
    )
    assert midcourse("delete", "my-run").stdout == "my-run deleted\n"
    assert not server.jobs


@pytest.mark.parametrize(
    "args",
    [
        ["job", "my-rnu"],
        ["delete", "my-rnu"],
        ["set", "my-rnu", "learning_rate=1"],
        ["history", "my-rnu"],
        ["cancel", "my-rnu", "1"],
        ["metrics", "my-rnu"],
    ],
)
def test_an_unknown_job_leads_to_those_that_were_meant(
    midcourse: Midcourse, args: list[str]
) -> None:
    stderr = midcourse(*args, code=ExitCode.NOT_FOUND).stderr
    assert stderr == "midcourse: there is no job 'my-rnu'; did you mean my-run?\n"


def test_other_names_are_told_where_none_is_close(
    midcourse: Midcourse, server: FakeControlPlane
) -> None:
    assert "there are my-run" in midcourse("job", "zzz", code=ExitCode.NOT_FOUND).stderr
    for n in range(9):
        server.add(make_job(f"job-{n}"))
    assert "and 5 more" in midcourse("job", "zzz", code=ExitCode.NOT_FOUND).stderr
    server.jobs.clear()
    assert "no jobs yet that you may see" in midcourse("job", "zzz", code=ExitCode.NOT_FOUND).stderr


# set


def test_set_sends_all_it_is_told(midcourse: Midcourse, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    before = datetime.now(UTC)
    result = midcourse(
        *("set", "my-run", "learning_rate=5e-5", "--at-step", "200", "--max-step", "210"),
        *("--reason", "plateau", "--expect-revision", "0", "--request-id", "r-1"),
        *("--deadline", "10m", "--force", "--group", "1", "--mode", "hold", "--steps", "30"),
    )
    assert result.stdout == (
        "accepted as revision 1: learning_rate[1] → 5e-05, held for 30 steps at step 200;"
        " see `midcourse history my-run`\n"
    )
    update = last_update(server)
    spec = update.spec
    assert (spec.apply_at.step, spec.apply_at.max_step) == (200, 210)
    assert spec.reason == "plateau"
    assert spec.force
    assert update.request_id == "r-1"
    assert spec.changes[0].set.hold_steps == 30
    left = spec.deadline.ToDatetime(tzinfo=UTC) - before
    assert 599 < left.total_seconds() < 630


def test_set_waits_for_the_step(midcourse: Midcourse) -> None:
    output = midcourse("set", "my-run", "learning_rate=5e-5", "--wait").stdout
    assert output.startswith("APPLIED at step 121, learning_rate 2e-05 → 5e-05, ")
    assert output.endswith(" ms after the call\n")


def test_set_multiplies_and_releases(midcourse: Midcourse, server: FakeControlPlane) -> None:
    midcourse("set", "my-run", "learning_rate=x0.5")
    assert last_update(server).spec.changes[0].multiply.factor == 0.5
    midcourse("set", "my-run", "learning_rate=release")
    assert last_update(server).spec.changes[0].HasField("release")


@pytest.mark.parametrize(
    ("ended_by", "code"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (UnavailableError("nobody there", code=grpc.StatusCode.UNAVAILABLE), ExitCode.UNREACHABLE),
    ],
)
def test_a_wait_that_is_ended_says_what_stays(
    midcourse: Midcourse, monkeypatch: pytest.MonkeyPatch, ended_by: BaseException, code: ExitCode
) -> None:
    def wait(*_: object, **__: object) -> None:
        raise ended_by

    monkeypatch.setattr(Client, "wait_applied", wait)
    stays = "it stays accepted as revision 1; `midcourse cancel my-run 1` takes it back\n"
    midcourse("set", "my-run", "learning_rate=1e-5", "--wait", code=code, notes=stays)


def test_a_dry_run_changes_nothing(midcourse: Midcourse, server: FakeControlPlane) -> None:
    output = midcourse("set", "my-run", "learning_rate=5e-5", "--dry-run").stdout
    assert output == "valid: learning_rate → 5e-05 at the next boundary; nothing was changed\n"
    assert not server.updates["jobs/my-run"]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (update_pb2.UPDATE_STATE_REJECTED, "REJECTED, the learning rate is 0 here"),
        (update_pb2.UPDATE_STATE_EXPIRED, "EXPIRED, its deadline passed"),
        (update_pb2.UPDATE_STATE_CANCELLED, "CANCELLED, withdrawn by ops"),
    ],
)
def test_an_update_that_is_not_applied(
    midcourse: Midcourse,
    server: FakeControlPlane,
    state: update_pb2.UpdateState.ValueType,
    words: str,
) -> None:
    server.settle_as = state
    args = ["set", "my-run", "learning_rate=5e-5", "--wait"]
    assert words in midcourse(*args, code=ExitCode.NOT_APPLIED).stderr
    answer = midcourse.json(*args, code=ExitCode.NOT_APPLIED)
    assert answer["update"]["state"] == update_pb2.UpdateState.Name(state)


def test_an_update_that_takes_too_long(midcourse: Midcourse, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    args = ["set", "my-run", "learning_rate=5e-5", "--wait", "--timeout", "50ms"]
    stderr = midcourse(*args, code=ExitCode.TIMEOUT).stderr
    assert "still PENDING after 0.05 s" in stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["learning_rate=nan"], "got nan, must be finite"),
        (["learning_rate=-1"], "got -1.0, must be finite and 0 or more"),
        (["learning_rate=0.5"], "use force"),
        (["loss=1"], "the job has learning_rate"),
        (["learning_rate=1e-5", "--expect-revision", "7"], "expected revision 7"),
    ],
)
def test_refusals_are_the_control_planes_words(
    midcourse: Midcourse, args: list[str], words: str
) -> None:
    assert words in midcourse("set", "my-run", *args, code=ExitCode.REFUSED).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["learning_rate=fast"], "takes a number"),
        (["learning_rate"], "has no value"),
        (["learning_rate=1", "--mode", "ramp"], "needs --steps"),
        (["learning_rate=1", "--mode", "fly"], "--mode"),
        (["learning_rate=1", "--deadline", "soon"], "'soon' is no duration"),
        (["learning_rate=1", "--timeout", "3s"], "--wait"),
        (["learning_rate=1", "--wait", "--dry-run"], "--dry-run"),
        (["learning_rate=1", "--at-step", "0"], "--at-step"),
        (["learning_rate=1", "--no-such-flag"], "--no-such-flag"),
        ([], "NAME=VALUE"),
    ],
)
def test_a_wrong_command_line(
    midcourse: Midcourse, server: FakeControlPlane, args: list[str], words: str
) -> None:
    stderr = midcourse("set", "my-run", *args, code=ExitCode.USAGE).stderr
    assert words in stderr
    assert "see 'midcourse set --help'" in stderr
    assert not server.updates["jobs/my-run"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["my-rnu", "learning_rate"], "got 'learning_rate', which has no value"),
        (["my-rnu", "learning_rate="], "write learning_rate=5e-5 to set it"),
        (["my-rnu", "warmup_steps=10", "loss"], "got 'loss'"),
        (["my-rnu", "3=4"], "'3=4' does not begin with the name of a parameter"),
        (["my-rnu", "learning_rate=1", "--mode", "ramp"], "needs --steps"),
        (["-l", "team=nobody", "learning_rate=1", "loss"], "got 'loss'"),
    ],
)
def test_what_is_no_assignment_is_told_before_anybody_is_asked_for_the_job(
    midcourse: Midcourse, args: list[str], words: str
) -> None:
    stderr = midcourse("set", *args, code=ExitCode.USAGE).stderr
    assert words in stderr
    assert "my-rnu" not in stderr


# history, cancel


def test_history(midcourse: Midcourse, server: FakeControlPlane) -> None:
    assert midcourse("history", "my-run").stdout == "no updates yet\n"
    assert midcourse("history").stdout == "no updates yet that you may see\n"
    midcourse("set", "my-run", "learning_rate=5e-5", "--reason", "plateau")
    server.settle_as = update_pb2.UPDATE_STATE_REJECTED
    midcourse("set", "my-run", "learning_rate=x0.5")
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    midcourse("set", "my-run", "learning_rate=1e-5", "--at-step", "500")
    output = midcourse("history", "my-run").stdout
    header, third, second, first = rows(output)
    assert header == ["REV", "STATE", "CHANGE", "STEP", "LATENCY", "AUTHOR", "WHEN", "REASON"]
    assert third[:6] == ["3", "PENDING", "learning_rate", "→", "1e-05", "–"]
    assert second[:2] == ["2", "REJECTED"]
    assert "the learning rate is 0 here; use mode hold" in output
    assert first[:6] == ["1", "APPLIED", "learning_rate", "2e-05", "→", "5e-05"]
    assert first[6] == "121"
    assert first[-1] == "plateau"
    assert len(rows(midcourse("history", "my-run", "--last", "1").stdout)) == 2
    revisions = [u["revision"] for u in midcourse.json("history", "my-run")["updates"]]
    assert revisions == ["3", "2", "1"]


def test_cancel(midcourse: Midcourse, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    midcourse("set", "my-run", "learning_rate=5e-5")
    assert midcourse("cancel", "my-run", "1", "--reason", "oops").stdout == "revision 1 cancelled\n"
    assert server.calls[-1][1].reason == "oops"
    assert "settled" in midcourse("cancel", "my-run", "1", code=ExitCode.REFUSED).stderr
    assert "no update" in midcourse("cancel", "my-run", "9", code=ExitCode.NOT_FOUND).stderr
    midcourse("set", "my-run", "learning_rate=5e-5")
    last_update(server).state = update_pb2.UPDATE_STATE_DELIVERED
    args = ["cancel", "my-run", "2", "--timeout", "50ms"]
    assert "has not answered yet" in midcourse(*args, code=ExitCode.TIMEOUT).stderr


# metrics


@pytest.fixture
def measured(server: FakeControlPlane) -> FakeControlPlane:
    server.series["jobs/my-run"] = [
        make_series("learning_rate", [2e-5] * 20 + [1e-5] * 20),
        make_series("loss", [3 - n / 20 for n in range(39)] + [NAN]),
    ]
    server.next_step = 21
    return server


def test_metrics(midcourse: Midcourse, measured: FakeControlPlane) -> None:
    midcourse("set", "my-run", "learning_rate=1e-5")
    output = midcourse("metrics", "my-run", "loss", "learning_rate").stdout
    lines = rows(output)
    assert lines[0] == ["STEP", "loss", "learning_rate", "UPDATE"]
    assert lines[1] == ["21", "2", "1e-05", "#1", "learning_rate", "2e-05", "→", "1e-05"]
    assert lines[20] == ["40", "nan", "1e-05"]
    assert lines[23][:2] == ["loss", "40"]
    assert lines[23][-1] == "1"
    assert len(rows(midcourse("metrics", "my-run", "loss", "--last", "3").stdout)) == 7


def test_metrics_as_json(midcourse: Midcourse, measured: FakeControlPlane) -> None:
    (loss,) = midcourse.json("metrics", "my-run", "loss")["series"]
    assert len(loss["steps"]) == 40
    assert loss["values"][-1] == "NaN"


def test_metrics_as_a_plot(midcourse: Midcourse, measured: FakeControlPlane) -> None:
    midcourse("set", "my-run", "learning_rate=1e-5")
    output = midcourse("metrics", "my-run", "loss", "learning_rate", "--plot").stdout
    assert "loss by step" in output
    assert "learning_rate by step" in output
    assert output.count("┊") > 5
    assert "loss: 1 NaN or infinite samples left out" in output
    assert "#1 at step 21: learning_rate 2e-05 → 1e-05" in output
    assert "\x1b" not in output
    assert all(len(line) <= 120 for line in output.splitlines())


def test_metrics_that_are_not_there(midcourse: Midcourse, measured: FakeControlPlane) -> None:
    stderr = midcourse("metrics", "my-run", "los", code=ExitCode.NOT_FOUND).stderr
    assert stderr == "midcourse: the job has no metric los; did you mean loss?\n"
    stderr = midcourse("metrics", "my-run", "zzz", code=ExitCode.NOT_FOUND).stderr
    assert "it has learning_rate, loss" in stderr
    measured.series.clear()
    assert midcourse("metrics", "my-run").stdout == "no metrics yet\n"
    assert midcourse("metrics", "my-run", "--plot").stdout == "no metrics yet\n"
    midcourse("metrics", "my-run", "--plot", "-o", "json", code=ExitCode.USAGE)


def test_a_plot_of_nothing_finite(midcourse: Midcourse, measured: FakeControlPlane) -> None:
    measured.series["jobs/my-run"] = [make_series("loss", [NAN, NAN]), make_series("one", [1.0])]
    output = midcourse("metrics", "my-run", "--plot").stdout
    assert "loss: no finite samples" in output
    assert "one by step" in output


# watch


def publish_end(server: FakeControlPlane, state: job_pb2.JobState.ValueType) -> None:
    """Lets the job end, after an update, as soon as somebody watches: what a watch resumes from."""
    job = server.jobs["jobs/my-run"]
    update = update_pb2.Update(revision=1, state=update_pb2.UPDATE_STATE_PENDING)
    server.script = [
        (control_pb2.JOB_EVENT_TYPE_MODIFIED, job, update),
        (
            control_pb2.JOB_EVENT_TYPE_MODIFIED,
            job_pb2.Job(name=job.name, state=state, state_message="out of memory"),
            None,
        ),
    ]


def test_watch_ends_when_the_job_does(midcourse: Midcourse, server: FakeControlPlane) -> None:
    publish_end(server, job_pb2.JOB_STATE_FINISHED)
    snapshot, update, ended = midcourse("watch", "my-run").stdout.splitlines()
    assert "RUNNING  step 120/1000  loss 1.235  lr 2e-05  3.25 steps/s" in snapshot
    assert "update 1 PENDING" in update
    assert "FINISHED" in ended


def test_watch_says_that_the_job_failed(midcourse: Midcourse, server: FakeControlPlane) -> None:
    publish_end(server, job_pb2.JOB_STATE_FAILED)
    stderr = midcourse("watch", "my-run", code=ExitCode.JOB_FAILED).stderr
    assert stderr == "midcourse: my-run failed: out of memory\n"


def test_watch_as_json_is_one_event_a_line(midcourse: Midcourse, server: FakeControlPlane) -> None:
    publish_end(server, job_pb2.JOB_STATE_FINISHED)
    lines = midcourse("watch", "my-run", "-o", "json", "--interval", "100ms").stdout.splitlines()
    kinds = [json.loads(line)["type"].removeprefix("JOB_EVENT_TYPE_") for line in lines]
    assert kinds == ["SNAPSHOT", "BOOKMARK", "MODIFIED", "MODIFIED"]
    assert server.calls[0][1].progress_interval.nanos == 100_000_000


def test_watch_begins_anew_when_its_position_is_gone(
    midcourse: Midcourse, server: FakeControlPlane
) -> None:
    gone = StatusError(grpc.StatusCode.OUT_OF_RANGE, "gone", reason="POSITION_GONE")
    server.fail("WatchJobs", gone)
    publish_end(server, job_pb2.JOB_STATE_FINISHED)
    assert len(midcourse("watch", "my-run").stdout.splitlines()) == 3


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_watch_in_lines_says_that_it_has_lost_the_server(
    midcourse: Midcourse, server: FakeControlPlane, output: str
) -> None:
    publish_end(server, job_pb2.JOB_STATE_FINISHED)
    server.script.insert(0, None)
    lost = "the control plane ended the watch; trying again\n"
    shown = midcourse("watch", "my-run", "-o", output, notes=lost).stdout
    assert "FINISHED" in shown.splitlines()[-1]


# everything


def test_options_stand_before_or_after_the_verb(
    midcourse: Midcourse, server: FakeControlPlane
) -> None:
    elsewhere = Midcourse("127.0.0.1:1")
    before = elsewhere("-s", server.address, "-o", "json", "jobs").stdout
    after = elsewhere("jobs", "--server", server.address, "--output", "json").stdout
    assert json.loads(before) == json.loads(after)
    assert json.loads(before)["jobs"]


def test_nobody_there(server: FakeControlPlane, midcourse: Midcourse) -> None:
    server.stop()
    stderr = midcourse("jobs", code=ExitCode.UNREACHABLE).stderr
    assert server.address in stderr
    assert "refused" in stderr
    assert "is `midcourse serve` running there?" in stderr
    server.start("127.0.0.1:0")


def test_errors_of_the_server(midcourse: Midcourse, server: FakeControlPlane) -> None:
    code = grpc.StatusCode
    server.fail("ListJobs", StatusError(code.INTERNAL, "boom\nbang", reason="INTERNAL"))
    assert midcourse("jobs", code=ExitCode.FAILURE).stderr == ("midcourse: boom bang (INTERNAL)\n")
    server.fail("ListJobs", StatusError(code.PERMISSION_DENIED, "viewers only", reason="ROLE"))
    assert "viewers only" in midcourse("jobs", code=ExitCode.REFUSED).stderr
    other = "the server at {} does not know this call: not faked; is `midcourse serve` running"
    assert other.format(server.address) in midcourse("batches", code=ExitCode.FAILURE).stderr
    draining = StatusError(code.UNAVAILABLE, "draining", reason="SHUTTING_DOWN")
    server.fail("ListJobs", *[draining] * 4)
    assert midcourse("jobs", code=ExitCode.UNREACHABLE).stderr == "midcourse: draining\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["jbos"], "Did you mean 'jobs'"),
        (["jobs", "--staet", "lost"], "--staet"),
        (["jobs", "-o", "xml"], "--output"),
        (["-s", "localhost", "jobs"], "has no port"),
        (["-s", "http://localhost:1", "jobs"], "write 'localhost:1'"),
        (["cancel", "my-run", "x"], "'REVISION': got 'x', which should be a valid integer; see"),
        (["jobs", "--state", "happy"], "'--state': 'happy' is not one of 'pending'"),
        (["set"], "name one JOB, or several by --selector"),
        (["job", ""], "'JOB': it is empty"),
        (["batch", "last"], "got 'last', which is no number of a batch"),
    ],
)
def test_usage(midcourse: Midcourse, args: list[str], words: str) -> None:
    assert words in midcourse(*args, code=ExitCode.USAGE).stderr


def test_help_says_all_verbs_and_exit_codes(midcourse: Midcourse) -> None:
    output = midcourse("--help").stdout
    for verb in ("serve", "jobs", "job", "set", "history", "cancel", "watch", "metrics", "delete"):
        assert f"\n  {verb} " in output
    for code in ExitCode:
        assert f"{code.value:>3}  {code.meaning}" in output
    assert midcourse().stdout.strip() == output.strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["jobs", "--nope"]])
def test_a_stream_that_takes_nothing_is_told_of_where_that_is_possible(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "--nope" in arguments
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr" if wrong else "stdout", full)
        with pytest.raises(SystemExit) as ended:
            app(arguments)
        monkeypatch.undo()
    assert ended.value.code == (ExitCode.USAGE if wrong else ExitCode.FAILURE)
    said = "" if wrong else "midcourse: the output can not be written: No space left on device\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "code"), [(["version"], ExitCode.OK), (["chat"], ExitCode.USAGE)]
)
def test_streams_may_be_closed_from_the_start(
    arguments: list[str], code: ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    assert ended.value.code == code


def test_version(midcourse: Midcourse) -> None:
    assert midcourse("--version").stdout == midcourse("version").stdout
    assert midcourse("version").stdout.startswith("midcourse ")
    assert midcourse.json("version")["version"]
