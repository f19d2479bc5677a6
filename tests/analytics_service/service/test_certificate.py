"""The certificate that the service shows to the control plane gives no caller any rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from analytics_service.config import AnalyticsSettings
from analytics_service.server import _plane_credentials
from control_plane.config import ServerSettings
from control_plane.server import ControlPlane
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.client.variables import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    TOKEN_VARIABLE,
)
from grpc_runtime.service_settings import CertPrincipal
from tests.support.analytics import running_analytics
from tests.support.certificates import Authority

OPS = CertPrincipal(principal="ops", role="operator")


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
async def address(tmp_path: Path, ca: Authority) -> AsyncIterator[str]:
    """Of a control plane that asks for certificates, and lets ops.example in."""
    files = ca.server()
    settings = ServerSettings(
        listen="127.0.0.1:0",
        database=str(tmp_path / "control.db"),
        tls_cert=files.certificate,
        tls_key=files.key,
        auth="mtls",
        tls_client_ca=ca.file,
        cert_principals={"ops.example": OPS},
    )
    async with ControlPlane.open(settings) as plane:
        yield f"127.0.0.1:{plane.service.address.port}"


def test_a_certificate_of_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CA_VARIABLE, "/ca.pem")
    monkeypatch.setenv(CERT_VARIABLE, "/cert.pem")
    monkeypatch.setenv(KEY_VARIABLE, "/key.pem")
    monkeypatch.setenv(TOKEN_VARIABLE, "mc_mine")
    assert _plane_credentials(AnalyticsSettings()) == Credentials(ca="/ca.pem")


@pytest.mark.parametrize(("name", "is_warned_of"), [("ops.example", True), ("chat", False)])
async def test_a_certificate_that_has_rights_is_warned_of(
    tmp_path: Path, ca: Authority, address: str, name: str, is_warned_of: bool
) -> None:
    files = ca.issue(name, file="own")
    with capture_logs() as logs:
        async with running_analytics(
            tmp_path,
            control_plane=address,
            control_plane_ca=str(ca.file),
            control_plane_cert=files.certificate,
            control_plane_key=files.key,
        ):
            await asyncio.gather(
                *(task for task in asyncio.all_tasks() if task.get_name() == "own rights")
            )
    warned = [each for each in logs if "cert_principals" in each["event"]]
    assert [each["principal"] for each in warned] == (["ops"] if is_warned_of else [])
