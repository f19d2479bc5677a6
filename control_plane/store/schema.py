"""The tables. Migrations make them; this is what the queries are written against.

Times are whole microseconds since 1970. Values that are never searched for are JSON
text. Numbers are 64 bits wide.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.types import TypeDecorator

from control_plane.domain.access import Access
from control_plane.domain.job import (
    Desired,
    Effective,
    JobState,
    MetricPoint,
    Progress,
    ReadValue,
    SessionInfo,
    TrainerExit,
)
from control_plane.domain.parameter import ParameterSpec
from control_plane.domain.update import (
    OPEN_STATES,
    ActionKind,
    Applied,
    Cancelled,
    Outcome,
    UpdateSpec,
    UpdateState,
)
from control_plane.services.records import EventKind
from control_plane.store.codec import remembering
from grpc_runtime.sql import KEY, Name, UtcTime
from grpc_runtime.sql.audit import audit_table


def is_one_of(column: ColumnElement[Any], names: Collection[StrEnum]) -> ColumnElement[bool]:
    """Whether a column has one of the names.

    They are written out, not handed over beside the statement: an index with a condition
    serves only queries with the same condition, word for word.
    """
    return column.in_([literal_column(f"'{name}'") for name in sorted(names)])


class Json(TypeDecorator[Any]):
    """A domain value as JSON text; None is NULL."""

    impl = Text
    cache_ok = True

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of
        self._codec = remembering(of)

    # Not by `process_bind_param` and the like, each of which is two calls more for every value.

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:
        """To the database."""
        encode = self._codec.encode
        return lambda value: None if value is None else encode(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], Any]:
        """From the database."""
        decode, known = self._codec.decode, self._codec.known

        def value(text: str | None) -> Any:
            found = known(text)
            return found if found is not None or text is None else decode(text)

        return value


# SQLite counts up by itself only in columns of just this type; they are 64 bits wide all the same.
_Counter = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("key", _Counter, primary_key=True, autoincrement=True),
    Column("id", KEY, nullable=False, unique=True),
    Column("uid", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("labels", Json(dict[str, str]), nullable=False),
    Column("method", String, nullable=False),
    Column("state", Name(JobState), nullable=False),
    Column("state_message", Text, nullable=False),
    Column("parameters", Json(tuple[ParameterSpec, ...]), nullable=False),
    Column("actions", Json(tuple[ActionKind, ...]), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("settled_revision", BigInteger, nullable=False),
    Column("replay_floor", BigInteger, nullable=False),
    Column("desired", Json(tuple[Desired, ...]), nullable=False),
    Column("effective", Json(tuple[Effective, ...]), nullable=False),
    Column("session", Json(SessionInfo)),
    Column("exit", Json(TrainerExit)),
    Column("label_edits", Json(dict[str, str | None]), nullable=False),
    # Who has the stream of the job's session open, as the session says; empty: nobody.
    Column("replica", KEY, nullable=False),
    # Keys are never reused, so whatever refers to a deleted job can not hit another one.
    sqlite_autoincrement=True,
)

# Jobs that seem to be alive, by who would hear of them.
Index("jobs_by_state", jobs.c.state, jobs.c.replica)

updates = Table(
    "updates",
    metadata,
    Column("job_key", BigInteger, ForeignKey(jobs.c.key, ondelete="CASCADE"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    # NULL where the caller gave none: those are all different.
    Column("request_id", KEY),
    Column("state", Name(UpdateState), nullable=False),
    # Without its deadline, which has a column of its own.
    Column("spec", Json(UpdateSpec), nullable=False),
    Column("deadline", UtcTime),
    Column("author", String, nullable=False),
    Column("batch", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("deliver_time", UtcTime),
    Column("settle_time", UtcTime),
    Column("cancel_request", Json(Cancelled)),
    Column("outcome", Json(Outcome)),
    Column("reapplied", Json(tuple[Applied, ...]), nullable=False),
    Column("trace_parent", String, nullable=False),
    UniqueConstraint("job_key", "request_id"),
    sqlite_with_rowid=False,
)

# Open updates of a job, applied ones above a revision, a history of some states.
Index("updates_by_state", updates.c.job_key, updates.c.state, updates.c.revision)

# Those of all jobs in the order of their times; for those of one author likewise.
Index("updates_by_time", updates.c.create_time, updates.c.job_key, updates.c.revision)
Index(
    "updates_by_author",
    *(updates.c.author, updates.c.create_time, updates.c.job_key, updates.c.revision),
)

# Most updates belong to no batch.
IS_OF_A_BATCH = updates.c.batch != literal_column("''")
Index(
    "updates_by_batch",
    *(updates.c.batch, updates.c.job_key, updates.c.state),
    sqlite_where=IS_OF_A_BATCH,
    postgresql_where=IS_OF_A_BATCH,
)

# Few, however long the histories grow.
IS_OPEN = is_one_of(updates.c.state, sorted(OPEN_STATES))
_IS_DUE = updates.c.deadline.is_not(None) & IS_OPEN
Index(
    "updates_open_by_deadline",
    updates.c.deadline,
    sqlite_where=_IS_DUE,
    postgresql_where=_IS_DUE,
)

batches = Table(
    "batches",
    metadata,
    Column("key", _Counter, primary_key=True, autoincrement=True),
    Column("spec", Json(UpdateSpec), nullable=False),
    Column("selector", Text, nullable=False),
    Column("best_effort", Boolean, nullable=False),
    Column("author", String, nullable=False),
    Column("request_id", KEY, nullable=False),
    Column("digest", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    # How many updates ended in which state; NULL until none is open and somebody has counted.
    Column("ended", Json(dict[UpdateState, int])),
    UniqueConstraint("author", "request_id"),
    sqlite_autoincrement=True,
)

# Those that are still to be counted: few, however many batches there were.
NOT_COUNTED = batches.c.ended.is_(None)
Index(
    "batches_not_counted",
    batches.c.key,
    sqlite_where=NOT_COUNTED,
    postgresql_where=NOT_COUNTED,
)

# Jobs that a batch chose and that did not take it.
batch_refusals = Table(
    "batch_refusals",
    metadata,
    Column(
        "batch_key", BigInteger, ForeignKey(batches.c.key, ondelete="CASCADE"), primary_key=True
    ),
    Column("job_id", KEY, primary_key=True),
    Column("reason", String, nullable=False),
    Column("message", Text, nullable=False),
    sqlite_with_rowid=False,
)

runs = Table(
    "runs",
    metadata,
    Column("job_key", BigInteger, ForeignKey(jobs.c.key, ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("instance_id", String, nullable=False),
    Column("start_step", BigInteger, nullable=False),
    Column("superseded", Boolean, nullable=False),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    Column("position", _Counter, primary_key=True, autoincrement=True),
    Column("kind", Name(EventKind), nullable=False),
    Column("job_id", String, nullable=False),
    Column("job_uid", String, nullable=False),
    Column("revision", BigInteger),
    Column("time", UtcTime, nullable=False),
    # The replica that has written it, which needs no telling.
    Column("origin", KEY, nullable=False),
    # A position is never given twice, even when the events with the highest ones are gone.
    sqlite_autoincrement=True,
)

telemetry = Table(
    "telemetry",
    metadata,
    Column(
        "job_key",
        BigInteger,
        ForeignKey(jobs.c.key, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("progress", Json(Progress)),
    Column("metrics", Json(tuple[MetricPoint, ...]), nullable=False),
    Column("dropped_samples", BigInteger, nullable=False),
    Column("readings", Json(tuple[ReadValue, ...]), nullable=False),
    # The session that it comes from: nothing of an older one takes its place.
    Column("epoch", BigInteger, nullable=False),
    Column("seen_time", UtcTime),
)

# What is kept of tokens; a secret itself is nowhere.
tokens = Table(
    "tokens",
    metadata,
    Column("key", _Counter, primary_key=True, autoincrement=True),
    Column("id", KEY, nullable=False, unique=True),
    # SHA-256 of the secret.
    Column("digest", KEY, nullable=False, unique=True),
    Column("principal", String, nullable=False),
    Column("access", Json(Access), nullable=False),
    Column("description", Text, nullable=False),
    Column("creator", String, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("expire_time", UtcTime),
    Column("revoke_time", UtcTime),
    Column("last_use_time", UtcTime),
    sqlite_autoincrement=True,
)

# Who changed what, and who was refused.
audit_records = audit_table(metadata)

# Replicas that are alive: each counts on while it is.
replicas = Table(
    "replicas",
    metadata,
    Column("id", KEY, primary_key=True),
    Column("beats", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What one metric did in one run. Samples carry only its number, which keeps them small.
series = Table(
    "series",
    metadata,
    Column("key", _Counter, primary_key=True, autoincrement=True),
    # NULL once the job is deleted: its samples may be many, so they go bit by bit.
    Column("job_key", BigInteger, ForeignKey(jobs.c.key, ondelete="SET NULL")),
    Column("run", BigInteger, nullable=False),
    Column("name", KEY, nullable=False),
    # When its first sample was taken: tells which series have samples that are too old.
    Column("oldest_time", BigInteger, nullable=False),
    UniqueConstraint("job_key", "run", "name"),
    sqlite_autoincrement=True,
)
Index("series_by_oldest_time", series.c.oldest_time)

samples = Table(
    "samples",
    metadata,
    # No foreign key: checking it would cost as much as the row. Only keys that the same
    # transaction has seen are written, and a series goes after its samples.
    Column("series_key", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("time", BigInteger, nullable=False),
    # NULL is NaN, which SQLite does not have.
    Column("value", Double),
    sqlite_with_rowid=False,
)
