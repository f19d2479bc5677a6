"""Tokens: found by the digests of their secrets, listed, revoked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from control_plane.domain.access import Access, Role, Token
from control_plane.services.ports import Store, Transaction
from tests.support.domain_values import NOW, SECOND

DAY = timedelta(days=1)


def token(number: int = 1, **fields: object) -> Token:
    made = Token(
        id=f"{number:012x}",
        principal="ops",
        access=Access(Role.OPERATOR, "team=nlp", ("a", "b*")),
        description="for the tests",
        creator="root",
        create_time=NOW,
        expire_time=NOW + DAY,
    )
    return replace(made, **fields)  # type: ignore[arg-type]  # names of fields


class TokensContract:
    """What a store keeps of tokens."""

    async def test_a_token_is_found_as_it_was_stored(self, store: Store) -> None:
        stored = await store.write(lambda tx: tx.insert_token(token(), "digest-1"))
        assert stored == token(key=stored.key)
        for_ever = await store.write(
            lambda tx: tx.insert_token(token(2, expire_time=None), "digest-2")
        )

        def found(tx: Transaction) -> list[Token | None]:
            return [
                tx.token(stored.id),
                tx.token_by_digest("digest-1"),
                tx.token_by_digest("digest-2"),
                tx.token("0" * 12),
                tx.token_by_digest("digest"),
            ]

        assert await store.read(found) == [stored, stored, for_ever, None, None]

    async def test_tokens_are_listed_newest_first_and_without_the_worthless_ones(
        self, store: Store
    ) -> None:
        def fill(tx: Transaction) -> None:
            for number in range(1, 6):
                made = tx.insert_token(token(number, expire_time=NOW + number * DAY), str(number))
                if number == 4:
                    tx.revoke_token(made.key, NOW + SECOND)

        await store.write(fill)

        async def listed(**which: object) -> list[int]:
            given = {"active_at": None, "beyond": None, "limit": 10, **which}
            found = await store.read(lambda tx: tx.tokens(**given))  # type: ignore[arg-type]
            return [int(each.id, 16) for each in found]

        assert await listed() == [5, 4, 3, 2, 1]
        assert await listed(active_at=NOW + 2 * DAY) == [5, 3]
        first = await store.read(lambda tx: tx.tokens(active_at=None, beyond=None, limit=2))
        assert await listed(beyond=first[-1].key, limit=2) == [3, 2]
        assert await listed(beyond=first[-1].key, active_at=NOW) == [3, 2, 1]
        ended = await store.read(lambda tx: tx.ended_tokens(NOW + 2 * DAY))
        assert {int(each, 16) for each in ended} == {1, 2, 4}

    async def test_those_that_ended_long_ago_are_deleted(self, store: Store) -> None:
        def fill(tx: Transaction) -> None:
            for number, expire_time in enumerate((NOW + DAY, NOW + 9 * DAY, None, None), 1):
                made = tx.insert_token(token(number, expire_time=expire_time), str(number))
                if number in (2, 4):
                    tx.revoke_token(made.key, NOW + (number - 1) * DAY)

        await store.write(fill)

        async def pruned(before: int) -> tuple[int, list[int]]:
            count = await store.write(lambda tx: tx.prune_tokens(NOW + before * DAY, 1))
            left = await store.read(lambda tx: tx.tokens(active_at=None, beyond=None, limit=9))
            return count, [int(each.id, 16) for each in left]

        assert await pruned(1) == (0, [4, 3, 2, 1])
        assert {(await pruned(2))[0], (await pruned(2))[0]} == {1}
        assert await pruned(3) == (0, [4, 3])
        assert await pruned(4) == (1, [3])
        assert await pruned(10_000) == (0, [3])

    async def test_the_last_use_never_goes_back(self, store: Store) -> None:
        key = (await store.write(lambda tx: tx.insert_token(token(), "d"))).key

        async def used(seconds: int) -> object:
            await store.write(lambda tx: tx.tokens_used({key: NOW + seconds * SECOND}))
            found = await store.read(lambda tx: tx.token_by_digest("d"))
            assert found is not None
            assert found.last_use_time is not None
            return (found.last_use_time - NOW) / SECOND

        assert [await used(5), await used(3), await used(9)] == [5, 5, 9]
        await store.write(lambda tx: tx.tokens_used({key + 1: NOW}))  # gone: nothing happens
