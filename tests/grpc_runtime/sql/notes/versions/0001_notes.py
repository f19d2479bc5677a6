"""Notes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "notes_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
