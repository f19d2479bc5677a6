from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.midcourse_command import Midcourse
from tests.support.processes import Process, free_port, serve, until


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    """Undo what a server, or work on a database, does to the logging of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def server() -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as fake:
        fake.add(make_job("my-run"))
        yield fake


@pytest.fixture
def midcourse(server: FakeControlPlane) -> Midcourse:
    return Midcourse(server.address)


@pytest.fixture(scope="session")
def plane_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Process]]:
    """A real `midcourse serve`; each test has jobs of its own."""
    directory = tmp_path_factory.mktemp("plane")
    port = free_port()
    process = serve(port, directory)
    try:
        until(lambda: "serving" in process.tail(), "the control plane serves")
        yield f"127.0.0.1:{port}", process
    finally:
        process.end()


@pytest.fixture
def address(plane_process: tuple[str, Process]) -> str:
    return plane_process[0]
