"""The asynchronous client over TLS, with a token, a certificate or neither."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.client import AsyncClient, RetryPolicy, UnauthenticatedError, UnavailableError
from control_plane.config import ServerSettings
from control_plane.domain.access import Access, Role
from control_plane.server import ControlPlane
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.service_settings import CertPrincipal
from tests.support.certificates import Authority

ONCE = RetryPolicy(attempts=1)


@contextlib.asynccontextmanager
async def served(folder: Path, ca: Authority, **settings: Any) -> AsyncIterator[ControlPlane]:
    files = ca.server()
    given = ServerSettings(
        listen="127.0.0.1:0",
        database=str(folder / "control.db"),
        tls_cert=files.certificate,
        tls_key=files.key,
        **settings,
    )
    async with ControlPlane.open(given) as plane:
        yield plane


def client_of(plane: ControlPlane, credentials: Credentials) -> AsyncClient:
    return AsyncClient(
        f"127.0.0.1:{plane.service.address.port}", credentials=credentials, retry=ONCE
    )


async def test_over_tls_with_a_token(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    async with served(tmp_path, ca, auth="token") as plane:
        _, secret = await plane.tokens.create("ops", Access(Role.OPERATOR), creator="test")
        async with client_of(plane, Credentials(ca=str(ca.file), token=secret)) as client:
            assert (await client.get_caller()).principal == "ops"
            assert (await client.create_job("j")).name == "jobs/j"
            assert [job.name async for job in client.list_jobs()] == ["jobs/j"]
            async for event in client.watch_jobs():
                assert event.job.name == "jobs/j"
                break
        async with client_of(plane, Credentials(ca=str(ca.file))) as nobody:
            with pytest.raises(UnauthenticatedError):
                await nobody.get_caller()
        stranger = Authority(tmp_path / "stranger")
        async with client_of(plane, Credentials(ca=str(stranger.file), token=secret)) as wary:
            with pytest.raises(UnavailableError):  # it does not show its token to whoever that is
                await wary.get_caller()


async def test_over_tls_with_a_certificate(tmp_path: Path) -> None:
    ca = Authority(tmp_path / "ca")
    ops = CertPrincipal(principal="ops", role="viewer")
    settings = {"auth": "mtls", "tls_client_ca": ca.file, "cert_principals": {"ops.example": ops}}
    async with served(tmp_path, ca, **settings) as plane:

        def shown(name: str) -> Credentials:
            files = ca.issue(name, file=name)
            return Credentials(ca=str(ca.file), certificate=files.certificate, key=files.key)

        async with client_of(plane, shown("ops.example")) as client:
            assert (await client.get_caller()).principal == "ops"
        async with client_of(plane, shown("else.example")) as unknown:
            with pytest.raises(UnauthenticatedError, match="nobody here goes by"):
                await unknown.get_caller()
        async with client_of(plane, Credentials(ca=str(ca.file))) as bare:
            with pytest.raises(UnavailableError):
                await bare.get_caller()
