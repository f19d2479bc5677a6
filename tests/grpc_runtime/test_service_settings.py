"""The settings of a service that are about who may call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane.config import ServerSettings
from grpc_runtime.auth import AnonymousAuthenticator, CertificateAuthenticator, FirstAuthenticator
from grpc_runtime.bearer import BearerAuthenticator
from grpc_runtime.security import authenticator, tls_files
from grpc_runtime.settings import SettingsError
from grpc_runtime.tls import TlsFiles

CERT = {"tls_cert": "/s.crt", "tls_key": "/s.key"}


def load(**flags: Any) -> ServerSettings:
    return ServerSettings.load(flags={"listen": "127.0.0.1:0", **flags})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"auth": "tokens"}, "allowed are none, token, mtls and token,mtls"),
        ({"auth": "none,token"}, "allowed are"),
        ({"auth": ""}, "allowed are"),
        ({"tls_cert": "/s.crt"}, "belong together"),
        ({"tls_key": "/s.key"}, "belong together"),
        ({"tls_client_ca": "/ca.pem"}, "tls_client_ca needs"),
        ({**CERT, "auth": "mtls"}, "needs tls_client_ca"),
        (
            {"auth": "token", "cert_principals": {"a": {"principal": "a", "role": "viewer"}}},
            "no effect without",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load(**flags)


@pytest.mark.parametrize(
    "grant",
    [
        {"principal": "a", "role": "boss"},
        {"principal": "a", "role": "agent"},
        {"principal": "A b", "role": "viewer"},
        {"principal": "guard", "role": "viewer"},
        {"principal": "a", "role": "admin", "jobs": ["x"]},
        {"principal": "a", "role": "viewer", "selector": "("},
        {"principal": "a", "role": "viewer", "job": "x"},
    ],
)
def test_what_certificates_mean_is_checked_as_tokens_are(grant: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="cert_principals"):
        load(**CERT, tls_client_ca="/ca.pem", auth="mtls", cert_principals={"a.example": grant})


def test_from_settings_to_authentication(tmp_path: Path) -> None:
    bearer = BearerAuthenticator()
    assert isinstance(authenticator(load(), bearer), AnonymousAuthenticator)
    assert authenticator(load(auth="token"), bearer) is bearer
    file = tmp_path / "midcourse.toml"
    file.write_text(
        """
        [control_plane]
        tls_cert = "~/s.crt"
        tls_key = "/s.key"
        tls_client_ca = "/ca.pem"
        auth = "token, mtls"

        [control_plane.cert_principals]
        "ops.example" = { principal = "ops", role = "operator", selector = "team=nlp" }
        """
    )
    settings = ServerSettings.load(config_file=file)
    assert tls_files(settings) == TlsFiles(Path.home() / "s.crt", Path("/s.key"), Path("/ca.pem"))
    both = authenticator(settings, bearer)
    assert isinstance(both, FirstAuthenticator)
    assert both.verifies
    assert isinstance(
        authenticator(load(**CERT, tls_client_ca="/ca.pem", auth="mtls"), bearer),
        CertificateAuthenticator,
    )
    assert tls_files(load(tls_cert="", tls_key="")) is None
