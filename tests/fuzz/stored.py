"""What a control plane has on disk, read beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_WHOLE = ("jobs", "updates", "runs", "batches", "batch_refusals", "tokens")


def stored_in(database: Path) -> dict[str, object]:
    """All that a change would change, by table; of the record of events its end."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found: dict[str, object] = {
            table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in _WHOLE
        }
        found["events"] = connection.execute("SELECT max(position) FROM events").fetchone()
    return found


def difference(before: dict[str, object], after: dict[str, object]) -> str:
    """What has changed in between, in words; empty: nothing."""
    return "; ".join(
        f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    )
