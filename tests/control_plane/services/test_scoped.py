"""The store as a scoped caller may see it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.access import EVERYTHING, Scope, scope_of
from control_plane.domain.batch import Batch, JobRefusal
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.measuring import MeasuredStore
from control_plane.services.audit import AuditedStore
from control_plane.services.passing import ObservedStore
from control_plane.services.ports import Store, Transaction
from control_plane.services.readiness import WatchedStore
from control_plane.services.records import Page
from control_plane.services.scoped import HARMLESS, ScopedStore, ScopedTransaction
from control_plane.store import open_store
from control_plane.store.store import SqlStore
from control_plane.store.transaction import SqlTransaction
from tests.support.domain_values import NOW, job, set_rate, update

# What only the service's own chores do, which have no caller, and what is for administrators, who
# have no scope.
NOT_FOR_SCOPED_CALLERS = {
    "add_audit_records",
    "add_telemetry",
    "beat",
    "count_ended",
    "ended_tokens",
    "forget_replica",
    "insert_token",
    "overdue",
    "prune",
    "prune_audit_records",
    "prune_tokens",
    "revoke_token",
    "scan_audit_records",
    "token",
    "token_by_digest",
    "tokens",
    "tokens_used",
    "uncounted_batches",
    "unheard_jobs",
}


def test_all_that_a_transaction_can_do_is_let_through_looked_at_or_left_out() -> None:
    members = {name for name in dir(Transaction) if not name.startswith("_")}
    members |= set(Transaction.__annotations__)
    looked_at = {name for name in vars(ScopedTransaction) if not name.startswith("_")}
    assert not looked_at & HARMLESS
    assert not (looked_at | HARMLESS) & NOT_FOR_SCOPED_CALLERS
    known = looked_at | HARMLESS | NOT_FOR_SCOPED_CALLERS
    assert members == known, "say in control_plane.services.scoped what scoped callers get of it"


def _taken(method: Any) -> dict[str, tuple[Any, bool]]:
    """What a method takes, by name: how it is handed over, and whether it may be left out."""
    parameters = inspect.signature(method).parameters.values()
    return {each.name: (each.kind, each.default is not each.empty) for each in parameters}


def _methods(protocol: type, wrapper: type) -> list[Any]:
    own = {name for kind in wrapper.__mro__[:-1] for name in vars(kind)}
    return [
        pytest.param(
            getattr(protocol, name), getattr(wrapper, name), id=f"{wrapper.__name__}.{name}"
        )
        for name in sorted(vars(protocol).keys() & own)
        if inspect.isfunction(vars(protocol)[name]) and not name.startswith("_")
    ]


WRAPPERS = [
    *_methods(Transaction, ScopedTransaction),
    *_methods(Transaction, SqlTransaction),
    *(
        method
        for wrapper in (
            SqlStore,
            ScopedStore,
            WatchedStore,
            AuditedStore,
            ObservedStore,
            MeasuredStore,
        )
        for method in _methods(Store, wrapper)
    ),
]


@pytest.mark.parametrize(("promised", "kept"), WRAPPERS)
def test_whatever_stands_before_a_store_takes_what_the_store_takes(
    promised: Any, kept: Any
) -> None:
    # A type checker does not see it, as a scoped transaction is cast to what it stands for.
    assert _taken(kept) == _taken(promised)


class Scoped:
    """A store, seen by everybody and by somebody."""

    def __init__(self, everything: Store) -> None:
        self.everything = everything
        self.scope = EVERYTHING
        self.name = "somebody"
        self.store = ScopedStore(everything, lambda: self.scope, lambda: self.name)


@pytest.fixture
async def scoped(tmp_path: Path) -> AsyncIterator[Scoped]:
    store = await open_store(tmp_path / "control.db")

    def fill(tx: Transaction) -> None:
        for number in range(6):
            team = "nlp" if number % 2 else "cv"
            made = tx.insert_job(job(id=f"j{number}", uid=f"u{number}", labels={"team": team}))
            tx.insert_updates([(made, replace(update(), job_id=made.id, batch="batches/1"))])
        for ids, refused in (
            (("j1",), ()),
            (("j1", "j0"), ()),
            (("j1",), ("j0",)),
            (("j1",), ("x",)),
        ):
            total, of = len(ids) + len(refused), f"{ids} {refused}"
            batch = Batch(set_rate(), "", True, "ops", of, "", NOW, total, len(refused))
            batch = tx.insert_batch(batch, {each: JobRefusal("R", "m") for each in refused})
            for each in ids:
                found = tx.job(each)
                assert found is not None
                one = update(1 + batch.key, batch=f"batches/{batch.key}")
                tx.insert_updates([(found, replace(one, job_id=each))])

    await store.write(fill)
    yield Scoped(store)
    await store.close()


SCOPES = [
    scope_of("team=nlp", ()),
    scope_of("", ("j1", "j3*", "j5")),
    scope_of("team=nlp", ("j*",)),
]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
async def test_other_jobs_are_not_there(scoped: Scoped, scope: Scope) -> None:
    scoped.scope = scope
    own, others = ["j1", "j3", "j5"], ["j0", "j2", "j4", "nowhere"]
    read = scoped.store.read
    for job_id in own:
        assert (await read(lambda tx, of=job_id: tx.job(of))) is not None  # type: ignore[misc]
    for job_id in others:
        assert (await read(lambda tx, of=job_id: tx.job(of))) is None  # type: ignore[misc]
    for limit in (1, 2, 3, 100):
        listed: list[str] = []
        after: str | None = ""
        while after is not None:

            def page(tx: Transaction, after: str = after, limit: int = limit) -> Page[str, str]:
                jobs = tx.jobs(after=after, limit=limit)
                named = tx.selectable_jobs(after=after, limit=limit)
                assert [each.id for each in jobs] == [each for each, _ in named]
                assert jobs.beyond == named.beyond
                return Page((each.id for each in jobs), jobs.beyond)

            found = await read(page)
            listed += found
            after = found.beyond
        assert listed == own, limit
    assert [each.id for each in await read(lambda tx: tx.jobs_named(sorted(own + others)))] == own
    everything = await scoped.everything.read(lambda tx: tx.jobs(limit=100))
    places = [(each.key, 1) for each in everything]
    seen = await read(lambda tx: tx.updates_at(places))
    assert sorted(each.job_id for each in seen.values()) == own


async def test_jobs_in_certain_states_are_found_among_those_in_the_scope(scoped: Scoped) -> None:
    def end(tx: Transaction) -> None:
        for job_id in ("j2", "j3"):
            found = tx.job(job_id)
            assert found is not None
            tx.save_job(replace(found, state=JobState.FAILED))

    await scoped.everything.write(end)
    scoped.scope = scope_of("team=nlp", ())

    def look(tx: Transaction) -> list[list[str]]:
        left = set(JobState) - {JobState.FAILED}
        return [
            [each for each, _ in tx.selectable_jobs(after="", limit=9, states=[JobState.FAILED])],
            [each for each, _ in tx.selectable_jobs(after="", limit=9, states=left)],
        ]

    assert await scoped.store.read(look) == [["j3"], ["j1", "j5"]]


async def test_a_batch_is_there_if_all_of_its_jobs_are(scoped: Scoped) -> None:
    scoped.scope = scope_of("team=nlp", ())
    # The first three have j0 to j5, j0, and j0 among the refused; "x" is no job at all.
    assert await scoped.store.read(lambda tx: [tx.batch(key) for key in (1, 2, 3, 4)]) == [None] * 4
    assert await scoped.store.read(lambda tx: tx.batches(beyond=None, limit=9)) == []
    scoped.scope = scope_of("", ("j0", "j1"))
    seen = await scoped.store.read(lambda tx: [tx.batch(key) for key in (1, 2, 3, 4)])
    assert [each.key if each else None for each in seen] == [None, 2, 3, None]
    listed = await scoped.store.read(lambda tx: tx.batches(beyond=None, limit=2))
    assert ([each.key for each in listed], listed.beyond) == ([3], 3)


async def test_a_batch_one_of_whose_jobs_is_gone_is_there_for_its_author_alone(
    scoped: Scoped,
) -> None:
    def delete(tx: Transaction) -> None:
        found = tx.job("j0")
        assert found is not None
        tx.delete_job(found)

    await scoped.everything.write(delete)

    def look(tx: Transaction) -> tuple[list[int], list[int]]:
        told = [each.key for each in map(tx.batch, (1, 2, 3, 4)) if each is not None]
        return told, [each.key for each in tx.batches(beyond=None, limit=9)]

    scoped.scope = scope_of("team=nlp", ())
    assert await scoped.store.read(look) == ([], []), "what j0 was nobody can tell any more"
    scoped.name = "ops"
    assert await scoped.store.read(look) == ([2, 3, 4], [4, 3, 2]), "all that is left is ours"
    scoped.scope = scope_of("team=cv", ())
    assert await scoped.store.read(look) == ([], [])


async def test_what_is_written_stays_in_the_scope(scoped: Scoped) -> None:
    scoped.scope = scope_of("team=nlp", ("j*", "new*"))

    async def refusal(work: Any) -> Refusal:
        with pytest.raises(Refusal) as refused:
            await scoped.store.write(work)
        return refused.value

    for fields in ({"id": "new"}, {"id": "other", "labels": {"team": "nlp"}}):
        made = job(uid="u", **fields)
        assert (await refusal(lambda tx, m=made: tx.insert_job(m))).reason is Reason.OUT_OF_SCOPE
        assert (await refusal(lambda tx, m=made: tx.check_scope(m))).reason is Reason.OUT_OF_SCOPE
    taken = job(id="j0", uid="u", labels={"team": "nlp"})
    assert (await refusal(lambda tx: tx.insert_job(taken))).reason is Reason.JOB_EXISTS

    def move(tx: Transaction) -> None:
        found = tx.job("j1")
        assert found is not None
        tx.save_job(replace(found, labels={"team": "cv"}))

    moved = await refusal(move)
    assert moved.reason is Reason.OUT_OF_SCOPE
    assert "team=nlp" in moved.message
    assert "j*" in moved.message
    await scoped.store.write(
        lambda tx: tx.insert_job(job(id="new", uid="u", labels={"team": "nlp"}))
    )


async def test_what_is_for_nobody_with_a_scope_is_not_there(scoped: Scoped) -> None:
    scoped.scope = scope_of("team=nlp", ())
    with pytest.raises(AttributeError, match="token_by_digest"):
        await scoped.store.read(lambda tx: tx.token_by_digest(""))
    scoped.scope = EVERYTHING
    assert await scoped.store.read(lambda tx: tx.token_by_digest("")) is None
