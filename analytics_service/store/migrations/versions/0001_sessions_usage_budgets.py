"""Sessions, messages, requests, usage, budgets with their windows, replicas, audit records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "analytics_0001"
down_revision = None
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Makes everything."""
    op.create_table(
        "sessions",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("principal", _KEY, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("model_id", _KEY),
        sa.Column("follow_successor", sa.Boolean, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.Column("message_count", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("unknown_cost_calls", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("running_message", sa.BigInteger),
    )
    op.create_index("sessions_by_updated", "sessions", ["updated", "id"])
    op.create_index("sessions_by_principal", "sessions", ["principal", "updated", "id"])
    op.create_table(
        "messages",
        sa.Column(
            "session_id",
            _KEY,
            sa.ForeignKey("sessions.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("parts", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger),
        sa.Column("model", sa.Text),
        sa.Column("citations", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("unknown_cost_calls", sa.BigInteger, nullable=False),
        sa.Column("replica", _KEY),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
    )
    _index_running("messages_running", "messages", "state")
    op.create_table(
        "requests",
        sa.Column("principal", _KEY, primary_key=True),
        sa.Column("request_id", _KEY, primary_key=True),
        sa.Column("fingerprint", _KEY, nullable=False),
        sa.Column(
            "session_id",
            _KEY,
            sa.ForeignKey("sessions.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
        sa.Column("message_number", sa.BigInteger, nullable=False),
    )
    op.create_index("requests_by_session", "requests", ["session_id"])
    op.create_table(
        "usage",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("principal", _KEY, nullable=False),
        sa.Column("session_id", _KEY, nullable=False),
        sa.Column("message_number", sa.BigInteger, nullable=False),
        sa.Column("requested_model", _KEY, nullable=False),
        sa.Column("used_model", _KEY, nullable=False),
        sa.Column("provider", _KEY, nullable=False),
        sa.Column("round", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("replica", _KEY, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("estimated_cost", sa.BigInteger),
        sa.Column("estimated_tokens", sa.Text, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("served_model", sa.Text),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cache_read_tokens", sa.BigInteger),
        sa.Column("cache_write_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("cost", sa.BigInteger),
        sa.Column("unknown_reason", sa.Text, nullable=False),
        sa.Column("rates", sa.Text),
        sa.Column("time_to_first_token", sa.Double),
        sa.Column("duration", sa.Double),
    )
    _index_running("usage_running", "usage", "outcome")
    op.create_index("usage_by_time", "usage", ["time"])
    op.create_index("usage_by_principal_time", "usage", ["principal", "time"])
    op.create_index("usage_by_principal", "usage", ["principal", "id"])
    op.create_index("usage_by_model_time", "usage", ["used_model", "time"])
    op.create_index("usage_by_model", "usage", ["used_model", "id"])
    op.create_index("usage_by_session", "usage", ["session_id", "id"])
    op.create_table(
        "budgets",
        sa.Column("key", _COUNTER, primary_key=True, autoincrement=True),
        sa.Column("principal", _KEY, nullable=False),
        sa.Column("model_id", _KEY, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("most", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("principal", "model_id", "period"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "budget_windows",
        sa.Column(
            "budget",
            sa.BigInteger,
            sa.ForeignKey("budgets.key", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("start", sa.BigInteger, primary_key=True),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
    )
    op.create_index("budget_windows_by_start", "budget_windows", ["start"])
    op.create_table(
        "replicas",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("beat", sa.BigInteger, nullable=False),
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


def _index_running(name: str, table: str, column: str) -> None:
    """An index of the few rows whose state is still running."""
    running = sa.text(f"{column} = 'running'")
    op.create_index(name, table, ["replica"], sqlite_where=running, postgresql_where=running)
