"""What is in the database at the end, read without the control plane's own reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never, cast

from sqlalchemy import Engine, create_engine, func, select

from control_plane.domain import parameter as domain
from control_plane.domain import update as updates
from control_plane.domain.names import batch_name
from control_plane.store import schema
from tests.faults.lines import AnyRecord
from tests.faults.records import (
    Change,
    Move,
    Number,
    Outcome,
    StoredBatch,
    StoredEvent,
    StoredJob,
    StoredUpdate,
)


def engine_of(database: str) -> Engine:
    """Opens a database, which others may use at the same time."""
    if database.startswith("postgresql:"):
        return create_engine(database.replace("postgresql:", "postgresql+psycopg:", 1))
    return create_engine(f"sqlite:///{database}")


def newest_positions(engine: Engine) -> dict[str, int]:
    """Position of each job's newest event."""
    query = select(schema.events.c.job_id, func.max(schema.events.c.position)).group_by(
        schema.events.c.job_id
    )
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def stored_records(engine: Engine) -> Iterator[AnyRecord]:
    """All jobs, updates, batches and events that there are."""
    jobs, found, batches, events = schema.jobs, schema.updates, schema.batches, schema.events
    with engine.connect() as connection:
        ids: dict[int, str] = {}
        for row in connection.execute(select(jobs).order_by(jobs.c.id)):
            ids[row.key] = row.id
            yield StoredJob(
                job=row.id,
                revision=row.revision,
                epoch=row.session.epoch if row.session else 0,
                floor=row.replay_floor,
            )
        query = select(found).order_by(found.c.job_key, found.c.revision)
        for row in connection.execute(query):
            yield StoredUpdate(
                job=ids[row.job_key],
                revision=row.revision,
                request_id=row.request_id or "",
                state=str(row.state),
                changes=_changes(row.spec.changes),
                batch=row.batch,
                action="" if row.spec.action is None else str(row.spec.action.kind),
                outcome=None if row.outcome is None else _outcome(row.outcome),
                reapplied=tuple(_outcome(each) for each in row.reapplied),
                rolled_back_by=_rolled_back_by(row.outcome, row.reapplied),
            )
        for row in connection.execute(select(batches).order_by(batches.c.key)):
            yield StoredBatch(batch=batch_name(row.key), request_id=row.request_id)
        for row in connection.execute(select(events).order_by(events.c.position)):
            yield StoredEvent(
                position=row.position, event=row.kind.value, job=row.job_id, revision=row.revision
            )


def _changes(changes: Iterable[domain.Change]) -> tuple[Change, ...]:
    made = []
    for change in changes:
        match change:
            case domain.SetChange():
                made.append(Change(change.parameter, "set", _number(change.value)))
            case domain.MultiplyChange():
                made.append(Change(change.parameter, "multiply", change.factor))
            case _:
                raise AssertionError(f"nobody has asked for this: {change}")
    return tuple(made)


def _rolled_back_by(
    outcome: updates.Outcome | None, reapplied: Sequence[updates.Applied]
) -> int | None:
    last = reapplied[-1] if reapplied else outcome
    return last.rolled_back_by if isinstance(last, updates.Applied) else None


def _outcome(outcome: updates.Outcome) -> Outcome:
    match outcome:
        case updates.Applied():
            moves = tuple(
                Move(
                    each.parameter,
                    None if each.old is None else _number(each.old),
                    None if each.new is None else _number(each.new),
                )
                for each in outcome.transitions
            )
            return Outcome(
                "applied", outcome.instance_id, outcome.step, moves, checkpoint=outcome.checkpoint
            )
        case updates.Rejected():
            return Outcome("rejected", reason=outcome.reason)
        case updates.Expired():
            return Outcome("expired", reason=outcome.cause.value)
        case updates.Cancelled():
            return Outcome("cancelled", reason=outcome.reason)
        case _:
            assert_never(outcome)


def _number(value: domain.Value) -> Number:
    return cast("Number", value)
