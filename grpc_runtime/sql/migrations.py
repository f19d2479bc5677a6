"""Brings a database's tables up to date, by Alembic.

Each file in the folder `versions` of a package is one revision: what it did is history
and is not changed any more. A new one gets the next number, and names the one before it
as `down_revision`.

Most starts find nothing to do, and do not load Alembic to find that out.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from grpc_runtime.logging import get_logger
from grpc_runtime.sql.errors import DatabaseOpenError

if TYPE_CHECKING:
    from types import ModuleType

    from sqlalchemy import Connection

_REVISION = re.compile(r'^revision = "([^"]+)"$', re.MULTILINE)

_log = get_logger(__name__)


def upgrade(connection: Connection, package: ModuleType, database: str) -> None:
    """Runs the migrations that a database lacks, within the transaction that is open.

    Args:
        connection: In a transaction that keeps others from doing the same.
        package: Holds the revisions, in its folder `versions`.
        database: What to call the database in errors, without secrets.

    Raises:
        DatabaseOpenError: If the database was made by a newer version, or by another program.
    """
    if _is_newest(connection, package):
        return
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    # It tells of each step at the level of information, before anything is done or not done.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    scripts = ScriptDirectory(next(iter(package.__path__)))
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
        raise DatabaseOpenError(
            f"the database {database} belongs to another program (its tables: "
            f"{', '.join(tables[:5])}); choose another {_another(connection)}"
        )
    head = scripts.get_current_head()
    unknown = set(present) - {script.revision for script in scripts.walk_revisions()}
    if unknown:
        raise DatabaseOpenError(
            f"the database {database} has schema {', '.join(sorted(unknown))}, but this version "
            f"knows schemas up to {head}; run the newer version that has "
            f"used it before, or choose another {_another(connection)}"
        )
    if present == (head,):
        return
    with Operations.context(context):
        context.run_migrations()
    _log.info(
        "database migrated",
        database=database,
        from_revision=", ".join(present) or None,
        to_revision=head,
    )


def _is_newest(connection: Connection, package: ModuleType) -> bool:
    """Whether a database has the revision with the highest number."""
    newest = max(Path(next(iter(package.__path__)), "versions").glob("[0-9]*.py"))
    told = _REVISION.search(newest.read_text("utf-8"))
    if told is None or not inspect(connection).has_table("alembic_version"):
        return False
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
    return found == [told[1]]


def _another(connection: Connection) -> str:
    return "path" if connection.dialect.name == "sqlite" else "database"
