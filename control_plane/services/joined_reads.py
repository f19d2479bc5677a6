"""Reads that many ask for at the same moment, such as when a batch wakes a thousand sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked(Generic[K]):
    """One read that somebody waits for."""

    key: K
    work: Callable[[Transaction], Any]
    answer: asyncio.Future[Any]


class JoinedReads(Generic[K]):
    """Does reads together, on one view of the store, that are asked for while another one runs.

    Each costs a statement or two less of its own, and none its own way to a thread and back.
    To be used from one event loop.
    """

    def __init__(
        self, store: Store, read_ahead: Callable[[Transaction, Sequence[K]], None]
    ) -> None:
        """Takes its parts.

        Args:
            store: Where to read.
            read_ahead: Reads what the reads of some keys will ask for, at once.
        """
        self._store = store
        self._read_ahead = read_ahead
        self._asked: list[_Asked[K]] = []
        self._running: asyncio.Task[None] | None = None

    async def read(self, key: K, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed now. It must not write.

        Raises:
            Refusal: If the store can not be read.
            BaseException: Whatever `work` raises.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(key, work, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return cast("T", await answer)

    async def _run(self) -> None:
        try:
            # Whoever is woken by the same event asks before this goes on.
            await asyncio.sleep(0)
            while self._asked:
                taken, self._asked = self._asked, []
                await self._answer([asked for asked in taken if not asked.answer.done()])
        finally:
            self._running = None

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
            if each.answer.done():
                continue
            if fault is None:
                each.answer.set_result(value)
            else:
                each.answer.set_exception(fault)


def _attempt(
    work: Callable[[Transaction], T], tx: Transaction
) -> tuple[T | None, BaseException | None]:
    try:
        return work(tx), None
    except BaseException as error:  # noqa: BLE001 - raised where it was asked for
        return None, error
