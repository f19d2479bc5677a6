"""Bearer tokens, policies and what is told of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import grpc
import pytest

from grpc_runtime.auth import (
    AnonymousAuthenticator,
    Caller,
    CertificateAuthenticator,
    FirstAuthenticator,
    MissingCredentialsError,
    Principal,
    current_call,
)
from grpc_runtime.bearer import (
    BearerAuthenticator,
    bearer_metadata,
    digest,
    hide_secrets,
    new_secret,
)
from grpc_runtime.errors import StatusError, from_rpc_error
from grpc_runtime.observing import FinishedCall
from grpc_runtime.policy import ANY_CALLER, ANYBODY, Policy

CODE = grpc.StatusCode
ADA = Principal("ada", frozenset({"viewer"}), credential="1")


class Book:
    """Knows secrets, and counts who asks."""

    def __init__(self, **known: Principal) -> None:
        self.known = known
        self.asked: list[str] = []
        self.over: set[str] = set()

    async def principal(self, secret: str) -> Principal:
        self.asked.append(secret)
        if secret not in self.known:
            raise StatusError(CODE.UNAUTHENTICATED, "unknown", reason="TOKEN_UNKNOWN")
        return self.known[secret]

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        return self.over.intersection(credentials)


def caller(secret: str | None, **auth_context: list[bytes]) -> Caller:
    metadata = () if secret is None else bearer_metadata(secret)
    return Caller("/a.B/C", metadata, "ipv4:10.0.0.1:1", auth_context)


def test_secrets_can_be_told_from_other_texts_and_from_each_other() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {hide_secrets(each) for each in made} == {"mc_…"}
    assert {len(each) for each in made} == {46}
    assert len({digest(each) for each in made}) == 100


async def test_whose_a_secret_is_is_remembered_for_a_moment() -> None:
    now = 0.0
    book = Book(s=ADA)
    bearer = BearerAuthenticator(book, cache_seconds=2, clock=lambda: now)
    for moment, asked in ((0.0, 1), (1.9, 1), (2.0, 2), (3.9, 2), (4.1, 3)):
        now = moment
        assert await bearer.authenticate(caller("s")) == ADA
        assert len(book.asked) == asked, moment
    bearer.forget("2")
    await bearer.authenticate(caller("s"))
    assert len(book.asked) == 3
    bearer.forget("1")
    await bearer.authenticate(caller("s"))
    assert len(book.asked) == 4
    for _ in range(2):  # what is not known is asked for each time
        with pytest.raises(StatusError, match="unknown"):
            await bearer.authenticate(caller("other"))
    assert len(book.asked) == 6


async def test_among_many_strangers_only_secrets_that_were_good_are_looked_at() -> None:
    now = 0.0
    book = Book(s=ADA, t=ADA)
    bearer = BearerAuthenticator(book, cache_seconds=2, clock=lambda: now)
    await bearer.authenticate(caller("s"))
    now = 100.0
    too_many = StatusError(CODE.RESOURCE_EXHAUSTED, "too many", reason="TOO_MANY")
    assert await bearer.authenticate(replace(caller("s"), strangers=too_many)) == ADA
    with pytest.raises(StatusError, match="too many"):
        await bearer.authenticate(replace(caller("t"), strangers=too_many))
    assert book.asked == ["s", "s"]
    del book.known["s"]  # it is worth nothing any more, and looked at once
    now = 200.0
    with pytest.raises(StatusError, match="unknown"):
        await bearer.authenticate(replace(caller("s"), strangers=too_many))
    with pytest.raises(StatusError, match="too many"):
        await bearer.authenticate(replace(caller("s"), strangers=too_many))


@pytest.mark.parametrize("value", [None, "", "s", "Basic s", b"Bearer s"])
async def test_without_a_token_it_is_said_where_one_comes_from(value: Any) -> None:
    metadata = () if value is None else (("authorization", value),)
    with pytest.raises(MissingCredentialsError, match="MIDCOURSE_TOKEN_FILE"):
        await BearerAuthenticator(Book(s=ADA)).authenticate(Caller("/a.B/C", metadata, "", {}))


async def test_the_first_kind_of_credentials_decides() -> None:
    bob = Principal("bob", frozenset({"operator"}))
    first = FirstAuthenticator(
        [BearerAuthenticator(Book(s=ADA)), CertificateAuthenticator({"bob": bob})]
    )
    assert first.verifies
    names = {"x509_common_name": [b"bob"]}
    assert await first.authenticate(caller("s", **names)) == ADA
    assert await first.authenticate(caller(None, **names)) == bob
    with pytest.raises(StatusError, match="unknown"):  # a wrong token is no reason to look further
        await first.authenticate(caller("wrong", **names))
    with pytest.raises(MissingCredentialsError, match="token"):
        await first.authenticate(caller(None))
    assert not FirstAuthenticator([AnonymousAuthenticator()]).verifies


POLICY = Policy(
    {
        "/test.Echo/Read": {"viewer", "operator"},
        "/test.Echo/Change": {"operator"},
        "/test.Echo/Who": ANY_CALLER,
        "/test.Echo/Open": ANYBODY,
        "/test.Echo/Nobody": set(),
    }
)


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("viewer", {"Read", "Who", "Open"}),
        ("operator", {"Read", "Change", "Who", "Open"}),
        ("agent", {"Who", "Open"}),
        ("admin", {"Read", "Change", "Who", "Open"}),
        ("anybody", {"Who", "Open"}),
    ],
)
def test_what_a_policy_allows(role: str, may: set[str]) -> None:
    caller = Principal("x", frozenset({role}))
    for name in ("Read", "Change", "Who", "Open", "Nobody", "New"):
        if name in may:
            POLICY.check(caller, f"/test.Echo/{name}")
            continue
        with pytest.raises(StatusError) as denied:
            POLICY.check(caller, f"/test.Echo/{name}")
        assert denied.value.code is CODE.PERMISSION_DENIED
        assert denied.value.reason == ("NO_POLICY" if name == "New" else "ROLE_REQUIRED")


async def _echo(request: bytes, context: Any) -> bytes:
    call = current_call()
    return b"nobody" if call is None else call.principal.name.encode()


async def _wait(requests: Any, context: Any) -> Any:
    yield b"began"
    await asyncio.Event().wait()


def _handlers() -> dict[str, Any]:
    echo: Any = grpc.unary_unary_rpc_method_handler(_echo)
    names = ("Read", "Change", "Who", "Open", "Nobody", "New")
    return {
        **dict.fromkeys(names, echo),
        "Wait": grpc.stream_stream_rpc_method_handler(_wait),
    }


async def test_the_policy_is_asked_for_every_call(serve: Any, events: list[Any]) -> None:
    seen: list[FinishedCall] = []
    service = {"authenticator": BearerAuthenticator(Book(s=ADA)), "policy": POLICY}
    async with serve(service=service, **_handlers()) as (server, channel):
        server.observe(seen.append)

        async def call(name: str, who: Any) -> str:
            try:
                answer = await channel.unary_unary(f"/test.Echo/{name}")(b"hi", metadata=who)
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error).reason
            return str(answer, "utf-8")

        right = bearer_metadata("s")
        assert await call("Open", ()) == "nobody"
        assert await call("Read", ()) == "CREDENTIALS_REQUIRED"
        assert await call("Read", right) == "ada"
        assert await call("Change", right) == "ROLE_REQUIRED"
        assert await call("New", right) == "NO_POLICY"
        assert await call("None", ()) == "CREDENTIALS_REQUIRED"
        assert await call("None", right) == "METHOD_NOT_FOUND"
    told = [
        (each.method.rpartition("/")[2], each.principal and each.principal.name, each.reason)
        for each in seen
    ]
    assert told == [
        ("Open", None, ""),
        ("Read", None, "CREDENTIALS_REQUIRED"),
        ("Read", "ada", ""),
        ("Change", "ada", "ROLE_REQUIRED"),
        ("New", "ada", "NO_POLICY"),
        ("None", None, "CREDENTIALS_REQUIRED"),
        ("None", "ada", "METHOD_NOT_FOUND"),
    ]
    denied = seen[3]
    assert (denied.code, denied.request, denied.known) == (CODE.PERMISSION_DENIED, b"hi", True)
    assert denied.peer.startswith("ipv4:127.0.0.1:")
    assert denied.request_id
    assert denied.duration > 0
    assert not seen[-1].known


async def test_an_observer_that_fails_changes_nothing(serve: Any, events: list[Any]) -> None:
    def fail(call: FinishedCall) -> None:
        raise ValueError("no")

    async with serve(**_handlers()) as (server, channel):
        server.observe(fail)
        assert await channel.unary_unary("/test.Echo/Read")(b"") == b"anonymous"
    assert any(each["event"] == "an observer of calls failed" for each in events)


async def test_calls_end_with_the_credentials_behind_them(serve: Any) -> None:
    book = Book(s=ADA, t=Principal("bob", frozenset({"viewer"}), credential="2"))
    async with serve(service={"authenticator": BearerAuthenticator(book)}, **_handlers()) as (
        server,
        channel,
    ):
        streams = []
        for secret in ("s", "s", "t"):
            stream = channel.stream_stream("/test.Echo/Wait")(metadata=bearer_metadata(secret))
            assert await stream.read() == b"began"
            streams.append(stream)
        server.end_calls("1")
        for stream in streams[:2]:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            error = from_rpc_error(ended.value)
            assert (error.code, error.reason) == (CODE.UNAUTHENTICATED, "TOKEN_ENDED")
        assert not streams[2].done()
        streams[2].cancel()
        server.end_calls("1")  # nothing is left of it
