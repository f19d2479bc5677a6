"""One thread that writes, and commits for many at once.

A commit waits for the disk, which takes longer than the work that it makes durable.
So whatever is asked for while the disk is busy shares the next commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy.exc import DBAPIError

from grpc_runtime.failpoints import reached
from grpc_runtime.sql.errors import DatabaseClosedError, TransactionLostError
from grpc_runtime.sql.faults import translated
from grpc_runtime.sql.prepared import execute
from grpc_runtime.sql.threads import Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Transaction

T = TypeVar("T")

MAX_WAITING = 1_024
"""Callers that have handed work in and wait for it; more wait for room first."""
MAX_GROUP = 256
"""Units in one commit."""
MAX_GROUP_SECONDS = 0.02
"""After so long nothing more joins a group, so that its first unit need not wait for its last."""


@dataclass(slots=True, eq=False)
class _Unit(Asked):
    """Work of one caller, and what became of it."""

    work: Callable[[Connection], Any] = lambda _: None


class GroupCommit:
    """Runs units of work one after the other on a thread of its own.

    Every unit takes effect whole or not at all, whatever becomes of its neighbours,
    and is answered after its commit is on disk.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        in_transaction: Callable[[], bool],
        changes: Callable[[], int],
    ) -> None:
        """Starts the thread.

        Args:
            connection: Begins transactions that keep other writers out. Belongs to the
                thread until `join` has returned.
            in_transaction: Whether the database itself is in a transaction.
            changes: How many rows the connection has changed so far.
        """
        self._connection = connection
        self._in_transaction = in_transaction
        self._changes = changes
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sql-writer", daemon=True)
        self._thread.start()

    async def write(
        self, work: Callable[[Connection], T], *, orphaned: Callable[[], None] | None = None
    ) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        If the caller is cancelled, the work is done whole or not at all.

        Args:
            work: What to do.
            orphaned: Called after the commit if the caller was cancelled meanwhile.

        Raises:
            DatabaseUnavailableError: If the database can not be written to.
            DatabaseClosedError: After `stop`.
            BaseException: Whatever `work` raises.
        """
        async with self._room:
            if self._closing:
                raise DatabaseClosedError
            unit = _Unit(asyncio.get_running_loop().create_future(), orphaned, work=work)
            self._queue.put(unit)
            return cast(T, await unit.result())

    def stop(self) -> None:
        """Takes nothing more. To be called where `write` is, so that neither is cut in two."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)

    def join(self) -> None:
        """Waits until everything that was taken before `stop` is done. Blocks."""
        self._thread.join()

    def _run(self) -> None:
        while (unit := self._queue.get()) is not None:
            if unit.done.cancelled():
                continue
            group = [unit]
            try:
                self._run_group(group, self._joining(group, time.monotonic() + MAX_GROUP_SECONDS))
            except BaseException as error:  # noqa: BLE001 - the thread lives on, the callers are told
                for member in group:
                    member.error = translated(error)
                # Whatever state the connection is in, the next group gets a fresh one.
                self._connection.invalidate()
                if (transaction := self._connection.get_transaction()) is not None:
                    transaction.close()
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                unit.done.get_loop().call_soon_threadsafe(_answer, group)

    def _joining(self, group: list[_Unit], end: float) -> Iterator[_Unit]:
        """Units that wait, while the group has room, and until `end`; puts them into it."""
        while len(group) < MAX_GROUP and time.monotonic() < end:
            try:
                unit = self._queue.get_nowait()
            except queue.Empty:
                return
            if unit is None:
                # Nothing comes after it, so this is its place again.
                self._queue.put(None)
                return
            if not unit.done.cancelled():
                group.append(unit)
                yield unit

    def _run_group(self, group: list[_Unit], joining: Iterable[_Unit] = ()) -> None:
        """Runs the group's first unit and those that join it, and commits once."""
        try:
            transaction = self._connection.begin()
        except DBAPIError as error:
            # Those who wait would fare the same, each after waiting as long.
            for unit in (group[0], *joining):
                unit.error = translated(error)
            return
        try:
            # Most that fails is refused before it has changed anything, so that there is nothing
            # to undo. Savepoints are for where there was.
            if all(self._attempt(unit) for unit in chain([group[0]], joining)):
                _commit(transaction)
                return
            transaction.rollback()
            if len(group) > 1:
                self._run_carefully(group)
        except (DBAPIError, TransactionLostError) as error:
            transaction.rollback()
            self._run_alone(group, error)

    def _run_carefully(self, group: list[_Unit]) -> None:
        """Runs units so that each can be undone by itself, and commits once."""
        transaction = self._connection.begin()
        try:
            for unit in group:
                execute(self._connection, "SAVEPOINT unit")
                if not self._attempt(unit):
                    execute(self._connection, "ROLLBACK TO unit")
                execute(self._connection, "RELEASE unit")
            _commit(transaction)
        except (DBAPIError, TransactionLostError) as error:
            transaction.rollback()
            self._run_alone(group, error)

    def _run_alone(self, group: list[_Unit], error: Exception) -> None:
        """Runs units each with a commit of its own, after they have failed together."""
        if len(group) == 1:
            group[0].error = group[0].error or translated(error)
            return
        # It may be one unit's fault, such as the one that filled the disk.
        for unit in group:
            self._run_group([unit])

    def _attempt(self, unit: _Unit) -> bool:
        """Runs a unit's work; returns whether nothing is to be undone."""
        unit.value = unit.error = None
        before = self._changes()
        try:
            unit.value = unit.work(self._connection)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            unit.error = translated(error)
        if not self._in_transaction():
            raise TransactionLostError("the database has undone the transaction by itself")
        return unit.error is None or self._changes() == before


def _commit(transaction: Transaction) -> None:
    reached("commit.before")
    transaction.commit()
    reached("commit.after")


def _answer(group: Iterable[_Unit]) -> None:
    for unit in group:
        unit.answer()
