"""TLS from files: what is served, what is asked of clients, what happens when files change."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_runtime.auth import CertificateAuthenticator, Principal, current_call
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.client.errors import MidcourseError, UnavailableError
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.client.target import Target
from grpc_runtime.client.transport import Transport
from grpc_runtime.server import Service
from grpc_runtime.tls import TlsError, TlsFiles
from tests.support.certificates import Authority, Files

TARGET = Target("example", "EXAMPLE_ADDRESS", "127.0.0.1:1")
OPS = Principal("ops", frozenset({"operator"}))


async def whoami(request: bytes, context: Any) -> bytes:
    call = current_call()
    assert call is not None
    return call.principal.name.encode()


def add_whoami(servicer: Any, server: Any) -> None:
    handler: Any = grpc.unary_unary_rpc_method_handler(whoami)
    generic = grpc.method_handlers_generic_handler("example.Who", {"AmI": handler})
    server.add_generic_rpc_handlers((generic,))


@contextlib.asynccontextmanager
async def serving(files: TlsFiles | None, **options: Any) -> AsyncIterator[str]:
    service = Service("127.0.0.1:0", domain="example", tls=files, grace=1.0, **options)
    service.add(add_whoami, None)
    async with service:
        yield f"localhost:{service.address.port}"


async def ask(address: str, credentials: Credentials) -> str:
    """Who one is for the server."""

    def work() -> str:
        transport = Transport(
            TARGET, address, timeout=10.0, retry=RetryPolicy(attempts=1), credentials=credentials
        )
        try:
            method: Any = transport.channel.unary_unary("/example.Who/AmI")
            answer: bytes = transport.call(method, b"")
            return answer.decode()
        finally:
            transport.close()

    return await asyncio.to_thread(work)


async def trouble(address: str, credentials: Credentials) -> str:
    with pytest.raises(UnavailableError) as failed:
        await ask(address, credentials)
    return failed.value.message


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def tls(files: Files, client_ca: Path | None = None) -> TlsFiles:
    return TlsFiles(files.certificate, files.key, client_ca)


async def test_a_client_that_believes_the_authority_is_served(ca: Authority) -> None:
    async with serving(tls(ca.server())) as address:
        assert await ask(address, Credentials(ca=str(ca.file))) == "anonymous"
        # What is wrong otherwise is said, with what to do.
        assert "MIDCOURSE_TLS_CA" in await trouble(address, Credentials())
        other = Authority(ca.folder, "other")
        message = await trouble(address, Credentials(ca=str(other.file)))
        assert "authority that is not believed" in message
        assert "MIDCOURSE_TLS_CA" in message
    async with serving(None) as address:
        message = await trouble(address, Credentials(ca=str(ca.file)))
        assert "speaks no TLS" in message


async def test_a_certificate_of_another_host_or_of_the_past_is_not_believed(ca: Authority) -> None:
    async with serving(tls(ca.issue("elsewhere.example"))) as address:
        message = await trouble(address, Credentials(ca=str(ca.file)))
        assert "not for this host name" in message
    past = datetime.now(UTC) - timedelta(days=1)
    async with serving(tls(ca.issue("localhost", not_after=past))) as address:
        assert "expired" in await trouble(address, Credentials(ca=str(ca.file)))


async def test_a_client_certificate_tells_who_calls(ca: Authority, tmp_path: Path) -> None:
    authenticator = CertificateAuthenticator({"ops@example.com": OPS})
    files = tls(ca.server(), ca.file)

    def with_certificate(of: Files) -> Credentials:
        return Credentials(ca=str(ca.file), certificate=of.certificate, key=of.key)

    async with serving(files, authenticator=authenticator) as address:
        known = ca.issue("host.example", "ops@example.com", file="ops")
        assert await ask(address, with_certificate(known)) == "ops"
        unknown = ca.issue("eve@example.com", file="eve", common_name="eve")
        with pytest.raises(MidcourseError) as refused:
            await ask(address, with_certificate(unknown))
        assert refused.value.reason == "CERTIFICATE_UNKNOWN"
        assert "eve@example.com, eve" in refused.value.message
        stranger = Authority(tmp_path / "other").issue("ops@example.com", file="ops")
        assert "MIDCOURSE_CLIENT_CERT" in await trouble(address, with_certificate(stranger))
        assert "MIDCOURSE_CLIENT_CERT" in await trouble(address, Credentials(ca=str(ca.file)))


async def test_the_common_name_counts_where_no_other_name_does(ca: Authority) -> None:
    authenticator = CertificateAuthenticator({"ops": OPS})
    async with serving(tls(ca.server(), ca.file), authenticator=authenticator) as address:
        files = ca.issue("host.example", file="ops", common_name="ops")
        credentials = Credentials(ca=str(ca.file), certificate=files.certificate, key=files.key)
        assert await ask(address, credentials) == "ops"


async def test_new_files_are_used_and_bad_ones_are_not(
    ca: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Authority(ca.folder, "other")
    files = ca.server()
    async with serving(tls(files)) as address:
        assert await ask(address, Credentials(ca=str(ca.file))) == "anonymous"
        good = files.key.read_bytes()
        of_another = ca.issue("localhost", file="another").key.read_bytes()
        for bad in (b"", b"-----BEGIN PRIVATE KEY-----\nnonsense", of_another):
            files.key.write_bytes(bad)
            for _ in range(2):
                assert await ask(address, Credentials(ca=str(ca.file))) == "anonymous"
        files.key.unlink()
        assert await ask(address, Credentials(ca=str(ca.file))) == "anonymous"
        files.key.write_bytes(good)
        assert other.server() == files  # over the old ones
        assert await ask(address, Credentials(ca=str(other.file))) == "anonymous"
        assert "not believed" in await trouble(address, Credentials(ca=str(ca.file)))
    # Once for each state of the files: they were looked at for every connection.
    assert capsys.readouterr().out.count("new TLS files can not be used") == 4


async def test_a_symbolic_link_that_is_turned_counts_as_a_change(
    ca: Authority, tmp_path: Path
) -> None:
    """As Kubernetes replaces the files of a secret."""
    other = Authority(tmp_path / "other")
    first, second = ca.server(), other.server()
    data = tmp_path / "data"
    data.symlink_to(first.certificate.parent)
    files = TlsFiles(data / first.certificate.name, data / first.key.name)
    async with serving(files) as address:
        assert await ask(address, Credentials(ca=str(ca.file))) == "anonymous"
        turned = tmp_path / "turned"
        turned.symlink_to(second.certificate.parent)
        os.replace(turned, data)  # noqa: PTH105 - Path.replace would follow neither
        assert await ask(address, Credentials(ca=str(other.file))) == "anonymous"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda files: files.key.unlink(), "cannot read the TLS file"),
        (lambda files: files.certificate.write_text("x"), "no PEM block of kind CERTIFICATE"),
        (lambda files: files.key.write_text("x"), "no PEM block of kind PRIVATE KEY"),
        (
            lambda files: files.key.write_text("-----BEGIN PRIVATE KEY-----\nx"),
            "can not be used with the key",
        ),
    ],
)
def test_files_that_can_not_be_used_are_refused_at_once(
    ca: Authority, break_it: Any, says: str
) -> None:
    files = ca.server()
    break_it(files)
    with pytest.raises(TlsError, match=says):
        tls(files).credentials()


def test_a_key_of_another_certificate_is_refused(ca: Authority) -> None:
    files = TlsFiles(ca.server().certificate, ca.issue("localhost", file="other").key)
    with pytest.raises(TlsError, match="key values mismatch"):
        files.credentials()


def test_damaged_authorities_are_refused(ca: Authority) -> None:
    ca.file.write_text("-----BEGIN CERTIFICATE-----\nx")
    with pytest.raises(TlsError, match="authorities"):
        tls(ca.server(), ca.file).credentials()
