"""The tables. Migrations make them; this is what the queries are written against.

Times are whole microseconds since 1970, money is whole units of 1e-12 US dollars. Values
that are never searched for are JSON text.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    literal_column,
)

from analytics_service.chat.conversation import (
    Citation,
    ErrorInfo,
    MessageState,
    ModelChoice,
    Part,
    Role,
)
from analytics_service.store.columns import Json, Money, OrAll, Words
from analytics_service.usage.records import CallOutcome, Period, Rates
from analytics_service.usage.tokens import TokenUsage
from grpc_runtime.sql import KEY, Name, UtcTime
from grpc_runtime.sql.audit import audit_table

# SQLite counts up by itself only in columns of just this type; they are 64 bits wide all the same.
_Counter = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("id", KEY, primary_key=True),
    Column("principal", KEY, nullable=False),
    Column("title", Words, nullable=False),
    Column("model_id", KEY),
    Column("follow_successor", Boolean, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
    Column("message_count", BigInteger, nullable=False),
    Column("cost", Money, nullable=False),
    Column("unknown_cost_calls", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    # Number of the answer that is running; NULL: the session is not busy.
    Column("running_message", BigInteger),
)
Index("sessions_by_updated", sessions.c.updated, sessions.c.id)
Index("sessions_by_principal", sessions.c.principal, sessions.c.updated, sessions.c.id)

messages = Table(
    "messages",
    metadata,
    Column("session_id", KEY, ForeignKey(sessions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("role", Name(Role), nullable=False),
    Column("state", Name(MessageState), nullable=False),
    Column("parts", Json(tuple[Annotated[Part, Field(discriminator="kind")], ...]), nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("ended", UtcTime),
    Column("model", Json(ModelChoice)),
    Column("citations", Json(tuple[Citation, ...]), nullable=False),
    Column("error", Json(ErrorInfo)),
    Column("cost", Money, nullable=False),
    Column("unknown_cost_calls", BigInteger, nullable=False),
    # The process that gets the answer; NULL: it is the caller's message.
    Column("replica", KEY),
    Column("cancel_requested", Boolean, nullable=False),
)

# Few, however long the history grows. The names are written out, not handed over beside the
# statement: an index with a condition serves only queries with the same one, word for word.
IS_RUNNING_MESSAGE = messages.c.state == literal_column(f"'{MessageState.RUNNING}'")
Index(
    "messages_running",
    messages.c.replica,
    sqlite_where=IS_RUNNING_MESSAGE,
    postgresql_where=IS_RUNNING_MESSAGE,
)

# What requests led to. They go with their sessions.
requests = Table(
    "requests",
    metadata,
    Column("principal", KEY, primary_key=True),
    Column("request_id", KEY, primary_key=True),
    Column("fingerprint", KEY, nullable=False),
    Column(
        "session_id",
        KEY,
        # Looked at when the transaction ends: a request is claimed before its session is made.
        ForeignKey(sessions.c.id, ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    Column("message_number", BigInteger, nullable=False),
)
Index("requests_by_session", requests.c.session_id)

# Without a foreign key to the sessions: usage stays when they go.
usage = Table(
    "usage",
    metadata,
    Column("id", KEY, primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("principal", KEY, nullable=False),
    Column("session_id", KEY, nullable=False),
    Column("message_number", BigInteger, nullable=False),
    Column("requested_model", KEY, nullable=False),
    Column("used_model", KEY, nullable=False),
    Column("provider", KEY, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("replica", KEY, nullable=False),
    Column("reserved", Money, nullable=False),
    Column("estimated_cost", Money),
    Column("estimated_tokens", Json(TokenUsage), nullable=False),
    Column("outcome", Name(CallOutcome), nullable=False),
    Column("error", Words, nullable=False),
    Column("served_model", Words),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cache_read_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("cost", Money),
    Column("unknown_reason", Words, nullable=False),
    Column("rates", Json(Rates)),
    Column("time_to_first_token", Double),
    Column("duration", Double),
)
IS_RUNNING_CALL = usage.c.outcome == literal_column(f"'{CallOutcome.RUNNING}'")
Index(
    "usage_running",
    usage.c.replica,
    sqlite_where=IS_RUNNING_CALL,
    postgresql_where=IS_RUNNING_CALL,
)
# For sums over a span of time, and for pages.
Index("usage_by_time", usage.c.time)
Index("usage_by_principal_time", usage.c.principal, usage.c.time)
Index("usage_by_principal", usage.c.principal, usage.c.id)
Index("usage_by_model_time", usage.c.used_model, usage.c.time)
Index("usage_by_model", usage.c.used_model, usage.c.id)
Index("usage_by_session", usage.c.session_id, usage.c.id)

# Budgets that have a limit; the others are not here.
budgets = Table(
    "budgets",
    metadata,
    Column("key", _Counter, primary_key=True, autoincrement=True),
    Column("principal", OrAll, nullable=False),
    Column("model_id", OrAll, nullable=False),
    Column("period", Name(Period), nullable=False),
    Column("most", Money, nullable=False),
    UniqueConstraint("principal", "model_id", "period"),
    # Keys are never reused, so no window of a budget that was lifted counts for another one.
    sqlite_autoincrement=True,
)

# What the usage of a span adds up to, for the budgets that have a limit.
windows = Table(
    "budget_windows",
    metadata,
    Column(
        "budget",
        BigInteger,
        ForeignKey(budgets.c.key, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("start", UtcTime, primary_key=True),
    Column("spent", Money, nullable=False),
    Column("estimated", Money, nullable=False),
    Column("reserved", Money, nullable=False),
)
Index("budget_windows_by_start", windows.c.start)

replicas = Table(
    "replicas",
    metadata,
    Column("id", KEY, primary_key=True),
    Column("beat", UtcTime, nullable=False),
)

# Who changed what, and who was refused.
audit_records = audit_table(metadata)
