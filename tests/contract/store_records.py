"""Jobs, updates, runs and events come back as they were stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy.exc import IntegrityError

from control_plane.domain.job import (
    Desired,
    Effective,
    Job,
    JobState,
    SessionInfo,
    TrainerExit,
)
from control_plane.domain.parameter import SetChange
from control_plane.domain.roll_back import after_return
from control_plane.domain.session import Run
from control_plane.domain.update import (
    ActionKind,
    Cancelled,
    Update,
    UpdateState,
    deliver,
    request_cancel,
    settle,
)
from control_plane.services.ports import (
    Store,
    Transaction,
)
from tests.contract.store_helpers import (
    add_job,
    add_samples,
    add_updates,
    event,
)
from tests.support.domain_values import NOW, SECOND, applied, job, set_rate, update


class RecordsContract:
    """What a store keeps of jobs, and how it is found again."""

    # Jobs

    async def test_a_job_comes_back_as_it_was(self, store: Store) -> None:
        full = job(
            labels={"team": "nlp", "x/y": ""},
            method="dpo",
            state=JobState.STALLED,
            state_message="no step for 31 s",
            actions=(ActionKind.PAUSE, ActionKind.STOP),
            version=7,
            revision=3,
            settled_revision=2,
            replay_floor=1,
            desired=(Desired(SetChange("learning_rate", 1e-5), 3),),
            effective=(Effective("learning_rate", "", 2e-5, 2, 17), Effective("b", "1", None)),
            session=SessionInfo(4, "i", "a", "host", 42, "0.1", NOW, NOW + SECOND, connected=False),
            exit=TrainerExit(None, 9, "killed", NOW),
        )
        stored = await store.write(lambda tx: tx.insert_job(full))
        assert stored == replace(full, key=stored.key)
        assert await store.read(lambda tx: tx.job("j")) == stored

        def work(tx: Transaction) -> Job:
            read = tx.job("j")
            assert read is not None
            changed = replace(read.changed(NOW + 2 * SECOND), session=None, exit=None, labels={})
            tx.save_job(changed)
            return changed

        changed = await store.write(work)
        assert await store.read(lambda tx: tx.job("j")) == changed

    async def test_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.read(lambda tx: tx.job("nobody")) is None

    async def test_a_job_id_is_used_once(self, store: Store) -> None:
        await add_job(store)
        with pytest.raises(IntegrityError):
            await add_job(store)

    async def test_a_job_is_saved_only_where_it_was_read(self, store: Store) -> None:
        stale = await add_job(store)
        with pytest.raises(RuntimeError, match="not read in this transaction"):
            await store.write(lambda tx: tx.save_job(replace(stale, revision=1)))
        assert await store.read(lambda tx: tx.job("j")) == stale

    async def test_jobs_are_listed_by_id_in_pages(self, store: Store) -> None:
        for job_id in ("b", "a", "b-1", "c", "a.1"):
            state = JobState.RUNNING if job_id.startswith("a") else JobState.LOST
            await add_job(store, job_id, state=state)

        async def ids(**arguments: object) -> list[str]:
            found = await store.read(lambda tx: tx.jobs(**arguments))  # type: ignore[arg-type]
            return [one.id for one in found]

        assert await ids(limit=3) == ["a", "a.1", "b"]
        assert await ids(limit=3, after="b") == ["b-1", "c"]
        assert await ids(limit=9, states=[JobState.LOST]) == ["b", "b-1", "c"]
        assert await ids(limit=1, after="b", states=[JobState.LOST, JobState.FAILED]) == ["b-1"]
        assert await ids(limit=9, states=[JobState.FAILED]) == []

    async def test_deleting_a_job_leaves_nothing_but_its_events(self, store: Store) -> None:
        first = await add_job(store)
        await add_updates(store, first, update(1))
        await store.write(lambda tx: tx.save_run(first, Run(1, "i", 0)))
        await add_samples(store, first, range(10))
        await store.write(lambda tx: tx.append_event(event(1)))
        await store.write(lambda tx: tx.delete_job(first))
        assert await store.read(lambda tx: tx.job("j")) is None

        second = await add_job(store)
        assert second.key != first.key
        for old in (first, second):
            seen = await store.read(
                lambda tx, old=old: (  # type: ignore[misc]
                    tx.updates(old, limit=9),
                    tx.runs(old),
                    tx.telemetry(old),
                    tx.metric_names(old),
                    tx.samples(old, "loss", spans=[(1, 0, None)]),
                )
            )
            assert seen == ([], [], None, [], [])
        assert await store.read(lambda tx: len(tx.events(after=0, limit=9))) == 1
        # Telemetry that was under way to it finds nobody.
        await add_samples(store, first, range(10))
        assert await store.read(lambda tx: tx.telemetry(first)) is None
        # Its samples go from the disk, however young, in pieces.
        prune = {"samples_before": None, "events_before": None, "limit": 4}
        gone = [await store.write(lambda tx: tx.prune(**prune)) for _ in range(4)]  # type: ignore[arg-type]
        assert gone == [4, 4, 2, 0]

    # Updates

    async def test_an_update_comes_back_as_it_was(self, store: Store) -> None:
        of = await add_job(store)
        first = update(1, batch="all-of-them")
        timed = replace(
            update(2), spec=set_rate(at_step=5, deadline=NOW + SECOND, reason="why", force=True)
        )
        await add_updates(store, of, first, timed)
        assert await store.read(lambda tx: tx.update(of, 1)) == first
        again = await store.read(lambda tx: tx.update_by_request(of, "r2"))
        assert again == timed
        # Requests are compared by what their specs look like.
        assert again is not None
        assert repr(again.spec) == repr(timed.spec)
        assert await store.read(lambda tx: tx.update(of, 3)) is None
        assert await store.read(lambda tx: tx.update_by_request(of, "r3")) is None

    async def test_every_stage_of_an_update_is_kept(self, store: Store) -> None:
        of = await add_job(store)
        one = update(1)
        await add_updates(store, of, one)
        outcome = replace(applied(), metrics={"loss": math.inf})
        by = Cancelled("somebody", "changed my mind")
        cancel = partial(request_cancel, by=by, now=NOW + SECOND, trainer_may_have_it=True)
        again = applied(step=9, instance_id="second")
        stages: list[Callable[[Update], Update]] = [
            partial(deliver, now=NOW + SECOND),
            cancel,
            partial(settle, outcome=outcome, now=NOW + 2 * SECOND),
            partial(after_return, stands=False, roll_back=2),
            partial(settle, outcome=again, now=NOW + 3 * SECOND),
            partial(after_return, stands=False, roll_back=3),
        ]
        for stage in stages:
            one = stage(one)
            await store.write(lambda tx, one=one: tx.save_update(of, one))  # type: ignore[misc]
            assert await store.read(lambda tx: tx.update(of, 1)) == one
        assert one.reapplied
        assert one.rolled_back_by == 3
        assert one.cancel_request == by

    async def test_a_revision_and_a_request_id_are_used_once(self, store: Store) -> None:
        of, other = await add_job(store), await add_job(store, "k")
        await add_updates(store, of, update(1))
        for again in (update(1, request_id="new"), update(2, request_id="r1")):
            with pytest.raises(IntegrityError):
                await add_updates(store, of, again)
        # Another job has ids of its own, and no id at all is not the same as none.
        await add_updates(store, other, replace(update(1), job_id="k"))
        nameless = [update(n, request_id="") for n in (2, 3)]
        await add_updates(store, of, *nameless)
        assert await store.read(lambda tx: tx.update_by_request(of, "")) is None
        assert await store.read(lambda tx: tx.update(of, 3)) == nameless[1]

    async def test_saving_an_unknown_update_fails(self, store: Store) -> None:
        of = await add_job(store)
        with pytest.raises(LookupError, match="no update with revision 1"):
            await store.write(lambda tx: tx.save_update(of, update(1)))

    async def test_updates_are_listed_in_pages_from_either_end(self, store: Store) -> None:
        of = await add_job(store)
        states = [UpdateState.APPLIED, UpdateState.PENDING, UpdateState.DELIVERED] * 3
        await add_updates(
            store, of, *(update(n, state=state) for n, state in enumerate(states, start=1))
        )

        async def revisions(**arguments: object) -> list[int]:
            found = await store.read(lambda tx: tx.updates(of, **arguments))  # type: ignore[arg-type]
            return [one.revision for one in found]

        assert await revisions(limit=3) == [9, 8, 7]
        assert await revisions(limit=3, beyond=7) == [6, 5, 4]
        assert await revisions(limit=3, newest_first=False) == [1, 2, 3]
        assert await revisions(limit=2, newest_first=False, beyond=3) == [4, 5]
        assert await revisions(limit=9, states=[UpdateState.PENDING]) == [8, 5, 2]
        both = [UpdateState.PENDING, UpdateState.APPLIED]
        assert await revisions(limit=2, states=both, beyond=7) == [5, 4]

        seen = await store.read(
            lambda tx: (
                [one.revision for one in tx.open_updates(of)],
                tx.count_open_of([of]),
                tx.applied_above(of, 0),
                tx.applied_above(of, 4),
            )
        )
        assert seen == ([2, 3, 5, 6, 8, 9], {of.key: 6}, [1, 4, 7], [7])

    async def test_only_open_updates_are_overdue_the_oldest_deadline_first(
        self, store: Store
    ) -> None:
        of, other = await add_job(store), await add_job(store, "k")

        def due(revision: int, seconds: int | None, state: UpdateState) -> Update:
            deadline = None if seconds is None else NOW + seconds * SECOND
            return replace(update(revision, state=state), spec=set_rate(deadline=deadline))

        await add_updates(
            store,
            of,
            due(1, 5, UpdateState.PENDING),
            due(2, 1, UpdateState.APPLIED),
            due(3, 7, UpdateState.DELIVERED),
            due(4, None, UpdateState.PENDING),
        )
        await add_updates(store, other, due(1, 2, UpdateState.PENDING))

        async def expired(seconds: int, limit: int = 9) -> list[tuple[str, int]]:
            return await store.read(lambda tx: tx.overdue(NOW + seconds * SECOND, limit))

        assert await expired(1) == []
        assert await expired(2) == [("k", 1)]
        assert await expired(6) == [("k", 1), ("j", 1)]
        assert await expired(7) == [("k", 1), ("j", 1), ("j", 3)]
        assert await expired(99, limit=1) == [("k", 1)]

    # Runs

    async def test_runs_are_kept_by_number(self, store: Store) -> None:
        of = await add_job(store)
        runs = [Run(1, "first", 0), Run(2, "second", 40)]

        def work(tx: Transaction) -> None:
            for run in reversed(runs):
                tx.save_run(of, run)

        await store.write(work)
        assert await store.read(lambda tx: tx.runs(of)) == runs
        await store.write(lambda tx: tx.save_run(of, replace(runs[0], superseded=True)))
        assert await store.read(lambda tx: tx.runs(of)) == [Run(1, "first", 0, True), runs[1]]
