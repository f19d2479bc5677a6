"""Units of work: whole or not at all, one after the other, on a consistent view."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from dataclasses import replace

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import (
    Job,
)
from control_plane.services.ports import (
    Store,
    Transaction,
)
from tests.contract.store_helpers import (
    WorkError,
    add_job,
    event,
)
from tests.support.domain_values import job


class UnitsContract:
    """What a store does with the work that it is given."""

    async def test_a_result_is_returned_after_the_commit(self, store: Store) -> None:
        stored = await store.write(lambda tx: tx.insert_job(job()))
        assert stored.key > 0
        assert await store.read(lambda tx: tx.job("j")) == stored

    async def test_a_transaction_sees_its_own_writes(self, store: Store) -> None:
        def work(tx: Transaction) -> Job | None:
            stored = tx.insert_job(job())
            tx.save_job(replace(stored, revision=5))
            return tx.job("j")

        seen = await store.write(work)
        assert seen is not None
        assert seen.revision == 5

    async def test_a_failure_undoes_its_own_writes_only(self, store: Store) -> None:
        def good(job_id: str) -> Awaitable[object]:
            return store.write(lambda tx: tx.insert_job(job(id=job_id)))

        def bad(job_id: str) -> Awaitable[object]:
            def work(tx: Transaction) -> None:
                tx.insert_job(job(id=job_id))
                tx.append_event(event(1))
                raise WorkError(job_id)

            return store.write(work)

        # All at once, so that they share transactions where the store does that.
        ids = [f"j{number:02}" for number in range(30)]
        results = await asyncio.gather(
            *(good(i) if n % 3 else bad(i) for n, i in enumerate(ids)), return_exceptions=True
        )
        failed = [i for n, i in enumerate(ids) if not n % 3]
        assert [str(r) for r in results if isinstance(r, WorkError)] == failed
        kept = await store.read(lambda tx: [found.id for found in tx.jobs(limit=100)])
        assert kept == [i for i in ids if i not in failed]
        assert await store.read(lambda tx: tx.event_span()) == (0, 0)

    async def test_a_refusal_reaches_its_caller_as_it_is(self, store: Store) -> None:
        refusal = Refusal(Reason.REVISION_MISMATCH, "stands at 3", metadata={"current": "3"})

        def work(tx: Transaction) -> None:
            raise refusal

        with pytest.raises(Refusal) as caught:
            await store.write(work)
        assert caught.value is refusal
        with pytest.raises(Refusal) as caught:
            await store.read(work)
        assert caught.value is refusal

    async def test_writes_take_effect_one_after_the_other(self, store: Store) -> None:
        await add_job(store)

        def increment(tx: Transaction) -> int:
            current = tx.job("j")
            assert current is not None
            tx.save_job(replace(current, revision=current.revision + 1))
            return current.revision

        seen = await asyncio.gather(*(store.write(increment) for _ in range(100)))
        assert sorted(seen) == list(range(100))

    async def test_a_read_sees_one_moment(self, store: Store) -> None:
        await add_job(store)
        has_read, may_go_on = threading.Event(), threading.Event()

        def look_twice(tx: Transaction) -> tuple[int, int]:
            before = len(tx.jobs(limit=10))
            has_read.set()
            assert may_go_on.wait(10)
            return before, len(tx.jobs(limit=10))

        looking = asyncio.create_task(store.read(look_twice))
        assert await asyncio.to_thread(has_read.wait, 10)
        await add_job(store, "k")
        may_go_on.set()
        assert await looking == (1, 1)
        assert await store.read(lambda tx: len(tx.jobs(limit=10))) == 2

    async def test_a_cancelled_write_is_done_whole_or_not_at_all(self, store: Store) -> None:
        def work(number: int) -> Awaitable[None]:
            def insert(tx: Transaction) -> None:
                tx.insert_job(job(id=f"a{number}"))
                tx.insert_job(job(id=f"b{number}"))

            return store.write(insert)

        tasks = [asyncio.ensure_future(work(number)) for number in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results[::2])
        assert results[1::2] == [None] * 20
        # What the cancelled ones began has ended before a later write is answered.
        await add_job(store, "last")
        ids = {found.id for found in await store.read(lambda tx: tx.jobs(limit=100))}
        for number in range(40):
            assert (f"a{number}" in ids) == (f"b{number}" in ids)
            assert number % 2 == 0 or f"a{number}" in ids

    async def test_after_close_everything_is_refused(self, store: Store) -> None:
        pending = [asyncio.ensure_future(add_job(store, f"j{n}")) for n in range(10)]
        await asyncio.sleep(0)
        await store.close()
        # What was begun is finished.
        assert all(stored.key for stored in await asyncio.gather(*pending))
        with pytest.raises(Refusal, match="shutting down"):
            await add_job(store, "late")
        with pytest.raises(Refusal, match="shutting down"):
            await store.read(lambda tx: tx.job("j1"))
        await store.close()
