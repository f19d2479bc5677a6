"""Watches: a snapshot, then every change in order, without gaps or repeats, from any position."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain import selector
from control_plane.domain.access import scope_of
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, Progress
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.services import watch as watch_module
from control_plane.services.upkeep import Retention
from control_plane.services.watch import WatchItem, WatchKind, _Shown
from tests.support.domain_values import NOW, set_rate, settled
from tests.support.use_cases import Talk, UseCases, heartbeat, use_cases


class Watch:
    """A watch that is read with a time limit."""

    def __init__(self, items: AsyncIterator[WatchItem]) -> None:
        self._items = items
        self.seen: list[WatchItem] = []

    async def next(self) -> WatchItem:
        item = await asyncio.wait_for(anext(self._items), 10)
        self.seen.append(item)
        return item

    async def until(self, kind: WatchKind) -> list[WatchItem]:
        """Items up to one of a kind, that one included."""
        items = [await self.next()]
        while items[-1].kind is not kind:
            items.append(await self.next())
        return items


@contextlib.asynccontextmanager
async def watching(plane: UseCases, text: str = "", **options: Any) -> AsyncIterator[Watch]:
    items = plane.watches.watch(selector.parse(text), **options)
    try:
        yield Watch(items)
    finally:
        await items.aclose()
        assert not plane.bus._subscribers.get("jobs")


async def test_a_watch_that_goes_on_keeps_nothing_of_jobs_that_are_gone(plane: UseCases) -> None:
    async with watching(plane) as watch:
        await watch.until(WatchKind.BOOKMARK)
        for number in range(5):
            await plane.jobs.create(f"gone-{number}", {}, "")
            await watch.until(WatchKind.CREATED)
            await plane.jobs.delete(f"gone-{number}", "")
            await watch.until(WatchKind.DELETED)
        await plane.jobs.create("there", {}, "")
        await watch.until(WatchKind.CREATED)
        (shown,) = (each for each in gc.get_objects() if isinstance(each, _Shown))
        assert len(shown._known) == 1


def short(item: WatchItem) -> tuple[str, str, int | None]:
    return (item.kind.value, item.job_id, item.update.revision if item.update else None)


async def test_a_snapshot_then_changes_then_resumption(plane: UseCases) -> None:
    await plane.session("a")
    await plane.jobs.create("b", {}, "")
    async with watching(plane) as watch:
        snapshot = await watch.until(WatchKind.BOOKMARK)
        assert [short(i) for i in snapshot] == [
            ("snapshot", "a", None),
            ("snapshot", "b", None),
            ("bookmark", "", None),
        ]
        assert [i.position is None for i in snapshot] == [True, True, False]
        await plane.submit(set_rate(), "a")
        await plane.jobs.create("c", {}, "")
        await plane.jobs.delete("b", "")
        changes = [await watch.next() for _ in range(3)]
        assert [short(i) for i in changes] == [
            ("modified", "a", 1),
            ("created", "c", None),
            ("deleted", "b", None),
        ]
        assert changes[2].view is None
        positions = [i.position for i in (snapshot[-1], *changes)]
    assert None not in positions
    for index, position in enumerate(positions):
        async with watching(plane, position=position) as again:
            rest = [await again.next() for _ in changes[index:]]
            assert [i.position for i in rest] == positions[index + 1 :]
            assert [i.kind for i in rest] == [i.kind for i in changes[index:]]


async def test_who_goes_on_where_nothing_has_happened_hears_of_it_at_once(plane: UseCases) -> None:
    """Or it would take the silence for a connection that there is not."""
    await plane.jobs.create("j", {}, "")
    async with watching(plane) as watch:
        position = (await watch.until(WatchKind.BOOKMARK))[-1].position
    async with watching(plane, position=position) as again:
        item = await again.next()
        assert (short(item), item.position) == (("bookmark", "", None), position)
        await plane.jobs.create("k", {}, "")
        assert short(await again.next()) == ("created", "k", None)


async def test_no_change_is_missed_or_told_twice_under_load(plane: UseCases) -> None:
    sessions = [Talk(await plane.session(f"j{i}")) for i in range(3)]
    begun = asyncio.Event()

    async def steer(talk: Talk, job_id: str) -> None:
        await begun.wait()  # what is in the snapshot is told of as a change no more
        for _ in range(15):
            update = await plane.submit(set_rate(), job_id)
            await talk.session.outcome(talk.next(), settled(update.revision))

    async def follow() -> list[WatchItem]:
        """Reads a few, goes away, resumes; until all is applied."""
        seen: list[WatchItem] = []
        position: int | None = None
        while sum(1 for i in seen if i.update and not i.update.is_open) < 45:
            async with watching(plane, position=position) as watch:
                for _ in range(7):
                    item = await watch.next()
                    if item.position is not None:
                        position = item.position
                        begun.set()
                    if item.kind is WatchKind.MODIFIED:
                        seen.append(item)
                    settled_all = {(i.job_id, i.update.revision) for i in seen if i.update}
                    if len(settled_all) == 45 and len(seen) >= 90:
                        break
        return seen

    following = asyncio.ensure_future(follow())
    await asyncio.gather(*(steer(talk, f"j{i}") for i, talk in enumerate(sessions)))
    seen = await following
    positions = [i.position for i in seen if i.position is not None]
    assert positions == sorted(set(positions))
    async with watching(plane, position=positions[0]) as replay:
        told_again = [(await replay.next()).position for _ in positions[1:]]
    assert told_again == positions[1:]


async def test_a_selector_follows_jobs_in_and_out(plane: UseCases) -> None:
    async with watching(plane, "state=running") as watch:
        assert [i.kind for i in await watch.until(WatchKind.BOOKMARK)] == [WatchKind.BOOKMARK]
        await plane.jobs.create("j", {}, "")
        talk = Talk(await plane.session())
        item = await watch.next()
        assert item.view is not None
        await talk.session.event(talk.next(), TrainerEvent(Phase.PAUSED, "", NOW))
        while item.kind is not WatchKind.DELETED:
            item = await watch.next()
        assert (item.job_id, item.view) == ("j", None)
        await talk.session.event(talk.next(), TrainerEvent(Phase.TRAINING, "", NOW))
        back = await watch.next()
        assert back.view is not None
        assert back.view.job.state is JobState.RUNNING


async def test_whoever_resumes_learns_that_a_job_is_no_longer_selected(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    async with watching(plane, "state=running") as watch:
        position = (await watch.until(WatchKind.BOOKMARK))[-1].position
    await talk.session.event(talk.next(), TrainerEvent(Phase.FINISHED, "", NOW))
    await talk.session.event(talk.next(), TrainerEvent(Phase.UNKNOWN, "x", NOW))
    async with watching(plane, "state=running", position=position) as again:
        item = await again.next()
        assert short(item) == ("deleted", "j", None)
        await plane.session("k")
        assert (await again.next()).job_id == "k", "it is told once"


async def test_one_job_alone(plane: UseCases) -> None:
    await plane.session("a")
    async with watching(plane, job_id="b") as watch:
        assert [i.kind for i in await watch.until(WatchKind.BOOKMARK)] == [WatchKind.BOOKMARK]
        await plane.submit(set_rate(), "a")
        await plane.session("b")
        assert (await watch.next()).job_id == "b"


async def test_a_job_that_was_made_anew_is_another(plane: UseCases) -> None:
    first = (await plane.jobs.create("j", {}, "")).job.uid
    async with watching(plane) as watch:
        position = (await watch.until(WatchKind.BOOKMARK))[-1].position
        await plane.jobs.delete("j", "")
        second = (await plane.jobs.create("j", {}, "")).job.uid
        deleted, created = await watch.next(), await watch.next()
        assert (deleted.kind, deleted.job_uid) == (WatchKind.DELETED, first)
        assert (created.kind, created.job_uid) == (WatchKind.CREATED, second)
    async with watching(plane, position=position) as again:
        assert (await again.next()).job_uid == first
        assert (await again.next()).job_uid == second


async def test_progress_is_told_when_asked_for(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    async with watching(plane, progress_interval=0.01) as watch:
        await watch.until(WatchKind.BOOKMARK)
        await talk.session.heartbeat(talk.next(), heartbeat(7, loss=[1.0]))
        (item,) = await watch.until(WatchKind.PROGRESS)
        assert item.view is not None
        assert item.view.progress is not None
        assert item.view.progress.step == 7


async def test_progress_that_has_not_moved_is_not_told_again(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    async with watching(plane, progress_interval=0.001) as watch:
        await watch.until(WatchKind.BOOKMARK)
        await talk.session.heartbeat(talk.next(), heartbeat(7))
        await watch.until(WatchKind.PROGRESS)
        # It looks many times before it has something else to say.
        waiting = asyncio.create_task(watch.next())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        await plane.jobs.label("j", {"x": "y"}, (), "")
        assert (await waiting).kind is WatchKind.MODIFIED


async def test_progress_of_one_job_alone(plane: UseCases) -> None:
    talks = {name: Talk(await plane.session(name)) for name in "ab"}
    async with watching(plane, job_id="a", progress_interval=0.01) as watch:
        await watch.until(WatchKind.BOOKMARK)
        for name, step in (("b", 5), ("a", 6)):
            await talks[name].session.heartbeat(talks[name].next(), heartbeat(step))
        (item,) = await watch.until(WatchKind.PROGRESS)
        assert item.view is not None
        assert (item.job_id, item.view.progress) == ("a", Progress(6))


async def test_a_watch_of_one_job_outlives_it(plane: UseCases) -> None:
    """What is told of progress then is that of the job that is made anew."""
    session = await plane.session("a")
    async with watching(plane, job_id="a", progress_interval=0.01) as watch:
        await watch.until(WatchKind.BOOKMARK)
        await plane.sessions.close(session)
        await plane.jobs.delete("a", "")
        await watch.until(WatchKind.DELETED)
        other = Talk(await plane.session("b"))
        await other.session.heartbeat(other.next(), heartbeat(3))
        again = Talk(await plane.session("a"))
        await watch.until(WatchKind.CREATED)
        await again.session.heartbeat(again.next(), heartbeat(4))
        items = await watch.until(WatchKind.PROGRESS)
        assert {item.job_id for item in items} == {"a"}


async def test_who_hears_nothing_is_told_where_to_go_on(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_BOOKMARK_SECONDS", 0.01)
    await plane.session("a")
    async with watching(plane, "team=nobody") as watch:
        first = (await watch.until(WatchKind.BOOKMARK))[-1]
        await plane.submit(set_rate(), "a")  # of which this watch tells nothing
        later = await watch.next()
        while later.position == first.position:
            later = await watch.next()
        assert [each.kind for each in watch.seen] == [WatchKind.BOOKMARK] * len(watch.seen)
    async with watching(plane, "team=nobody", position=later.position) as again:
        assert (await again.next()).position == later.position


async def test_progress_is_not_told_unasked(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    async with watching(plane) as watch:
        await watch.until(WatchKind.BOOKMARK)
        await talk.session.heartbeat(talk.next(), heartbeat(7, loss=[1.0]))
        await plane.submit(set_rate())
        assert (await watch.next()).kind is WatchKind.MODIFIED


@pytest.mark.parametrize("position", [-1, 10**6, 2**63])
async def test_a_position_that_never_was_is_refused(plane: UseCases, position: int) -> None:
    await plane.jobs.create("j", {}, "")
    async with watching(plane, position=position) as watch:
        with pytest.raises(Refusal) as refused:
            await watch.next()
        assert refused.value.reason is Reason.POSITION_GONE


async def test_a_position_that_was_forgotten_is_refused(tmp_path: Path) -> None:
    retention = Retention(None, timedelta(seconds=10))
    async with use_cases(tmp_path / "c.db", retention=retention) as plane:
        for name in "abc":
            await plane.jobs.create(name, {}, "")
        async with watching(plane, position=0) as watch:
            assert (await watch.next()).job_id == "a"
        plane.clock.advance(60)
        await plane.jobs.create("d", {}, "")
        await plane.upkeep.prune()
        async with watching(plane, position=0) as watch:
            with pytest.raises(Refusal) as refused:
                await watch.next()
            assert refused.value.reason is Reason.POSITION_GONE
        async with watching(plane) as watch:
            position = (await watch.until(WatchKind.BOOKMARK))[-1].position
        await plane.jobs.create("e", {}, "")
        async with watching(plane, position=position) as watch:
            assert (await watch.next()).job_id == "e"


async def test_positions_are_good_after_a_restart(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db") as first, watching(first) as watch:
        position = (await watch.until(WatchKind.BOOKMARK))[-1].position
        await first.jobs.create("j", {}, "")
    async with use_cases(tmp_path / "c.db") as second, watching(second, position=position) as again:
        assert short(await again.next()) == ("created", "j", None)


async def test_who_may_see_some_jobs_goes_on_where_it_can_be_told_what_it_has(
    plane: UseCases,
) -> None:
    mine = scope_of("team=nlp", ("a*",))
    await plane.jobs.create("a1", {"team": "nlp"}, "")
    async with watching(plane, scope=mine) as watch:
        position = (await watch.until(WatchKind.BOOKMARK))[-1].position
    await plane.jobs.create("b1", {"team": "nlp"}, "")
    await plane.jobs.delete("b1", "")
    async with watching(plane, position=position, scope=mine) as again:
        # It can not have had that one, whatever its labels were.
        await plane.jobs.label("a1", {"x": "y"}, (), "")
        assert short(await again.next()) == ("modified", "a1", None)
    await plane.jobs.delete("a1", "")
    async with watching(plane, position=position, scope=mine) as again:
        with pytest.raises(Refusal) as refused:
            await again.next()
        assert refused.value.reason is Reason.POSITION_GONE


async def test_a_drain_ends_every_watch(plane: UseCases) -> None:
    async with watching(plane) as watch:
        await watch.until(WatchKind.BOOKMARK)
        waiting = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        await plane.drain()
        with pytest.raises(Refusal) as refused:
            await asyncio.wait_for(waiting, 5)
        assert refused.value.reason is Reason.SHUTTING_DOWN


async def test_more_jobs_and_events_than_one_read_takes(plane: UseCases) -> None:
    await asyncio.gather(*(plane.jobs.create(f"j{i:03}", {}, "") for i in range(230)))
    async with watching(plane) as watch:
        snapshot = await watch.until(WatchKind.BOOKMARK)
        assert len(snapshot) == 231
    async with watching(plane, position=0) as watch:
        created = [await watch.next() for _ in range(230)]
        assert len({i.job_id for i in created}) == 230
