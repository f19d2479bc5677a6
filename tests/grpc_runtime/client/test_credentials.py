"""Tokens, authorities and certificates of clients."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from grpc_runtime.client.credentials import NO_CREDENTIALS, Credentials, CredentialsError
from trainer_agent.link.spawn import FILE_VARIABLES

SECRET = "mc_secret"
FAR = ("10.0.0.1:1", "plane.example:443", "dns:///plane.example:1", "ipv4:10.0.0.1:1", "xds:///a")
NEAR = ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/a/b", "dns:localhost:1", "ipv4:127.0.0.1:1")


def token_file(folder: Path, text: str = SECRET, mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("address", FAR + NEAR)
def test_a_token_crosses_no_network_in_clear(address: str, tmp_path: Path) -> None:
    for credentials in (Credentials(token=SECRET), Credentials(token_file=token_file(tmp_path))):
        if address in NEAR:
            credentials.check_for(address)
        else:
            with pytest.raises(CredentialsError, match="MIDCOURSE_TLS_CA") as refused:
                credentials.check_for(address)
            assert SECRET not in str(refused.value)
        credentials.but(ca="system").check_for(address)
    NO_CREDENTIALS.check_for(address)


def test_a_secret_is_not_shown() -> None:
    assert SECRET not in repr(Credentials(token=SECRET))
    with pytest.raises(CredentialsError) as refused:
        Credentials(token=f"{SECRET} x").metadata()
    assert SECRET not in str(refused.value)
    assert "MIDCOURSE_TOKEN" in str(refused.value)


def test_a_token_of_a_file_is_read_anew(tmp_path: Path) -> None:
    path = token_file(tmp_path, f"  {SECRET}\n")
    credentials = Credentials(token_file=path)
    assert credentials.metadata() == (("authorization", f"Bearer {SECRET}"),)
    path.write_text("mc_other")
    assert credentials.metadata() == (("authorization", "Bearer mc_other"),)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"two words", b"two\nlines"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CredentialsError, match=str(path)):
        Credentials(token_file=path).metadata()


def test_it_is_said_once_that_others_can_read_a_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = token_file(tmp_path, mode=0o644)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            Credentials(token_file=path).metadata()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "chmod 600" in record.getMessage()
    assert SECRET not in record.getMessage()


def test_what_is_given_comes_before_the_environment(tmp_path: Path) -> None:
    environ = {
        "MIDCOURSE_TOKEN": SECRET,
        "MIDCOURSE_TOKEN_FILE": "/a",
        "MIDCOURSE_TLS_CA": "/ca.pem",
        "MIDCOURSE_CLIENT_CERT": "/c",
        "MIDCOURSE_CLIENT_KEY": "/k",
    }
    said = Credentials.from_environment(environ)
    assert said == Credentials(SECRET, Path("/a"), "/ca.pem", Path("/c"), Path("/k"))
    assert said.but() == said
    path = token_file(tmp_path, "mc_given")
    given = said.but(token_file=path, ca="system")
    assert given.metadata() == (("authorization", "Bearer mc_given"),)
    assert (given.ca, given.certificate) == ("system", Path("/c"))
    assert Credentials.from_environment({}) == NO_CREDENTIALS
    assert not NO_CREDENTIALS.is_secure
    # The trainer makes these paths absolute for its agent, which runs elsewhere.
    assert set(FILE_VARIABLES) == set(environ) - {"MIDCOURSE_TOKEN"}


@pytest.mark.parametrize(
    ("credentials", "says"),
    [
        (Credentials(ca="/nowhere.pem"), "cannot read the TLS file /nowhere.pem"),
        (Credentials(certificate=Path("/c")), "belong together"),
        (Credentials(key=Path("/k")), "belong together"),
        (Credentials(ca=__file__), "holds no PEM block"),
    ],
)
def test_files_that_can_not_be_used(credentials: Credentials, says: str) -> None:
    with pytest.raises(CredentialsError, match=says):
        credentials.channel_credentials()
