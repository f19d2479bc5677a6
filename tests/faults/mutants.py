"""Mutants: a promise that is broken on purpose, so that its validator has something to find.

Each replaces one behaviour of the product at run time, in this process alone and for as long as a
block runs: the code that holds up a promise is taken out, and nothing else changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from control_plane.domain import update as lifecycle
from control_plane.domain.update import Applied as AppliedOutcome
from control_plane.services import agent_session, batches, fenced_store, updates, views, watch
from control_plane.store import bulk, following
from control_plane.store import updates as stored_updates
from grpc_runtime.sql import postgresql
from tests.faults import mutants_in_training as in_training

if TYPE_CHECKING:
    from control_plane.domain.job import Job
    from control_plane.domain.update import Outcome, Update
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.records import Event
    from control_plane.services.updates import Submission

T = TypeVar("T")
Patch = AbstractContextManager[object]

NEVER_SECONDS = 300.0
"""When what is put off would be done: the process is dead by then."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A behaviour that is taken out.

    Attributes:
        what: What the product does then, in words.
        breaks: The promise that it breaks, whose validator has to say so.
        patched: Takes it out while a block runs.
    """

    what: str
    breaks: str
    patched: Callable[[], Patch]


# ------------------------------------------------------------------------------------- callers


class _TriedError(Exception):
    """Carries the result out of a transaction that is not to be committed."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class _Hasty:
    """A store that answers first and commits later."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._later: set[asyncio.Task[Any]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        def trial(tx: Transaction) -> T:
            raise _TriedError(work(tx))

        try:
            return await self._store.write(trial)
        except _TriedError as tried:
            self._later.add(asyncio.create_task(self._commit(work)))
            result: T = tried.result
            return result

    async def _commit(self, work: Callable[[Transaction], Any]) -> None:
        await asyncio.sleep(NEVER_SECONDS)
        await self._store.write(work)


def _answers_before_the_commit() -> Patch:
    begin = updates.UpdateService.__init__

    def hasty(self: Any, store: Store, *args: Any, **options: Any) -> None:
        begin(self, _Hasty(store), *args, **options)

    return mock.patch.object(updates.UpdateService, "__init__", hasty)


def _acknowledges_before_the_commit() -> Patch:
    take = agent_session.AgentSession.outcome

    async def hasty(self: agent_session.AgentSession, number: int, outcome: Any) -> None:
        self.done(number)
        await asyncio.sleep(NEVER_SECONDS)
        await take(self, number, outcome)

    return mock.patch.object(agent_session.AgentSession, "outcome", hasty)


def _forgets_request_ids() -> Patch:
    submit = updates.UpdateService.submit

    async def forgetful(self: updates.UpdateService, submission: Submission) -> Update:
        return await submit(self, replace(submission, request_id=""))

    return mock.patch.object(updates.UpdateService, "submit", forgetful)


def _ignores_expected_revisions() -> Patch:
    return mock.patch.object(updates, "check_revision", return_value=None)


@contextlib.contextmanager
def _counts_outside_of_the_lock() -> Iterator[None]:
    need_job = views.need_job
    known: dict[str, int] = {}

    def stale(tx: Transaction, job_id: str) -> Job:
        job = need_job(tx, job_id)
        return replace(job, revision=known.setdefault(job_id, job.revision))

    def over(connection: Any, table: Any, columns: Any, rows: Iterable[Sequence[Any]]) -> None:
        converted = bulk._converted(connection.dialect, table, columns, rows)
        whole = [tuple(row) for row in converted]
        bulk.write_rows(connection, table, columns, whole, replace=True)

    with (
        mock.patch.object(updates, "need_job", stale),
        mock.patch.object(stored_updates, "insert_rows", over),
    ):
        yield


def _accepts_half_a_batch() -> Patch:
    accept = updates.accept_all_in

    def half(tx: Transaction, accepted: Sequence[tuple[Job, Update]], now: Any) -> list[Job]:
        return accept(tx, accepted[: len(accepted) // 2], now)

    return mock.patch.object(batches, "accept_all_in", half)


# ------------------------------------------------------------------------------------- sessions


@contextlib.contextmanager
def _lets_older_sessions_write() -> Iterator[None]:
    end = agent_session.AgentSession.end

    def unfenced(self: fenced_store.FencedStore, tx: Transaction) -> Job:
        job = tx.job(self.job_id)
        assert job is not None
        return job

    def lets_live(self: agent_session.AgentSession, refusal: Any) -> None:
        if refusal.reason != "SESSION_FENCED":
            end(self, refusal)

    with (
        mock.patch.object(fenced_store.FencedStore, "job", unfenced),
        mock.patch.object(agent_session.AgentSession, "end", lets_live),
    ):
        yield


def _settles_again() -> Patch:
    settle = lifecycle.settle

    def again(update: Update, outcome: Outcome, now: Any) -> Update:
        if update.is_open or not isinstance(outcome, AppliedOutcome):
            return settle(update, outcome, now)
        return replace(update, reapplied=(*update.reapplied, outcome))

    return mock.patch.object(updates, "settle", again)


# -------------------------------------------------------------------------------------- watchers


def _leaves_out_a_position() -> Patch:
    read = watch.WatchService._events
    victims: list[int] = []

    async def gappy(self: watch.WatchService, position: int) -> Any:
        found = await read(self, position)
        if not victims and found:
            victims.append(position + 3)
        return [each for each in found if each[0].position not in victims]

    return mock.patch.object(watch.WatchService, "_events", gappy)


def _tells_a_position_again() -> Patch:
    read = watch.WatchService._events
    looks: list[int] = []

    async def stuttering(self: watch.WatchService, position: int) -> Any:
        looks.append(position)
        again = len(looks) > 3 and looks.count(position) == 1
        return await read(self, position - 1 if again else position)

    return mock.patch.object(watch.WatchService, "_events", stuttering)


async def _only_listens(
    connecting: dict[str, Any], _name: str, channel: str, heard: Callable[[], None], *_: object
) -> None:
    """Listens, and does not think of what was sent while it did not."""
    import psycopg
    from psycopg import sql

    while True:
        with contextlib.suppress(psycopg.OperationalError):
            connection: Any = await psycopg.AsyncConnection.connect(**connecting, autocommit=True)
            async with connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                async for _ in connection.notifies():
                    heard()
        await asyncio.sleep(0.05)


def _does_not_look_after_listening_again() -> Patch:
    return mock.patch.object(postgresql, "listen", _only_listens)


@contextlib.contextmanager
def _takes_the_notification_for_the_record() -> Iterator[None]:
    """A wake-up brings the event that it is about, and the table is not read for others."""
    read_on = following.Follower._read_on
    read = watch.WatchService._events
    told: set[int] = set()

    async def carried(self: following.Follower, heard: Callable[[Any], None]) -> bool:
        def hear(events: Sequence[Event] | None) -> None:
            newest = list(events or ())[-1:]
            told.update(event.position for event in newest)
            heard(newest)

        return await read_on(self, hear)

    async def of_those(self: watch.WatchService, position: int) -> Any:
        return [each for each in await read(self, position) if each[0].position in told]

    with (
        mock.patch.object(postgresql, "listen", _only_listens),
        mock.patch.object(following.Follower, "_read_on", carried),
        mock.patch.object(watch.WatchService, "_events", of_those),
    ):
        yield


MUTANTS: dict[str, Mutant] = {
    "answers-before-commit": Mutant(
        "answers a caller before its update is on disk", "durable", _answers_before_the_commit
    ),
    "acknowledges-before-commit": Mutant(
        "acknowledges an outcome before it is on disk", "durable", _acknowledges_before_the_commit
    ),
    "revision-without-lock": Mutant(
        "reads the newest revision outside of the transaction that gives the next one",
        "ordered",
        _counts_outside_of_the_lock,
    ),
    "newest-first": Mutant(
        "applies what is due at one boundary newest first",
        "ordered",
        in_training.applies_the_newest_first,
    ),
    "delivery-applied-again": Mutant(
        "applies an update again that is delivered again", "once", in_training.applies_each_delivery
    ),
    "outcome-taken-again": Mutant(
        "takes an outcome again that is told again", "once", _settles_again
    ),
    "rolled-back-sent-again": Mutant(
        "sends what was rolled back again, to a process that lacks it",
        "once",
        in_training.sends_what_was_rolled_back,
    ),
    "nothing-sent-again": Mutant(
        "sends nothing again to a process that lacks what was applied before",
        "once",
        in_training.sends_nothing_again,
    ),
    "checkpoint-forgotten": Mutant(
        "goes on from a checkpoint without what that says of updates",
        "once",
        in_training.forgets_its_checkpoint,
    ),
    "in-force-not-saved": Mutant(
        "saves a checkpoint that does not say what is in force there",
        "once",
        in_training.saves_nothing_of_what_is_in_force,
    ),
    "no-read-back": Mutant(
        "reports what was asked for as what is in force, without reading it back",
        "truthful",
        in_training.believes_what_it_was_asked,
    ),
    "no-verification": Mutant(
        "reports a change without looking at what its first step used",
        "truthful",
        in_training.takes_it_for_granted,
    ),
    "no-undo": Mutant(
        "leaves the first change in force where the second is refused",
        "atomic",
        in_training.leaves_half_of_it,
    ),
    "two-boundaries": Mutant(
        "makes the changes of one update at different boundaries",
        "atomic",
        in_training.applies_piece_by_piece,
    ),
    "half-a-batch": Mutant("accepts a batch for some of its jobs", "atomic", _accepts_half_a_batch),
    "request-id-forgotten": Mutant(
        "takes a repeated request for a new one", "idempotent", _forgets_request_ids
    ),
    "expected-revision-ignored": Mutant(
        "takes an update whatever revision it expects",
        "compare-and-set",
        _ignores_expected_revisions,
    ),
    "no-fence": Mutant(
        "lets an older session of a job write", "fenced", _lets_older_sessions_write
    ),
    "position-left-out": Mutant(
        "leaves an event out of a watch", "watchable", _leaves_out_a_position
    ),
    "position-repeated": Mutant(
        "tells a watcher of an event again", "watchable", _tells_a_position_again
    ),
    "no-look-after-listening": Mutant(
        "does not read the table once it listens again",
        "watchable",
        _does_not_look_after_listening_again,
    ),
    "notification-is-data": Mutant(
        "goes by what notifications carry instead of reading the table",
        "watchable",
        _takes_the_notification_for_the_record,
    ),
}
"""All of them, by name. What perturbs training is no message: see tests/methods."""
