from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.midcourse_command import Midcourse


@pytest.fixture
def server() -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as fake:
        fake.add(make_job("my-run"))
        yield fake


@pytest.fixture
def midcourse(server: FakeControlPlane) -> Midcourse:
    return Midcourse(server.address)
