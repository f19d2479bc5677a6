"""The store in an SQLite file: the contract, durability, and which addresses are taken."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from control_plane.store import StoreError, open_store
from tests.contract.store_contract import StoreContract
from tests.control_plane.store.helpers import environment, python


class TestSqliteStore(StoreContract):
    """The contract that every store keeps."""


async def ids_in(path: Path) -> set[str]:
    store = await open_store(path)
    try:
        return {one.id for one in await store.read(lambda tx: tx.jobs(limit=100_000))}
    finally:
        await store.close()


WRITE_AND_SAY = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from control_plane.store import open_store
from tests.support.domain_values import job

async def main():
    store = await open_store(sys.argv[1])
    for number in range(1_000_000):
        await store.write(lambda tx: tx.insert_job(job(id=f"j{number}")))
        print(number, flush=True)

configure_logging()
asyncio.run(main())
"""


def test_what_was_answered_survives_a_kill(path: Path) -> None:
    with subprocess.Popen(
        python(WRITE_AND_SAY, path), stdout=subprocess.PIPE, text=True, env=environment()
    ) as child:
        assert child.stdout is not None
        for _ in range(50):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        # Whatever it said up to its death was on disk before.
        rest = child.stdout.read().split()
    last = int(rest[-1]) if rest else 49
    found = asyncio.run(ids_in(path))
    assert {f"j{number}" for number in range(last + 1)} <= found
    assert len(found) <= last + 2


OPEN_AND_WAIT = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from control_plane.store import open_store

async def main():
    store = await open_store(sys.argv[1])
    print("open", flush=True)
    sys.stdin.read()
    await store.close()

configure_logging()
asyncio.run(main())
"""


def test_a_second_process_is_refused_and_succeeds_later(path: Path) -> None:
    with subprocess.Popen(
        python(OPEN_AND_WAIT, path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        link = path.with_name("link.db")
        link.symlink_to(path)
        for name in (path, link):
            with pytest.raises(StoreError, match=rf"\(process {child.pid}\) uses it; stop that"):
                asyncio.run(ids_in(name))
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert asyncio.run(ids_in(path)) == set()


# Which databases are taken


@pytest.mark.parametrize(
    "database",
    ["", ":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "file:x.db?mode=memory"],
)
async def test_a_database_that_is_no_file_is_refused(database: str) -> None:
    with pytest.raises(StoreError, match=r"allowed: the path of a file, or sqlite:///path"):
        await open_store(database)


async def test_another_kind_of_database_is_refused_without_showing_its_password() -> None:
    with pytest.raises(StoreError, match="can not store in a mysql:// address") as caught:
        await open_store("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Is a directory; check the path"):
        await open_store(tmp_path)
