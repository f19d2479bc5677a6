"""Each promise that is broken on purpose is found to be, by its own validator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.history import History, recording
from tests.faults.mutant_scenes import SCENES, Scene, an_older_session_elsewhere
from tests.faults.mutant_stage import Place
from tests.faults.mutants import MUTANTS
from tests.faults.validators import VALIDATORS, validate
from tests.faults.violations import Violation
from tests.support.postgres import PostgresServer
from tests.support.processes import ROOT

QUICK = {
    "request-id-forgotten",
    "position-left-out",
    "rolled-back-sent-again",
}
"""Part of `make test`; the others are for `make mutants`."""
ON_POSTGRESQL = {"no-look-after-listening", "notification-is-data"}
DISTINCT = list(dict.fromkeys([*SCENES.values(), an_older_session_elsewhere]))
QUICK_SCENES = {SCENES[name] for name in QUICK}
SCENES_ON_POSTGRESQL = {SCENES[name] for name in ON_POSTGRESQL} | {an_older_session_elsewhere}

Server = Callable[[], PostgresServer]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """A database's server, started where one is needed."""

    def started() -> PostgresServer:
        made: PostgresServer = request.getfixturevalue("postgres_server")
        return made

    return started


async def violations(scene: Scene, place: Place) -> list[Violation]:
    """What validators find in a scene, read from the file that it was written to."""
    path = place.directory / "history.jsonl"
    mutated = MUTANTS[place.mutant].patched() if place.mutant else contextlib.nullcontext()
    with recording(path) as recorder, mutated:
        await scene(place, recorder)
    return validate(History.load(path))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in MUTANTS]
)
async def test_its_validator_notices(name: str, tmp_path: Path, server: Server) -> None:
    place = Place(tmp_path, name, server() if name in ON_POSTGRESQL else None)
    found = await violations(SCENES[name], place)
    assert MUTANTS[name].breaks in {violation.guarantee for violation in found}, found


@pytest.mark.long
async def test_it_is_noticed_between_servers(tmp_path: Path, server: Server) -> None:
    found = await violations(an_older_session_elsewhere, Place(tmp_path, "no-fence", server()))
    assert "fenced" in {violation.guarantee for violation in found}, found


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(s, marks=() if s in QUICK_SCENES else pytest.mark.long, id=s.__name__)
        for s in DISTINCT
    ],
)
async def test_the_same_without_a_mutant_is_good(
    scene: Scene, tmp_path: Path, server: Server
) -> None:
    place = Place(tmp_path, "", server() if scene in SCENES_ON_POSTGRESQL else None)
    found = await violations(scene, place)
    assert not found, "\n".join(map(str, found))


def test_each_validator_has_a_mutant_to_notice() -> None:
    assert {mutant.breaks for mutant in MUTANTS.values()} == VALIDATORS.keys()
    assert MUTANTS.keys() == SCENES.keys()


def test_each_mutant_is_told_of() -> None:
    told = (ROOT / "docs" / "faults.md").read_text()
    for name, mutant in MUTANTS.items():
        assert f"| `{name}` | {mutant.what}" in told
