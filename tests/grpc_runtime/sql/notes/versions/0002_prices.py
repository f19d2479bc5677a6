"""Prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "notes_0002"
down_revision = "notes_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("key", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.BigInteger),
        sa.Column("colour", sa.String),
        sa.Column("price", sa.Text().with_variant(sa.Numeric(), "postgresql")),
    )
