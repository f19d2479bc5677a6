"""Jobs, updates, runs, events, telemetry and samples."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# Positions are given in the order of the commits: whoever writes events takes a lock that it
# keeps until its commit, before the first of them gets its position. Else one with a higher
# position could be seen before one with a lower, which would then be passed over. The same
# place wakes the replicas, by a message that is sent with the commit.
_EVENTS_IN_ORDER = (
    """
    CREATE FUNCTION events_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(6653456812345678);
        PERFORM pg_notify('midcourse_events', '');
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER events_in_order BEFORE INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_in_order()
    """,
)


def upgrade() -> None:
    """Makes everything."""
    op.create_table(
        "jobs",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("id", _KEY, nullable=False, unique=True),
        sa.Column("uid", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("state_message", sa.Text, nullable=False),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.Column("actions", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("settled_revision", sa.BigInteger, nullable=False),
        sa.Column("replay_floor", sa.BigInteger, nullable=False),
        sa.Column("desired", sa.Text, nullable=False),
        sa.Column("effective", sa.Text, nullable=False),
        sa.Column("session", sa.Text),
        sa.Column("exit", sa.Text),
        sa.Column("label_edits", sa.Text, nullable=False),
        sa.Column("replica", _KEY, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_state", "jobs", ["state", "replica"])
    op.create_table(
        "updates",
        _job_key(),
        sa.Column("revision", sa.BigInteger, primary_key=True),
        sa.Column("request_id", _KEY),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("deadline", sa.BigInteger),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("batch", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("deliver_time", sa.BigInteger),
        sa.Column("settle_time", sa.BigInteger),
        sa.Column("cancel_request", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("reapplied", sa.Text, nullable=False),
        sa.Column("trace_parent", sa.String, nullable=False),
        sa.UniqueConstraint("job_key", "request_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("updates_by_state", "updates", ["job_key", "state", "revision"])
    in_time = ["create_time", "job_key", "revision"]
    op.create_index("updates_by_time", "updates", in_time)
    op.create_index("updates_by_author", "updates", ["author", *in_time])
    is_of_a_batch = sa.text("batch != ''")
    op.create_index(
        "updates_by_batch",
        "updates",
        ["batch", "job_key", "state"],
        sqlite_where=is_of_a_batch,
        postgresql_where=is_of_a_batch,
    )
    is_due = sa.text("deadline IS NOT NULL AND state IN ('delivered', 'pending')")
    op.create_index(
        "updates_open_by_deadline",
        "updates",
        ["deadline"],
        sqlite_where=is_due,
        postgresql_where=is_due,
    )
    op.create_table(
        "batches",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False),
        sa.Column("best_effort", sa.Boolean, nullable=False),
        sa.Column("author", sa.String, nullable=False),
        sa.Column("request_id", _KEY, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Text),
        sa.UniqueConstraint("author", "request_id"),
        sqlite_autoincrement=True,
    )
    not_counted = sa.text("ended IS NULL")
    op.create_index(
        "batches_not_counted",
        "batches",
        ["key"],
        sqlite_where=not_counted,
        postgresql_where=not_counted,
    )
    op.create_table(
        "batch_refusals",
        sa.Column(
            "batch_key",
            sa.BigInteger,
            sa.ForeignKey("batches.key", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("job_id", _KEY, primary_key=True),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        _job_key(),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("instance_id", sa.String, nullable=False),
        sa.Column("start_step", sa.BigInteger, nullable=False),
        sa.Column("superseded", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("position", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("job_uid", sa.String, nullable=False),
        sa.Column("revision", sa.BigInteger),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("origin", _KEY, nullable=False),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        for statement in _EVENTS_IN_ORDER:
            op.execute(statement)
    op.create_table(
        "telemetry",
        _job_key(),
        sa.Column("progress", sa.Text),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("dropped_samples", sa.BigInteger, nullable=False),
        sa.Column("readings", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seen_time", sa.BigInteger),
    )
    op.create_table(
        "tokens",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("id", _KEY, nullable=False, unique=True),
        sa.Column("digest", _KEY, nullable=False, unique=True),
        sa.Column("principal", sa.String, nullable=False),
        sa.Column("access", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("creator", sa.String, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("revoke_time", sa.BigInteger),
        sa.Column("last_use_time", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit_records",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("principal", _KEY, nullable=False),
        sa.Column("peer", sa.String, nullable=False),
        sa.Column("method", sa.String, nullable=False),
        sa.Column("resource", _KEY, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("error_reason", sa.String, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("root", _KEY, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_records_by_time", "audit_records", ["time", "key"])
    for by in ("principal", "root"):
        op.create_index(f"audit_records_by_{by}", "audit_records", [by, "time", "key"])
    op.create_table(
        "replicas",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("beats", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "series",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("job_key", sa.BigInteger, sa.ForeignKey("jobs.key", ondelete="SET NULL")),
        sa.Column("run", sa.BigInteger, nullable=False),
        sa.Column("name", _KEY, nullable=False),
        sa.Column("oldest_time", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("job_key", "run", "name"),
        sqlite_autoincrement=True,
    )
    op.create_index("series_by_oldest_time", "series", ["oldest_time"])
    op.create_table(
        "samples",
        sa.Column("series_key", sa.BigInteger, primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sqlite_with_rowid=False,
    )


def _job_key() -> sa.Column[int]:
    return sa.Column(
        "job_key",
        sa.BigInteger,
        sa.ForeignKey("jobs.key", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
