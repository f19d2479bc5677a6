"""The store in a PostgreSQL database that two replicas share: the contract, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import psycopg
import pytest

from control_plane.services.ports import Store, Transaction
from control_plane.store import open_store
from tests.contract.store_contract import StoreContract
from tests.contract.store_helpers import add_events, add_job, add_samples, event, steps_of
from tests.control_plane.store.helpers import run_sql
from tests.support.domain_values import NOW, SECOND, job, update
from tests.support.postgres import PostgresServer
from tests.support.processes import until
from tests.support.replicas import clear, without_deadlocks
from tests.support.use_cases import eventually


@pytest.fixture(scope="module")
def address(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all tests here."""
    with postgres_server.empty_database() as made, without_deadlocks(postgres_server, made):
        yield made


@pytest.fixture
async def other(address: str) -> AsyncIterator[Store]:
    opened = await open_store(address)
    yield opened
    await opened.close()
    clear(address)


@pytest.fixture
async def store(address: str, other: Store) -> AsyncIterator[Store]:
    opened = await open_store(address)
    yield opened
    await opened.close()


class TestPostgresStore(StoreContract):
    """The contract that every store keeps."""


WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def test_who_writes_events_waits_for_the_one_that_has_positions(
    store: Store, other: Store, postgres_server: PostgresServer, address: str
) -> None:
    """Else the second to get a position could be seen first, and the first passed over."""
    await store.write(lambda tx: tx.append_event(event(1)))
    seen: list[int] = []

    async def look() -> list[int]:
        """Goes on from what it has seen, as a watch does."""
        found = await other.read(lambda tx: tx.events(after=max(seen, default=0), limit=9))
        seen.extend(each.revision or 0 for each in found)
        return seen

    assert await look() == [1]
    with psycopg.connect(address) as slow:
        slow.execute(
            "INSERT INTO events (kind, job_id, job_uid, revision, time, origin) "
            "VALUES ('modified', 'j', 'uid', 2, 0, 'x')"
        )
        quick = asyncio.create_task(other.write(lambda tx: tx.append_event(event(3))))
        with postgres_server.session(address.rpartition("/")[2]) as session:
            await asyncio.to_thread(
                until, lambda: session.execute(WAITING).fetchone() == (1,), "the lock"
            )
        assert await look() == [1]
        # What appends nothing waits for nobody.
        await store.write(lambda tx: tx.insert_job(job()))
        slow.commit()
    await quick
    assert await look() == [1, 2, 3]


async def test_revisions_are_given_without_gaps_by_replicas_at_once(
    store: Store, other: Store
) -> None:
    await add_job(store)

    def accept(tx: Transaction) -> int:
        one = tx.job("j")
        assert one is not None
        number = one.revision + 1
        tx.insert_updates([(one, update(number, request_id=f"r{number}"))])
        tx.save_job(replace(one, revision=number))
        tx.append_event(event(number))
        return number

    given = await asyncio.gather(*((store, other)[n % 2].write(accept) for n in range(100)))
    assert sorted(given) == list(range(1, 101))
    events = await other.read(lambda tx: tx.events(after=0, limit=1_000))
    assert [each.revision for each in events] == list(range(1, 101))


async def test_several_jobs_are_locked_in_one_order(store: Store, other: Store) -> None:
    """Whoever reads a page in order to change it waits for others, not they for each other."""
    names = [f"j{n}" for n in range(8)]
    for name in reversed(names):
        await add_job(store, name)

    def count(tx: Transaction) -> None:
        for one in tx.jobs(limit=100):
            tx.save_job(replace(one, revision=one.revision + 1))

    await asyncio.gather(*((store, other)[n % 2].write(count) for n in range(20)))
    jobs = await store.read(lambda tx: tx.jobs(limit=100))
    assert [one.revision for one in jobs] == [20] * 8


async def test_samples_are_added_while_their_series_are_pruned(store: Store, other: Store) -> None:
    """Nothing is added to a series that is gone: nobody would find it."""
    of = await add_job(store)
    for round_ in range(10):
        await add_samples(store, of, [round_])
        await asyncio.gather(
            add_samples(other, of, range(100, 105)),
            store.write(lambda tx: tx.prune(samples_before=2**62, events_before=None, limit=1_000)),
            add_samples(other, of, range(105, 110)),
        )
        kept = await steps_of(store, of)
        rows = await run_sql(
            store, "SELECT count(*) FROM samples WHERE series_key NOT IN (SELECT key FROM series)"
        )
        assert rows == [(0,)]
        assert set(kept) <= set(range(100, 110))


async def test_what_others_write_is_heard_of(store: Store, other: Store) -> None:
    heard: list[int | None] = []
    following = asyncio.create_task(
        store.follow(lambda events: heard.extend(e.revision for e in events or ()))
    )
    await other.write(lambda tx: tx.append_event(event(1)))
    await eventually(lambda: heard, "the first")
    await store.write(lambda tx: tx.append_event(event(2)))  # its own
    await other.write(lambda tx: tx.append_event(event(3)))
    await eventually(lambda: len(heard) > 1, "the second")
    following.cancel()
    await asyncio.wait([following])
    assert heard == [1, 3]


async def test_a_listener_that_lost_its_connection_misses_nothing(
    store: Store, other: Store, postgres_server: PostgresServer, address: str
) -> None:
    heard: list[int | None] = []
    following = asyncio.create_task(
        store.follow(lambda events: heard.extend(e.revision for e in events or ()))
    )
    await other.write(lambda tx: tx.append_event(event(1)))
    await eventually(lambda: heard == [1], "the first")
    with postgres_server.session(address.rpartition("/")[2]) as session:
        for number in range(2, 5):
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN %' AND datname = current_database()"
            )
            await other.write(lambda tx, n=number: tx.append_event(event(n)))  # type: ignore[misc]
            await eventually(lambda n=number: heard[-1] == n, "the next")  # type: ignore[misc]
    following.cancel()
    await asyncio.wait([following])
    assert heard == [1, 2, 3, 4]


async def test_what_nobody_was_told_of_is_found_all_the_same(address: str, other: Store) -> None:
    quick = await open_store(address, poll_interval=0.05)
    heard: list[int | None] = []
    following = asyncio.create_task(
        quick.follow(lambda events: heard.extend(e.revision for e in events or ()))
    )
    with psycopg.connect(address) as silent:
        silent.execute("ALTER TABLE events DISABLE TRIGGER events_in_order")
        silent.execute(
            "INSERT INTO events (kind, job_id, job_uid, revision, time, origin) "
            "VALUES ('modified', 'j', 'uid', 7, 0, 'x')"
        )
        silent.execute("ALTER TABLE events ENABLE TRIGGER events_in_order")
        silent.commit()
    await eventually(lambda: heard == [7], "what was written silently")
    following.cancel()
    await asyncio.wait([following])
    await quick.close()


async def test_who_was_away_for_longer_than_events_are_kept_has_to_look_at_everything(
    address: str, other: Store
) -> None:
    late = await open_store(address)
    await add_events(other, 5)
    await other.write(
        lambda tx: tx.prune(samples_before=None, events_before=NOW + 9 * SECOND, limit=10)
    )
    heard: list[object] = []
    following = asyncio.create_task(late.follow(heard.append))
    await eventually(lambda: heard, "word")
    following.cancel()
    await asyncio.wait([following])
    assert heard[0] is None
    await late.close()
