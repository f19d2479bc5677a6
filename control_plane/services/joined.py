"""Reads and writes that many ask for at the same moment, such as when a batch reaches its jobs."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from control_plane.domain.errors import Reason, Refusal

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction

K = TypeVar("K")
T = TypeVar("T")

ReadAhead = Callable[["Transaction", Sequence[K]], None]
"""Reads at once what the work for some keys will ask for."""

MOST_JOINED = 256
"""Writes in one transaction: whoever else writes waits for no longer than these take."""
GATHER_SECONDS = 0.005
"""Waited for more, where several came while the last transaction ran …"""
_SEVERAL = 4
"""… namely so many. One by itself never waits."""


@dataclass(frozen=True, slots=True)
class _Asked(Generic[K]):
    """What somebody waits for."""

    key: K
    work: Callable[[Transaction], Any]
    answer: asyncio.Future[Any]


class _Joined(ABC, Generic[K]):
    """Does together what is asked for while something runs. To be used from one event loop."""

    def __init__(self, store: Store, read_ahead: ReadAhead[K]) -> None:
        """Takes its parts.

        Args:
            store: Where to read, and perhaps write.
            read_ahead: Reads what the work for some keys will ask for, at once.
        """
        self._store = store
        self._read_ahead = read_ahead
        self._asked: list[_Asked[K]] = []
        self._running: asyncio.Task[None] | None = None

    def ask(self, key: K, work: Callable[[Transaction], T]) -> asyncio.Future[T]:
        """Has `work` run soon; returns what will have its result."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(key, work, answer))
        if self._running is None:
            # Outside of the call that is being served: it is for others as well.
            self._running = asyncio.create_task(self._run(), context=contextvars.Context())
        return answer

    async def _run(self) -> None:
        try:
            # Whoever is woken by the same event asks before this goes on.
            await asyncio.sleep(0)
            while self._asked:
                taken = self._asked[:MOST_JOINED]
                del self._asked[:MOST_JOINED]
                wanted = [asked for asked in taken if not asked.answer.done()]
                if wanted:
                    await self._answer(wanted)
                await self._gather(len(taken))
        finally:
            self._running = None

    async def _gather(self, before: int) -> None:
        """Waits for more to be asked for, after so many were together."""

    @abstractmethod
    async def _answer(self, asked: Sequence[_Asked[K]]) -> None:
        """Does what is asked for, and answers all of it."""


class JoinedReads(_Joined[K]):
    """Does reads together, on one view of the store, that are asked for while another one runs.

    Each costs a statement or two less of its own, and none its own way to a thread and back.
    """

    async def _answer(self, asked: Sequence[_Asked[K]]) -> None:
        def work(tx: Transaction) -> list[tuple[Any, BaseException | None]]:
            self._read_ahead(tx, [each.key for each in asked])
            return [_attempt(each.work, tx) for each in asked]

        answers: list[tuple[Any, BaseException | None]]
        try:
            answers = await self._store.read(work)
        except BaseException as error:  # noqa: BLE001 - it is each caller's
            answers = [(None, error)] * len(asked)
        for each, (value, fault) in zip(asked, answers, strict=True):
            _settle(each, value, fault)


class JoinedWrites(_Joined[K]):
    """Does writes together, in one transaction, that are asked for while another one runs.

    They take effect one after the other, as they were asked for. One that fails harms no other:
    then each has a transaction of its own.
    """

    def __init__(
        self, store: Store, read_ahead: ReadAhead[K], written: Callable[[Sequence[K]], None]
    ) -> None:
        """Takes its parts.

        Args:
            store: Where to write.
            read_ahead: Reads what the work for some keys will ask for, at once.
            written: Is told of the keys whose work has been committed, whether or not whoever
                asked for it still waits.
        """
        super().__init__(store, read_ahead)
        self._written = written
        self._together = 0

    @property
    def is_crowded(self) -> bool:
        """Whether several were written together the last time."""
        return self._together >= _SEVERAL

    async def write(self, key: K, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit.

        Raises:
            Refusal: If the store can not be written to.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        return await self.ask(key, work)

    async def _gather(self, before: int) -> None:
        if before >= _SEVERAL:
            await asyncio.sleep(GATHER_SECONDS)

    async def _answer(self, asked: Sequence[_Asked[K]]) -> None:
        def work(tx: Transaction) -> list[Any]:
            self._read_ahead(tx, [each.key for each in asked])
            return [each.work(tx) for each in asked]

        try:
            values = await self._store.write(work)
        except BaseException as error:  # noqa: BLE001 - it is each caller's
            if len(asked) == 1 or _is_the_stores(error):
                for each in asked:
                    _settle(each, None, error)
            else:
                await asyncio.gather(*(self._answer([each]) for each in asked))
            return
        self._together = len(asked)
        self._written([each.key for each in asked])
        for each, value in zip(asked, values, strict=True):
            _settle(each, value, None)


def _is_the_stores(error: BaseException) -> bool:
    """Whether everybody's work would fail in the same way."""
    return isinstance(error, Refusal) and error.reason in (
        Reason.STORE_UNAVAILABLE,
        Reason.SHUTTING_DOWN,
    )


def _settle(asked: _Asked[Any], value: Any, fault: BaseException | None) -> None:
    if asked.answer.done():
        return
    if fault is None:
        asked.answer.set_result(value)
    else:
        asked.answer.set_exception(fault)


def _attempt(
    work: Callable[[Transaction], T], tx: Transaction
) -> tuple[T | None, BaseException | None]:
    try:
        return work(tx), None
    except BaseException as error:  # noqa: BLE001 - raised where it was asked for
        return None, error
