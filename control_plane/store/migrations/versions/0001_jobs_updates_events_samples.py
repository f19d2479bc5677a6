"""Jobs, updates, runs, events, telemetry and samples."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes everything."""
    op.create_table(
        "jobs",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
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
        sqlite_autoincrement=True,
    )
    op.create_table(
        "updates",
        _job_key(),
        sa.Column("revision", sa.BigInteger, primary_key=True),
        sa.Column("request_id", sa.String),
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
        sa.UniqueConstraint("job_key", "request_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("updates_by_state", "updates", ["job_key", "state", "revision"])
    is_due = sa.text("deadline IS NOT NULL AND state IN ('delivered', 'pending')")
    op.create_index(
        "updates_open_by_deadline",
        "updates",
        ["deadline"],
        sqlite_where=is_due,
        postgresql_where=is_due,
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
        sqlite_autoincrement=True,
    )
    op.create_table(
        "telemetry",
        _job_key(),
        sa.Column("progress", sa.Text),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("dropped_samples", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "series",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("job_key", sa.BigInteger, sa.ForeignKey("jobs.key", ondelete="SET NULL")),
        sa.Column("run", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String, nullable=False),
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
