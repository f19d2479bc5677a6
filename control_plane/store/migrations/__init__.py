"""Brings a database's tables up to date.

Each file in `versions` is one revision: what it did is history and is not changed any
more. A new one gets the next number, and names the one before it as `down_revision`.
"""

from __future__ import annotations

from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from control_plane.store.errors import StoreError


def upgrade(connection: Connection, database: str) -> None:
    """Runs the migrations that a database lacks, within the transaction that is open.

    Args:
        connection: In a transaction that keeps other writers out.
        database: What to call the database in errors.

    Raises:
        StoreError: If the database was made by a newer version, or by another program.
    """
    scripts = ScriptDirectory(str(Path(__file__).parent))
    context = MigrationContext.configure(
        connection,
        opts={
            # Alembic's own commands call just this.
            "fn": lambda revision, _: scripts._upgrade_revs("head", revision),  # noqa: SLF001
            "script": scripts,
        },
    )
    present = context.get_current_heads()
    if not present and (tables := inspect(connection).get_table_names()):
        raise StoreError(
            f"the database {database} belongs to another program (its tables: "
            f"{', '.join(tables[:5])}); choose another path"
        )
    unknown = set(present) - {script.revision for script in scripts.walk_revisions()}
    if unknown:
        raise StoreError(
            f"the database {database} has schema {', '.join(sorted(unknown))}, but this version "
            f"knows schemas up to {scripts.get_current_head()}; run the newer version that has "
            "used it before, or choose another path"
        )
    with Operations.context(context):
        context.run_migrations()
