"""Who dies, who is told, who comes back: real trainer and agent processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2

if TYPE_CHECKING:
    from midcourse.control.v1 import job_pb2
    from tests.support.scripted_agent_service import ScriptedAgentService
    from tests.support.scripted_trainer import TrainerProcess
    from tests.trainer_agent.agent.conftest import World

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")])}

LINUX_WITH_EXIT_INFO = tuple(
    int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2]
) >= (6, 15)


async def exit_told(service: ScriptedAgentService) -> job_pb2.TrainerExit:
    """Waits for the goodbye of the newest session, and returns what it said before it."""
    await service.until(lambda: bool(service.everything("goodbye")))
    kinds = [request.WhichOneof("message") for request in service.stream.received]
    assert kinds[-1] == "goodbye"
    exits = [
        request.event.exited
        for request in service.everything("event")
        if request.event.HasField("exited")
    ]
    assert len(exits) == 1
    last_beat = service.stream.of("heartbeat")[-1].heartbeat
    assert last_beat.phase in {
        session_pb2.TRAINER_PHASE_EXITED, session_pb2.TRAINER_PHASE_FINISHED,
    }  # fmt: skip
    return exits[0]


async def until_noticed(trainer: TrainerProcess) -> None:
    """Lets the trainer poll until it has noticed that its agent is gone."""
    async with asyncio.timeout(15):
        while (await trainer.do("status"))["state"] == "connected":
            await trainer.poll()


async def start_agent(world: World, *arguments: str) -> asyncio.subprocess.Process:
    """Starts an agent by hand."""
    world.socket_dir.mkdir(mode=0o700, exist_ok=True)
    with (world.socket_dir / "by-hand.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "trainer_agent", "--job", "job",
            "--socket-dir", str(world.socket_dir), "--log-format", "json", *arguments,
            env=ENVIRONMENT, stderr=log,
        )  # fmt: skip


# -------------------------------------------------------------------------------- the trainer ends


async def test_a_killed_trainer_is_reported_with_its_signal(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    await trainer.do("step", 5, {"loss": 1.0})
    await trainer.kill(signal.SIGKILL)
    told = await exit_told(service)
    assert told.signal == 9
    assert not told.HasField("exit_code")
    steps = [c.steps for r in service.everything("heartbeat") for c in r.heartbeat.metrics]
    assert [list(each) for each in steps] == [[5]]  # what it had sent before arrived
    await world.until_gone(world.agents()[0])


@pytest.mark.parametrize("code", [0, 3])
async def test_an_exit_code_is_reported(
    world: World, service: ScriptedAgentService, code: int
) -> None:
    trainer = await world.served_trainer()
    assert await trainer.exit(code) == code
    told = await exit_told(service)
    assert told.HasField("exit_code")
    assert told.exit_code == code


async def test_a_training_that_finishes_and_says_goodbye_is_reported_in_full(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.heartbeat_interval = 3600
    trainer = await world.served_trainer()
    for step in range(1, 31):
        await trainer.do("step", step, {"loss": 1.0})
    await trainer.do("finished")
    assert await trainer.do("close") is True
    await trainer.exit(0)
    told = await exit_told(service)
    assert told.exit_code == 0
    kinds = [r.event.WhichOneof("kind") for r in service.everything("event")]
    assert kinds == ["finished", "exited"]
    beats = [r.heartbeat for r in service.everything("heartbeat")]
    assert sorted(s for b in beats for c in b.metrics for s in c.steps) == list(range(1, 31))
    assert beats[-1].phase == session_pb2.TRAINER_PHASE_FINISHED
    await world.until_gone(world.agents()[0])


async def test_an_exception_is_reported_in_words(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    await trainer.do("close", "ValueError: bad data")
    await trainer.exit(1)
    told = await exit_told(service)
    assert told.exit_code == 1
    assert "ValueError: bad data" in told.message


async def test_a_trainer_that_ends_before_its_agent_is_up_is_reported_all_the_same(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.trainer()
    await trainer.do("step", 1, {"loss": 1.0})
    await trainer.do("finished")
    assert await trainer.do("close") is True
    await trainer.exit(0)
    await service.until(lambda: bool(service.everything("goodbye")))
    kinds = [r.event.WhichOneof("kind") for r in service.everything("event")]
    assert kinds[0] == "finished"


async def test_a_forked_child_that_keeps_the_socket_does_not_hide_the_trainers_death(
    world: World, service: ScriptedAgentService, tmp_path: Path
) -> None:
    trainer = await world.served_trainer()
    child = await trainer.do("fork", str(tmp_path / "child"))
    try:
        told_state = tmp_path / "child"
        await service.until(lambda: told_state.exists() and bool(told_state.read_text("utf-8")))
        assert told_state.read_text("utf-8") == "closed"
        await trainer.do("step", 1, {"loss": 1.0})
        await trainer.kill()
        told = await exit_told(service)
        assert told.signal == 9
        steps = [c.steps for r in service.everything("heartbeat") for c in r.heartbeat.metrics]
        assert [list(each) for each in steps] == [[1]]  # nothing of the child's step 999
    finally:
        os.kill(child, signal.SIGKILL)


async def test_while_the_control_plane_is_away_the_agent_lingers_and_then_gives_up(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer(agent_arguments=["--linger", "0.5"])
    await trainer.do("applied", 1, 2)
    assert await trainer.poll_until(1) == ["stored [1]"]
    await service.stop()
    await trainer.do("applied", 2, 3)
    await trainer.kill()
    await world.until_gone(world.agents()[0])
    (ended,) = [event for event in world.log() if event["event"] == "ended_with_losses"]
    assert (ended["outcomes"], ended["events"]) == (1, 1)


async def test_what_a_dead_trainer_left_is_delivered_when_the_control_plane_is_back(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    await service.stop()
    await trainer.do("step", 1, {"loss": 1.0})
    await trainer.do("applied", 1, 2)
    await trainer.kill()
    await service.until(lambda: any(event["event"] == "trainer_exited" for event in world.log()))
    await service.start(int(service.target.rpartition(":")[2]))
    told = await exit_told(service)
    assert told.signal == 9
    assert [o.revision for o in service.stream.hello.state.outcomes] == [1]
    assert service.stream.hello.state.phase == session_pb2.TRAINER_PHASE_EXITED


# ---------------------------------------------------------------------------------- the agent ends


async def test_a_killed_agent_is_replaced_and_nothing_that_matters_is_lost(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.acknowledge = False
    trainer = await world.served_trainer()
    service.stream.deliver(1, 11)
    assert await trainer.poll_until(1) == ["delivery 1"]
    await trainer.do("applied", 1, 5)
    os.kill(world.agents()[0], signal.SIGKILL)
    await until_noticed(trainer)
    await trainer.do("applied", 2, 6)
    service.script.acknowledge = True
    await trainer.ready()
    await service.until(lambda: len(service.streams) == 2)
    again = service.stream.hello
    assert [outcome.revision for outcome in again.state.outcomes] == [1, 2]
    assert again.instance_id == service.streams[0].hello.instance_id
    assert again.agent_id != service.streams[0].hello.agent_id
    assert await trainer.poll_until(1) == ["stored [1, 2]"]
    assert len(world.agents()) == 2
    children = await trainer.do("children")
    assert list(children) == [str(world.agents()[1])]  # the dead one is no zombie
    status = await trainer.do("status")
    assert (status["connections"], status["message"]) == (2, "")


async def test_an_agent_that_is_told_to_stop_says_goodbye_and_is_replaced(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    first = world.agents()[0]
    service.script.heartbeat_interval = 3600
    await trainer.do("step", 1, {"loss": 1.0})
    os.kill(first, signal.SIGTERM)
    await world.until_gone(first)
    goodbye = service.everything("goodbye")[0].goodbye
    assert "SIGTERM" in goodbye.reason
    assert not service.everything("event")  # the trainer lives
    await until_noticed(trainer)
    await trainer.ready()
    await service.until(lambda: len(service.streams) == 2)


async def test_an_agent_that_can_not_start_does_not_stop_the_trainer(
    world: World,
) -> None:
    trainer = await world.trainer(agent_arguments=["--no-such-option"])
    complaints = step = 0
    while complaints < 2:
        step += 1
        await trainer.do("step", step, {"loss": 1.0})
        await trainer.poll()
        logs = [path.read_text("utf-8") for path in world.socket_dir.glob("*.log")]
        complaints = "".join(logs).count("unrecognized arguments: --no-such-option")
    assert (await trainer.do("status"))["state"] == "connecting"
    assert step > 20  # not one agent for each step
    assert await trainer.do("close", None, 0.2) is False


async def test_of_two_agents_one_serves_and_the_other_ends_quietly(
    world: World, service: ScriptedAgentService
) -> None:
    first = await start_agent(world, "--control-plane", service.target)
    await service.until(lambda: len(world.agents()) == 1)
    second = await start_agent(world, "--control-plane", service.target)
    async with asyncio.timeout(15):
        assert await second.wait() == 0
    assert first.returncode is None
    assert any(event["event"] == "not_needed" for event in world.log())
    first.terminate()
    async with asyncio.timeout(15):
        assert await first.wait() == 0
    assert list(world.socket_dir.glob("*.sock")) == []
    assert list(world.socket_dir.glob("*.lock")) == []


# ----------------------------------------------------------------------------------- who is served


async def test_a_sidecar_waits_for_its_trainer_before_it_opens_a_session(
    world: World, service: ScriptedAgentService
) -> None:
    agent = await start_agent(world, "--control-plane", service.target)
    await service.until(lambda: len(world.agents()) == 1)
    assert service.streams == []
    trainer = await world.served_trainer(spawn=False, control_plane=None)
    assert await trainer.do("children") == {}
    await trainer.kill()
    assert (await exit_told(service)).signal == 9
    async with asyncio.timeout(15):
        assert await agent.wait() == 0


async def test_a_second_live_trainer_of_a_job_is_refused(
    world: World, service: ScriptedAgentService
) -> None:
    first = await world.served_trainer()
    second = await world.trainer(instance_id="instance-2")
    assert await second.poll_until(1) == ["detached JOB_HAS_ANOTHER_TRAINER"]
    assert "different job ids" in (await second.do("status"))["message"]
    await first.do("step", 1, {"loss": 1.0})
    await service.until(lambda: bool(service.everything("heartbeat")[-1].heartbeat.metrics))
    assert len(service.streams) == 1


async def test_a_restarted_trainer_gets_an_agent_of_its_own(
    world: World, service: ScriptedAgentService
) -> None:
    first = await world.served_trainer()
    await first.kill()
    await world.served_trainer(instance_id="instance-2")
    assert service.stream.hello.instance_id == "instance-2"
    await service.until(lambda: bool(service.everything("goodbye")))


async def test_a_process_that_trains_anew_is_served_anew(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    await trainer.do("new_link", "instance-2")
    await trainer.ready()
    await service.until(lambda: service.stream.hello.instance_id == "instance-2")


async def test_without_an_address_the_trainer_is_told_what_to_do(world: World) -> None:
    trainer = await world.trainer(control_plane=None)
    assert await trainer.poll_until(1) == ["detached CONTROL_PLANE_UNKNOWN"]
    assert "MIDCOURSE_CONTROL_PLANE" in (await trainer.do("status"))["message"]


async def test_an_unsafe_socket_directory_is_refused_by_the_agent(world: World) -> None:
    world.socket_dir.mkdir()
    world.socket_dir.chmod(0o755)
    agent = await start_agent(world, "--control-plane", "127.0.0.1:1")
    async with asyncio.timeout(15):
        assert await agent.wait() == 1
    (event,) = world.log()
    assert "chmod 700" in event["message"]


async def test_a_fenced_agent_without_a_trainer_gives_way(
    world: World, service: ScriptedAgentService
) -> None:
    service.script.acknowledge = False  # so that it lingers
    trainer = await world.served_trainer()
    await trainer.do("step", 1, {"loss": 1.0})
    await trainer.kill()
    await service.until(
        lambda: any(r.event.HasField("exited") for r in service.everything("event"))
    )
    error = StatusError(grpc.StatusCode.ABORTED, "replaced", reason="SESSION_FENCED")
    service.script.refuse_hello = lambda _hello: error
    service.stream.fail(error)
    await world.until_gone(world.agents()[0])


# ----------------------------------------------------------------------- what an agent loads


def test_the_help_needs_no_grpc() -> None:
    script = (
        "import sys\nfrom trainer_agent.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'grpc' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, timeout=60, check=True
    )
    assert b"sidecar" in done.stdout


async def test_a_serving_agent_has_no_training_library_loaded_and_a_trainers_link_no_grpc(
    world: World, service: ScriptedAgentService
) -> None:
    trainer = await world.served_trainer()
    loaded = await trainer.do("modules", "grpc", "asyncio", "torch", "structlog")
    # asyncio is what the scripted trainer itself imports.
    assert loaded == ["asyncio"]
    maps = world.agent_maps()
    assert "cygrpc" in maps
    assert "torch" not in maps
    assert "numpy" not in maps


def test_running_an_agent_imports_no_training_library() -> None:
    script = (
        "import sys\nimport trainer_agent.agent.main\n"
        "heavy = {'torch', 'transformers', 'trl', 'accelerate', 'datasets', 'numpy', 'typer',\n"
        "         'pydantic', 'control_plane', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert 'grpc' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, timeout=60, check=True)


async def test_an_agent_is_small(world: World, service: ScriptedAgentService) -> None:
    trainer = await world.served_trainer()
    for step in range(1, 2001):
        await trainer.do("step", step, {"loss": 1.0, "learning_rate": 1e-4})
    async with asyncio.timeout(20):
        while not any(r.heartbeat.progress.step == 2000 for r in service.everything("heartbeat")):
            await trainer.poll()  # sends what the socket had no room for
    assert world.agent_megabytes() <= 60
