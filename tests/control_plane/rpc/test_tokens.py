"""Tokens over a real channel: made, used, revoked, expired."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from control_plane.services.ports import Transaction
from grpc_runtime.bearer import bearer_metadata, digest, hide_secrets
from grpc_runtime.errors import StatusError, from_rpc_error
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import access_pb2 as pb
from midcourse.control.v1 import access_pb2_grpc, control_pb2, update_pb2
from tests.support.plane import error_of, request
from tests.support.scripted_agent import ScriptedAgent, applied, hello
from tests.support.secured import SecuredPlane, secured_plane


def access_stub(secured: SecuredPlane) -> Any:
    return access_pb2_grpc.AccessServiceStub(secured.running.channel)


async def ending_of(stream: Any) -> StatusError:
    """How a stream ends, whatever it says before."""
    try:
        async with asyncio.timeout(20):
            while await stream.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the stream ended well")


async def test_the_life_of_a_token(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        stub = access_stub(secured)
        _, root = await secured.token("admin", principal="root")
        admin = bearer_metadata(root)
        request = pb.CreateTokenRequest(
            principal="ops",
            access=pb.Access(role=pb.ROLE_OPERATOR, selector="team=nlp", jobs=["a*"]),
            description="for the tests",
        )
        checked = await stub.CreateToken(
            pb.CreateTokenRequest(**_fields(request), validate_only=True), metadata=admin
        )
        assert not checked.secret
        made = await stub.CreateToken(request, metadata=admin)
        assert hide_secrets(made.secret) == "mc_…"
        assert made.token.creator == "root"
        lifetime = made.token.expire_time.seconds - made.token.create_time.seconds
        assert lifetime == timedelta(days=90).total_seconds()
        listed = (await stub.ListTokens(pb.ListTokensRequest(), metadata=admin)).tokens
        assert [each.principal for each in listed] == ["ops", "root"]
        ops = bearer_metadata(made.secret)
        caller = await stub.GetCaller(pb.GetCallerRequest(), metadata=ops)
        assert caller == pb.GetCallerResponse(
            principal="ops", access=request.access, token=made.token.name
        )
        listed = (await stub.ListTokens(pb.ListTokensRequest(), metadata=admin)).tokens
        assert listed[0].HasField("last_use_time"), "though it is not written down yet"
        await secured.plane.tokens.write_uses()
        stored = (await stub.ListTokens(pb.ListTokensRequest(), metadata=admin)).tokens
        assert stored[0] == listed[0]
        revoked = await stub.RevokeToken(
            pb.RevokeTokenRequest(name=made.token.name), metadata=admin
        )
        again = await stub.RevokeToken(pb.RevokeTokenRequest(name=made.token.name), metadata=admin)
        assert revoked.token.revoke_time == again.token.revoke_time
        refused = await error_of(stub.GetCaller(pb.GetCallerRequest(), metadata=ops))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_REVOKED",
        )
        listed = (await stub.ListTokens(pb.ListTokensRequest(), metadata=admin)).tokens
        assert [each.principal for each in listed] == ["root"]
        everything = pb.ListTokensRequest(show_inactive=True, page_size=1)
        page = await stub.ListTokens(everything, metadata=admin)
        assert [each.name for each in page.tokens] == [made.token.name]
        everything.page_token = page.next_page_token
        page = await stub.ListTokens(everything, metadata=admin)
        assert ([each.principal for each in page.tokens], page.next_page_token) == (["root"], "")
        missing = pb.RevokeTokenRequest(name="tokens/000000000000")
        assert (await error_of(stub.RevokeToken(missing, metadata=admin))).reason == (
            "TOKEN_NOT_FOUND"
        )


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ("", "CREDENTIALS_REQUIRED"),
        ("Basic abc", "CREDENTIALS_REQUIRED"),
        ("Bearer", "CREDENTIALS_REQUIRED"),
        ("Bearer mc_unknown", "TOKEN_UNKNOWN"),
        ("bearer   ", "TOKEN_UNKNOWN"),
    ],
)
async def test_what_is_no_token_is_refused_and_not_repeated(
    tmp_path: Path, sent: str, reason: str
) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        stub = access_stub(secured)
        refused = await error_of(
            stub.GetCaller(pb.GetCallerRequest(), metadata=(("authorization", sent),))
        )
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
        assert "mc_unknown" not in refused.message


async def test_a_token_ends_with_its_time_for_calls_under_way_too(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        who = bearer_metadata((await secured.token("viewer", lifetime=timedelta(seconds=1)))[1])
        stream = secured.running.control.WatchJobs(control_pb2.WatchJobsRequest(), metadata=who)
        _, secret = await secured.token("agent", jobs=["j"], lifetime=timedelta(seconds=1))
        session = secured.running.agents.Session(metadata=bearer_metadata(secret))
        await session.write(session_pb2.SessionRequest(sequence=1, hello=hello("j")))
        for ending in await asyncio.gather(ending_of(stream), ending_of(session)):
            assert (ending.code, ending.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_ENDED")
        late = await error_of(access_stub(secured).GetCaller(pb.GetCallerRequest(), metadata=who))
        assert late.reason == "TOKEN_EXPIRED"


async def test_a_revoked_token_ends_its_calls_under_way_at_once_and_no_others(
    tmp_path: Path,
) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        name, secret = await secured.token("viewer")
        other = await secured.caller("viewer")
        control = secured.running.control
        watch = control.WatchJobs(control_pb2.WatchJobsRequest(), metadata=bearer_metadata(secret))
        kept = control.WatchJobs(control_pb2.WatchJobsRequest(), metadata=other)
        await watch.read()
        await kept.read()
        await secured.plane.tokens.revoke(name.removeprefix("tokens/"))
        ending = await ending_of(watch)
        assert ending.reason == "TOKEN_ENDED"
        assert not kept.done()
        kept.cancel()


async def test_the_session_of_an_agent_is_its_own(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        who = await secured.caller("agent", jobs=["mine-*"])

        async def answer(job: str) -> Any:
            stream = secured.running.agents.Session(metadata=who)
            await stream.write(session_pb2.SessionRequest(sequence=1, hello=hello(job)))
            try:
                return await stream.read()
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason
            finally:
                stream.cancel()

        assert (await answer("mine-1")).HasField("welcome")
        assert await answer("others") == "OUT_OF_SCOPE"
        assert [
            each.id for each in await secured.plane._store.read(lambda tx: tx.jobs(limit=9))
        ] == ["mine-1"]


async def test_a_session_ends_when_its_job_leaves_the_agents_bounds(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        who = await secured.caller("agent", jobs=["*"], selector="team=nlp")
        operator = await secured.caller("operator")
        control = secured.running.control
        agent = ScriptedAgent(secured.running.agents, labels={"team": "nlp"})
        await agent.connect(who)
        await control.UpdateParameters(request(), metadata=operator)
        await agent.wait_for("delivery")
        relabel = control_pb2.UpdateJobRequest(name="jobs/j", set_labels={"team": "cv"})
        await control.UpdateJob(relabel, metadata=operator)
        with pytest.raises(StatusError) as ended:
            await agent.wait_for("go_away")
        assert (ended.value.code, ended.value.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "OUT_OF_SCOPE",
        )
        with pytest.raises(StatusError) as refused:
            await agent.connect(who)
        assert refused.value.reason == "JOB_EXISTS"
        await control.GetUpdate(
            control_pb2.GetUpdateRequest(name="jobs/j/updates/1"), metadata=operator
        )


async def test_what_a_session_says_of_a_job_that_left_the_agents_bounds_is_not_stored(
    tmp_path: Path,
) -> None:
    """Nobody has told the session: it looks itself, in every transaction."""
    async with secured_plane(tmp_path / "control.db") as secured:
        who = await secured.caller("agent", jobs=["*"], selector="team=nlp")
        operator = await secured.caller("operator")
        control = secured.running.control
        agents = [
            ScriptedAgent(secured.running.agents, name, labels={"team": "nlp"}) for name in "jk"
        ]
        for agent in agents:
            await agent.connect(who)
            asked = request(agent.hello.job_id)
            await control.UpdateParameters(asked, metadata=operator)
            await agent.wait_for("delivery")

        def relabel(tx: Transaction) -> None:
            for job in tx.jobs(limit=9):
                tx.save_job(replace(job, labels={"team": "cv"}))

        await secured.plane._store._store.write(relabel)
        await agents[0].say(outcome=applied(1))  # together with others
        await agents[1].say(event=session_pb2.TrainerEvent(finished=session_pb2.TrainingFinished()))
        for agent in agents:
            with pytest.raises(StatusError) as ended:
                await agent.wait_for("go_away")
            assert ended.value.reason == "OUT_OF_SCOPE"
        for name in "jk":
            get = control_pb2.GetUpdateRequest(name=f"jobs/{name}/updates/1")
            update = (await control.GetUpdate(get, metadata=operator)).update
            assert update.state == update_pb2.UPDATE_STATE_PENDING


def content_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


async def test_no_secret_is_in_the_database(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        _, secret = await secured.token("viewer")
        await access_stub(secured).GetCaller(
            pb.GetCallerRequest(), metadata=bearer_metadata(secret)
        )
    content = content_of(tmp_path)
    assert digest(secret).encode() in content
    assert secret.removeprefix("mc_").encode() not in content


async def test_a_watch_of_a_scoped_caller_tells_of_its_jobs_alone(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        control = secured.running.control
        admin = await secured.caller("admin")
        nlp = await secured.caller("viewer", selector="team=nlp")

        async def create(job_id: str, team: str) -> None:
            await control.CreateJob(
                control_pb2.CreateJobRequest(job_id=job_id, labels={"team": team}), metadata=admin
            )

        async def label(job_id: str, team: str) -> None:
            await control.UpdateJob(
                control_pb2.UpdateJobRequest(name=f"jobs/{job_id}", set_labels={"team": team}),
                metadata=admin,
            )

        async def delete(job_id: str) -> None:
            await control.DeleteJob(
                control_pb2.DeleteJobRequest(name=f"jobs/{job_id}"), metadata=admin
            )

        await create("a", "nlp")
        await create("x", "cv")
        watch = control.WatchJobs(control_pb2.WatchJobsRequest(), metadata=nlp)
        told: list[tuple[str, str]] = []
        position = ""

        async def until(kind: str, job_id: str) -> None:
            nonlocal position
            async with asyncio.timeout(10):
                while (kind, job_id) not in told:
                    event = await watch.read()
                    position = event.position or position
                    name = control_pb2.JobEventType.Name(event.type).rpartition("_")[2]
                    told.append((name, event.job.name.removeprefix("jobs/")))

        await until("BOOKMARK", "")
        await create("y", "cv")
        await label("x", "nlp")  # comes in
        await until("MODIFIED", "x")
        await label("a", "cv")  # goes out
        await until("DELETED", "a")
        await delete("a")
        await delete("y")
        await create("b", "nlp")
        await until("CREATED", "b")
        watch.cancel()
        assert told == [
            ("SNAPSHOT", "a"),
            ("BOOKMARK", ""),
            ("MODIFIED", "x"),
            ("DELETED", "a"),
            ("CREATED", "b"),
        ]
        # It can be gone on from there, unless jobs were deleted whose labels nobody knows now.
        await create("c", "nlp")
        watch = control.WatchJobs(control_pb2.WatchJobsRequest(position=position), metadata=nlp)
        told.clear()
        await until("CREATED", "c")
        assert told == [("CREATED", "c")]
        watch.cancel()
        await delete("c")
        resumed = control.WatchJobs(control_pb2.WatchJobsRequest(position=position), metadata=nlp)
        assert (await ending_of(resumed)).reason == "POSITION_GONE"


async def test_a_watch_of_a_batch_ends_when_a_job_of_it_leaves_the_callers_bounds(
    tmp_path: Path,
) -> None:
    async with secured_plane(tmp_path / "control.db") as secured:
        admin = await secured.caller("admin")
        viewer = await secured.caller("viewer", selector="team=nlp")
        control = secured.running.control
        agents = [
            ScriptedAgent(secured.running.agents, name, labels={"team": "nlp"}) for name in "jk"
        ]
        for agent in agents:
            await agent.connect(admin)
        asked = control_pb2.BatchUpdateParametersRequest(
            jobs=["jobs/j", "jobs/k"], spec=request().spec
        )
        batch = (await control.BatchUpdateParameters(asked, metadata=admin)).batch.name
        watched = control_pb2.WatchBatchRequest(name=batch)
        stream = control.WatchBatch(watched, metadata=viewer)
        assert len((await stream.read()).items) == 2
        relabel = control_pb2.UpdateJobRequest(name="jobs/k", set_labels={"team": "cv"})
        await control.UpdateJob(relabel, metadata=admin)
        ending = await ending_of(stream)
        assert (ending.code, ending.reason) == (grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND")
        for agent in agents:
            await agent.leave()
