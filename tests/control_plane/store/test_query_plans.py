"""How the database finds things: never by looking at everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control_plane.domain.batch import Batch
from control_plane.domain.job import Job
from control_plane.domain.update import UpdateState
from control_plane.services.ports import Store, Transaction
from control_plane.services.records import Place
from grpc_runtime.audit.records import AuditPlace
from tests.contract.store_helpers import add_job, add_samples
from tests.control_plane.store.helpers import (
    connection_of,
)
from tests.support.domain_values import NOW, set_rate

BATCH = Batch(set_rate(), "a=b", False, "me", "r", "", NOW, key=1)


def _scan(tx: Transaction, of: Job, *, newest_first: bool, author: str = "") -> object:
    return tx.scan_updates(
        newest_first=newest_first,
        beyond=Place(of.create_time, of.key, 1),
        until=of.create_time,
        author=author,
        limit=5,
    )


def _audit(tx: Transaction, **of: str) -> object:
    return tx.scan_audit_records(beyond=AuditPlace(NOW, 5), start=NOW, limit=5, **of)


@pytest.mark.parametrize(
    ("work", "plan"),
    [
        (lambda tx, of: tx.job("j"), "USING INDEX"),
        (lambda tx, of: tx.jobs(after="a", limit=5), "USING INDEX"),
        (lambda tx, of: tx.unheard_jobs(["a", "b"]), "jobs_by_state (state=?"),
        (lambda tx, of: tx.unheard_jobs(["a", "b"]), "jobs_by_state (state=? AND replica>?)"),
        (lambda tx, of: tx.update_by_request(of, "r"), "USING INDEX"),
        (lambda tx, of: tx.update(of, 1), "USING PRIMARY KEY"),
        (lambda tx, of: tx.open_updates(of), "USING PRIMARY KEY (job_key=? AND revision=?)"),
        (
            lambda tx, of: tx.applied_above(of, 1),
            "updates_by_state (job_key=? AND state=? AND revision>?)",
        ),
        (lambda tx, of: tx.overdue(of.create_time, 5), "updates_open_by_deadline"),
        (lambda tx, of: tx.updates(of, limit=5), "PRIMARY KEY (job_key=? AND revision<?)"),
        (lambda tx, of: tx.jobs_named(["a", "j"]), "USING INDEX sqlite_autoindex_jobs_1 (id=?)"),
        (lambda tx, of: tx.selectable_jobs(after="a", limit=5), "USING INDEX"),
        (
            lambda tx, of: tx.updates_at([(of.key, 1), (of.key, 2)]),
            "USING PRIMARY KEY (job_key=? AND revision=?)",
        ),
        (lambda tx, of: tx.count_open_of([of]), "updates_by_state (job_key=? AND state=?)"),
        (lambda tx, of: _scan(tx, of, newest_first=True), "updates_by_time"),
        (lambda tx, of: _scan(tx, of, newest_first=False), "updates_by_time"),
        (
            lambda tx, of: _scan(tx, of, newest_first=True, author="me"),
            "updates_by_author (author=? AND create_time",
        ),
        (lambda tx, of: _audit(tx), "audit_records_by_time (time>? AND time<?)"),
        (lambda tx, of: _audit(tx, principal="a"), "audit_records_by_principal (principal=? AND"),
        (lambda tx, of: _audit(tx, root="jobs/j"), "audit_records_by_root (root=? AND time>?"),
        (lambda tx, of: tx.prune_audit_records(NOW, 5), "audit_records_by_time (time<?)"),
        (lambda tx, of: tx.batches(beyond=9, limit=5), "USING INTEGER PRIMARY KEY"),
        (lambda tx, of: tx.batch_by_request("me", "r"), "(author=? AND request_id=?)"),
        (lambda tx, of: tx.batch_members(BATCH), "updates_by_batch (batch=?)"),
        (lambda tx, of: tx.batch_members(BATCH, limit=8), "updates_by_batch (batch=?)"),
        (lambda tx, of: tx.batch_states(BATCH), "COVERING INDEX updates_by_batch (batch=?)"),
        (lambda tx, of: tx.batch_counts([BATCH]), "COVERING INDEX updates_by_batch (batch=?)"),
        (lambda tx, of: tx.uncounted_batches(after=1, limit=5), "batches_not_counted (key>?)"),
        (lambda tx, of: tx.count_ended(BATCH), "COVERING INDEX updates_by_batch (batch=?)"),
        (lambda tx, of: tx.delete_job(of), "USING PRIMARY KEY (job_key=?)"),
        (lambda tx, of: tx.batch_refusals(BATCH), "USING PRIMARY KEY (batch_key=?)"),
        (lambda tx, of: tx.read_ahead_telemetry([of]), "sqlite_autoindex_telemetry_1"),
        (lambda tx, of: tx.events(after=3, limit=5), "USING INTEGER PRIMARY KEY"),
        (lambda tx, of: tx.metric_names(of), "(job_key=?)"),
        (
            lambda tx, of: tx.samples(of, "loss", spans=[(1, 0, None)]),
            "USING PRIMARY KEY (series_key=? AND step>? AND step<?)",
        ),
        (
            lambda tx, of: tx.prune(samples_before=9, events_before=of.create_time, limit=9),
            "series_by_oldest_time",
        ),
    ],
)
async def test_every_look_up_goes_through_an_index(store: Store, work: Any, plan: str) -> None:
    of = await add_job(store)
    await add_samples(store, of, range(3))

    def explain(tx: Transaction) -> list[str]:
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        statements: list[str] = []
        # Filled in with the values, so that they can be run again.
        driver.set_trace_callback(statements.append)
        work(tx, tx.job("j"))
        driver.set_trace_callback(None)
        return [
            step[3]
            for statement in statements
            if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE"))
            for step in driver.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]

    steps = await store.write(explain)
    assert any(plan in step for step in steps), steps
    scans = [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]
    # Pruning looks at the first events, in the order of their positions, up to its limit.
    bounded = ["SCAN events", "SCAN anon_1", "SCAN anon_2", "SCAN CONSTANT ROW"]
    assert set(scans) <= set(bounded if "SEARCH series" in " ".join(steps) else ()), steps
    assert "USE TEMP B-TREE FOR ORDER BY" not in steps


async def test_batches_that_were_counted_are_not_counted_again(store: Store) -> None:
    def asked(tx: Transaction) -> list[str]:
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        statements: list[str] = []
        driver.set_trace_callback(statements.append)
        counts = tx.batch_counts([replace(BATCH, ended={UpdateState.APPLIED: 9_000})])
        driver.set_trace_callback(None)
        assert counts == {1: {UpdateState.APPLIED: 9_000}}
        return statements

    assert await store.write(asked) == []
