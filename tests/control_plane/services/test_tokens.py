"""Tokens: told from their secrets, worthless once revoked, and when they were last used."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import pytest

from control_plane.domain.access import Access, Role
from control_plane.domain.errors import Reason, Refusal
from control_plane.services import access
from control_plane.services.access import Secrets, TokenService
from tests.support.use_cases import Clock, UseCases, eventually

OPERATOR = Access(Role.OPERATOR)


@pytest.fixture
def tokens(plane: UseCases, clock: Clock) -> TokenService:
    numbers = itertools.count(1)
    secrets = Secrets(lambda: f"secret-{next(numbers)}", lambda secret: f"digest of {secret}")
    return TokenService(plane.store, clock, secrets)


async def used(tokens: TokenService) -> list[object]:
    page = await tokens.list(show_inactive=True, beyond=None, limit=10)
    return [token.last_use_time for token in page.tokens]


async def test_a_token_is_good_until_it_is_revoked(tokens: TokenService) -> None:
    made, secret = await tokens.create("ann", OPERATOR, creator="root")
    assert secret == "secret-1"
    assert (await tokens.recognize(secret)).id == made.id
    with pytest.raises(Refusal) as refused:
        await tokens.recognize("secret-2")
    assert refused.value.reason is Reason.TOKEN_UNKNOWN

    told: list[str] = []
    tokens.on_revoked(told.append)
    revoked = await tokens.revoke(made.id)
    assert told == [made.id]
    with pytest.raises(Refusal) as refused:
        await tokens.recognize(secret)
    assert refused.value.reason is Reason.TOKEN_REVOKED
    assert (await tokens.revoke(made.id)).revoke_time == revoked.revoke_time
    assert await tokens.ended([made.id, "0" * 12]) == {made.id}
    with pytest.raises(Refusal) as refused:
        await tokens.revoke("0" * 12)
    assert refused.value.reason is Reason.TOKEN_NOT_FOUND


async def test_a_token_ends_by_itself(tokens: TokenService, clock: Clock) -> None:
    _, short = await tokens.create("ann", OPERATOR, creator="root", lifetime=timedelta(seconds=60))
    _, for_ever = await tokens.create("bob", OPERATOR, creator="root", lifetime=timedelta())
    clock.advance(61)
    with pytest.raises(Refusal) as refused:
        await tokens.recognize(short)
    assert refused.value.reason is Reason.TOKEN_EXPIRED
    clock.advance(400 * 86_400)
    assert (await tokens.recognize(for_ever)).principal == "bob"
    active = await tokens.list(show_inactive=False, beyond=None, limit=10)
    assert [token.principal for token in active.tokens] == ["bob"]


async def test_to_validate_makes_nothing(tokens: TokenService) -> None:
    _, secret = await tokens.create("ann", OPERATOR, creator="root", validate_only=True)
    assert secret == ""
    assert await used(tokens) == []


async def test_tokens_are_listed_page_by_page(tokens: TokenService) -> None:
    for name in ("a", "b", "c"):
        await tokens.create(name, OPERATOR, creator="root")
    first = await tokens.list(show_inactive=False, beyond=None, limit=2)
    rest = await tokens.list(show_inactive=False, beyond=first.next_beyond, limit=2)
    assert [t.principal for t in (*first.tokens, *rest.tokens)] == ["c", "b", "a"]
    assert rest.next_beyond is None


async def test_the_last_use_is_known_at_once_and_written_down_once_a_minute(
    tokens: TokenService, plane: UseCases, clock: Clock
) -> None:
    _, secret = await tokens.create("ann", OPERATOR, creator="root")
    began = clock.now
    await tokens.recognize(secret)
    assert await used(tokens) == [began]
    await tokens.write_uses()
    clock.advance(59)
    await tokens.recognize(secret)
    assert await used(tokens) == [began]
    before = plane.store.writes
    await tokens.write_uses()
    assert plane.store.writes == before, "there is nothing to write"
    clock.advance(1)
    await tokens.recognize(secret)
    assert await used(tokens) == [clock.now]


async def test_uses_that_could_not_be_written_down_are_later(
    tokens: TokenService, plane: UseCases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_WRITE_SECONDS", 0.001)
    _, secret = await tokens.create("ann", OPERATOR, creator="root")
    await tokens.recognize(secret)
    plane.store.away = True
    running = asyncio.create_task(tokens.run())
    await eventually(lambda: plane.store.refused >= 2, "that it has tried")
    assert not running.done()
    plane.store.away = False
    await eventually(lambda: not tokens._used, "that it is written down")
    running.cancel()
    assert await used(tokens) == [clock.now]


async def test_what_is_no_matter_of_the_store_ends_the_writing(
    tokens: TokenService, plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_work: object) -> None:
        raise Refusal(Reason.PROTOCOL_VIOLATION, "a bug")

    monkeypatch.setattr(access, "_WRITE_SECONDS", 0.001)
    _, secret = await tokens.create("ann", OPERATOR, creator="root")
    await tokens.recognize(secret)
    monkeypatch.setattr(plane.store, "write", refuse)
    with pytest.raises(Refusal, match="a bug"):
        await asyncio.wait_for(tokens.run(), 30)
