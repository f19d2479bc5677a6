"""What is read and written of many jobs at once is what it is of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError

from control_plane.domain.batch import Batch, JobRefusal
from control_plane.domain.job import Desired, Job, JobState
from control_plane.domain.parameter import SetChange
from control_plane.domain.update import UpdateState
from control_plane.services.ports import Store, Transaction
from control_plane.services.records import Member, Place, Telemetry, TelemetryBatch
from tests.contract.store_helpers import add_job, add_updates
from tests.support.domain_values import NOW, SECOND, set_rate, update

MANY = 300
"""More than one statement takes."""


async def add_jobs(store: Store, count: int = MANY) -> list[Job]:
    def work(tx: Transaction) -> list[Job]:
        made = Job("", "uid", NOW, NOW, labels={"team": "nlp"}, method="sft")
        return [tx.insert_job(replace(made, id=f"j{i:03}", uid=f"u{i}")) for i in range(count)]

    return await store.write(work)


class FleetContract:
    """A part of the contract of `control_plane.services.ports.Store`."""

    async def test_jobs_by_their_names(self, store: Store) -> None:
        jobs = await add_jobs(store)
        names = [job.id for job in jobs]
        asked = [*names[::-1], "nobody", names[0]]
        assert await store.read(lambda tx: tx.jobs_named(asked)) == jobs
        assert await store.write(lambda tx: tx.jobs_named(asked)) == jobs
        assert await store.read(lambda tx: tx.jobs_named([])) == []

    async def test_what_selectors_see(self, store: Store) -> None:
        await add_job(store, "a", labels={"team": "nlp"}, method="dpo")
        await add_job(store, "b", state=JobState.FINISHED)
        first = await store.read(lambda tx: tx.selectable_jobs(after="", limit=1))
        assert ([job_id for job_id, _ in first], first.beyond) == (["a"], "a")
        seen = await store.read(lambda tx: tx.selectable_jobs(after="", limit=5))
        assert seen.beyond is None
        assert seen[0] == (
            "a",
            {"job": "a", "method": "dpo", "state": "pending", "team": "nlp"},
        )
        assert [job_id for job_id, _ in seen] == ["a", "b"]
        finished = frozenset({JobState.FINISHED})
        some = await store.read(lambda tx: tx.selectable_jobs(after="", limit=5, states=finished))
        assert [job_id for job_id, _ in some] == ["b"]
        rest = await store.read(lambda tx: tx.selectable_jobs(after="a", limit=5))
        assert [job_id for job_id, _ in rest] == ["b"]

    async def test_accepting_for_many_at_once(self, store: Store) -> None:
        await add_jobs(store)

        def accept(tx: Transaction) -> None:
            jobs = tx.jobs_named(f"j{i:03}" for i in range(MANY))
            spec = set_rate(deadline=NOW + SECOND)
            made = [
                (job, update(1, batch="batches/1"))
                if n % 2
                else (job, replace(update(1), spec=spec))
                for n, job in enumerate(jobs)
            ]
            tx.insert_updates((job, replace(u, job_id=job.id)) for job, u in made)
            tx.save_accepting(
                [
                    replace(
                        job,
                        revision=1,
                        desired=(Desired(SetChange("learning_rate", 1e-5), 1),),
                    ).changed(NOW + SECOND)
                    for job in jobs
                ]
            )

        await store.write(accept)

        def look(tx: Transaction) -> None:
            for number in (0, 1, MANY - 1):
                job = tx.job(f"j{number:03}")
                assert job is not None
                assert (job.revision, job.version, job.update_time) == (1, 2, NOW + SECOND)
                assert job.desired[0].change == SetChange("learning_rate", 1e-5)
                assert job.labels == {"team": "nlp"}
                one = tx.update(job, 1)
                assert one is not None
                assert (one.job_id, one.batch) == (job.id, "batches/1" if number % 2 else "")
                assert one.spec.deadline == (None if number % 2 else NOW + SECOND)
                assert tx.updates_at([(job.key, 1), (job.key, 2)]) == {(job.key, 1): one}
            jobs = tx.jobs(limit=MANY)
            assert tx.count_open_of(jobs) == {job.key: 1 for job in jobs}
            places = [(job.key, 1) for job in jobs]
            assert sorted(tx.updates_at(places)) == places

        await store.read(look)

    async def test_what_is_stored_of_many_is_seen_at_once(self, store: Store) -> None:
        jobs = await add_jobs(store, 30)
        await store.write(
            lambda tx: tx.insert_updates(
                (job, replace(update(n), job_id=job.id)) for job in jobs for n in (1, 2)
            )
        )

        def work(tx: Transaction) -> None:
            tx.read_ahead_open([*(job.id for job in jobs), "nobody"])
            assert tx.job("nobody") is None
            for number, made in enumerate(jobs):
                job = tx.job(made.id)
                assert job is not None
                first = tx.update(job, 1)
                assert first is not None
                settled = replace(first, state=UpdateState.CANCELLED)
                if number % 2:
                    settled = replace(settled, settle_time=NOW + SECOND)
                tx.save_update(job, settled)
                assert tx.first_open(job) == 2
                assert [u.revision for u in tx.open_updates(job)] == [2]
                tx.save_job(replace(job, state=JobState.LOST))
                tx.save_job(replace(job, state=JobState.RUNNING, method=f"m{number}"))
                assert tx.job(job.id) == replace(job, state=JobState.RUNNING, method=f"m{number}")
            one = tx.jobs_named(["j003"])[0]
            assert (one.method, one.labels) == ("m3", {"team": "nlp"})
            assert tx.count_open_of([one]) == {one.key: 1}
            assert [u.state for u in tx.updates(one, limit=5)] == ["pending", "cancelled"]
            tx.save_job(replace(one, method="last"))

        await store.write(work)

        def look(tx: Transaction) -> None:
            for number, job in enumerate(tx.jobs(limit=MANY)):
                assert job.method == ("last" if number == 3 else f"m{number}")
                assert job.state is JobState.RUNNING
                one, two = tx.updates(job, newest_first=False, limit=5)
                assert one.settle_time == (NOW + SECOND if number % 2 else None)
                assert (one.state, two) == ("cancelled", replace(update(2), job_id=job.id))

        await store.read(look)

    async def test_of_several_updates_none_may_be_unknown(self, store: Store) -> None:
        job = await add_job(store)
        await add_updates(store, job, update(1))

        def work(tx: Transaction) -> None:
            for revision in (1, 2):
                tx.save_update(job, replace(update(revision), state=UpdateState.CANCELLED))

        with pytest.raises(LookupError, match="no update with revision 2"):
            await store.write(work)
        assert await store.read(lambda tx: tx.count_open_of([job])) == {job.key: 1}

    async def test_what_others_may_have_changed_is_not_saved(self, store: Store) -> None:
        job = await add_job(store)
        with pytest.raises(RuntimeError, match="was not read"):
            await store.write(lambda tx: tx.save_accepting([job]))

    async def test_a_revision_is_there_once(self, store: Store) -> None:
        job = await add_job(store)
        await add_updates(store, job, update(1))
        again = update(1, request_id="other")
        with pytest.raises(IntegrityError):
            await store.write(lambda tx: tx.insert_updates([(job, again)]))

    async def test_reading_ahead_shows_what_is_written_since(self, store: Store) -> None:
        job = await add_job(store)
        await add_updates(store, job, update(1))
        newest = Telemetry(None, (), 5)

        def work(tx: Transaction) -> None:
            tx.read_ahead_updates([(job.key, 1), (job.key, 2)])
            tx.read_ahead_telemetry([job])
            assert tx.update(job, 1) == update(1)
            assert tx.update(job, 2) is None
            assert tx.telemetry(job) is None
            tx.save_update(job, replace(update(1), state=UpdateState.DELIVERED))
            tx.add_telemetry([TelemetryBatch(job.key, 1, [], newest)])
            changed = tx.update(job, 1)
            assert changed is not None
            assert changed.state is UpdateState.DELIVERED
            assert tx.telemetry(job) == newest

        await store.write(work)

    @pytest.mark.parametrize("newest_first", [True, False])
    async def test_updates_of_all_in_the_order_of_their_times(
        self, store: Store, newest_first: bool
    ) -> None:
        places = []
        for number, name in enumerate(("b", "a")):
            job = await add_job(store, name)
            for revision in (1, 2, 3):
                when = NOW + (revision // 2) * SECOND
                author = "me" if revision == 2 else "you"
                made = update(revision, create_time=when, author=author)
                await add_updates(store, job, replace(made, job_id=name))
                places.append((Place(when, job.key, revision), author, number))
        places.sort(key=lambda each: each[0].time)
        ordered = sorted(
            ((p, a) for p, a, _ in places),
            key=lambda each: (each[0].time, each[0].job_key, each[0].revision),
            reverse=newest_first,
        )

        async def scan(beyond: Place, author: str = "") -> list[Place]:
            def work(tx: Transaction) -> list[Place]:
                found = tx.scan_updates(
                    newest_first=newest_first,
                    beyond=beyond,
                    until=NOW if newest_first else NOW + 9 * SECOND,
                    author=author,
                    limit=10,
                )
                assert all(each.labels["method"] == "" for each in found)
                return [each.place for each in found]

            return await store.read(work)

        begin = Place(NOW + 9 * SECOND if newest_first else NOW, -1, -1)
        assert await scan(begin) == [place for place, _ in ordered]
        assert await scan(begin, "me") == [place for place, author in ordered if author == "me"]
        for index, (place, _) in enumerate(ordered):
            assert await scan(place) == [each for each, _ in ordered[index + 1 :]]

    async def test_a_batch_and_how_far_it_has_come(self, store: Store) -> None:
        batch = Batch(set_rate(), "a=b", True, "ops", "r", "digest", NOW, total=3, refused=1)
        refusals = {"c": JobRefusal("NO", "not here")}
        made = await store.write(lambda tx: tx.insert_batch(batch, refusals))
        name = f"batches/{made.key}"
        assert made == replace(batch, key=made.key)
        for job_id in ("b", "a"):
            job = await add_job(store, job_id)
            state = UpdateState.APPLIED if job_id == "a" else UpdateState.PENDING
            one = update(1, batch=name, state=state)
            await add_updates(store, job, replace(one, job_id=job_id), update(2))

        def look(tx: Transaction) -> None:
            keys = {job.id: job.key for job in tx.jobs(limit=5)}
            assert tx.batch(made.key) == made
            assert tx.batch(made.key + 1) is None
            assert tx.batch_by_request("ops", "r") == made
            assert tx.batch_by_request("else", "r") is None
            members = [Member("a", keys["a"], 1), Member("b", keys["b"], 1)]
            assert tx.batch_members(made) == members
            [one] = tx.batch_members(made, limit=1)
            assert one in members
            assert tx.batch_states(made) == {
                keys["a"]: UpdateState.APPLIED,
                keys["b"]: UpdateState.PENDING,
            }
            assert tx.batch_counts([made]) == {
                made.key: {UpdateState.APPLIED: 1, UpdateState.PENDING: 1}
            }
            assert tx.batch_refusals(made) == refusals

        await store.read(look)
        with pytest.raises(IntegrityError):
            await store.write(lambda tx: tx.insert_batch(batch, {}))
        other = await store.write(lambda tx: tx.insert_batch(replace(batch, request_id="r2"), {}))
        pages = await store.read(
            lambda tx: [tx.batches(beyond=None, limit=1), tx.batches(beyond=other.key, limit=5)]
        )
        assert pages == [[other], [made]]
        assert [page.beyond for page in pages] == [other.key, None]

        def delete(tx: Transaction) -> None:
            job = tx.job("a")
            assert job is not None
            tx.delete_job(job)

        await store.write(delete)
        left = await store.read(lambda tx: tx.batch_counts([made, other]))
        assert left == {made.key: {UpdateState.PENDING: 1}, other.key: {}}

    async def test_a_batch_that_has_ended_is_counted_once(self, store: Store) -> None:
        batch = Batch(set_rate(), "", True, "ops", "r", "d", NOW, total=3)
        made = await store.write(lambda tx: tx.insert_batch(batch, {}))
        for job_id in ("a", "b", "c"):
            job = await add_job(store, job_id)
            one = update(1, batch=f"batches/{made.key}", state=UpdateState.DELIVERED)
            await add_updates(store, job, replace(one, job_id=job_id))

        async def settle(job_id: str, state: UpdateState) -> None:
            def work(tx: Transaction) -> None:
                job = tx.job(job_id)
                assert job is not None
                found = tx.update(job, 1)
                assert found is not None
                tx.save_update(job, replace(found, state=state))

            await store.write(work)

        async def ended() -> object:
            def work(tx: Transaction) -> None:
                tx.count_ended(made)

            await store.write(work)
            again = await store.read(lambda tx: tx.batch(made.key))
            assert again is not None
            left = await store.read(lambda tx: tx.uncounted_batches(after=0, limit=5))
            assert (left == []) is (again.ended is not None)
            return again.ended

        await settle("a", UpdateState.APPLIED)
        await settle("b", UpdateState.APPLIED)
        assert await ended() is None, "one is open"
        await settle("c", UpdateState.EXPIRED)
        assert await ended() == {UpdateState.APPLIED: 2, UpdateState.EXPIRED: 1}
        [stored] = await store.read(lambda tx: tx.batches(beyond=None, limit=5))
        assert await store.read(lambda tx: tx.batch_counts([stored])) == {made.key: stored.ended}

        def delete(tx: Transaction) -> None:
            job = tx.job("b")
            assert job is not None
            tx.delete_job(job)

        await store.write(delete)
        again = await store.read(lambda tx: tx.batch(made.key))
        assert again == made, "what was counted is not true any more"
        assert await ended() == {UpdateState.APPLIED: 1, UpdateState.EXPIRED: 1}
