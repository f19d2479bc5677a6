"""Jobs: created, read, listed, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from control_plane.domain import selector
from control_plane.domain.access import scope_of
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.domain.session import Phase
from control_plane.services import jobs
from control_plane.services.jobs import new_job
from control_plane.services.ports import Transaction
from control_plane.services.scoped import ScopedStore
from tests.support.domain_values import NOW, set_rate
from tests.support.use_cases import UseCases, eventually, use_cases


async def names(plane: UseCases, text: str = "", states: Iterable[JobState] = ()) -> list[str]:
    """Ids of all jobs selected, page by page."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await plane.jobs.list(selector.parse(text), states, after=after, limit=2)
        assert len(page.jobs) <= 2
        found += [view.job.id for view in page.jobs]
        after = page.next_after
    return found


async def test_a_page_costs_the_same_however_few_jobs_are_wanted(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SCAN", 2)
    monkeypatch.setattr(jobs, "MOST_SCANNED", 4)
    for name in "abcdefghi":
        await plane.jobs.create(name, {"team": "nlp"} if name in "fi" else {}, "")
    page = await plane.jobs.list(selector.parse("team"), (), after="", limit=1)
    assert (page.jobs, page.next_after) == ((), "d")
    page = await plane.jobs.list(selector.parse("team"), (), after="d", limit=1)
    assert ([view.job.id for view in page.jobs], page.next_after) == (["f"], "h")
    assert await names(plane, "team") == ["f", "i"]


async def test_where_a_page_of_a_bounded_caller_ends_names_no_job_of_others(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SCAN", 2)
    monkeypatch.setattr(jobs, "MOST_SCANNED", 2)
    for name in "abcdefghi":
        await plane.jobs.create(name, {"team": "nlp"} if name in "bdfh" else {}, "")
    own: tuple[str, ...] = ()
    plane.jobs._store = ScopedStore(plane.store, lambda: scope_of("", own), lambda: "somebody")
    for text, wanted in (("", "abcdefghi"), ("team", "bdfh")):
        for own in (("x",), *map(tuple, ("a", "i", "cd", "fi", "aei", "bdg", "abcdefghi"))):
            found: list[str] = []
            places = [""]
            more = True
            while more:
                page = await plane.jobs.list(selector.parse(text), (), after=places[-1], limit=2)
                found += [view.job.id for view in page.jobs]
                more = page.next_after is not None
                places += [page.next_after] if page.next_after is not None else []
            assert found == [name for name in own if name in wanted]
            assert places == sorted(set(places))
            assert set(places[1:]) <= set(own)


async def test_a_created_job_is_pending_until_its_trainer_comes(plane: UseCases) -> None:
    made = await plane.jobs.create("j", {"team": "nlp"}, "dpo")
    assert (made.job.state, made.job.labels, made.job.method) == (
        JobState.PENDING,
        {"team": "nlp"},
        "dpo",
    )
    assert made.job.session is None
    await plane.session("j", labels={"gpu": "h100"})
    view = await plane.jobs.get("j")
    assert view.job.uid == made.job.uid
    assert view.job.state is JobState.RUNNING
    assert view.job.labels == {"team": "nlp", "gpu": "h100"}
    assert view.job.session is not None
    assert view.job.session.connected


async def test_a_job_is_created_once(plane: UseCases) -> None:
    await plane.jobs.create("j", {}, "")
    for validate_only in (False, True):
        with pytest.raises(Refusal) as refused:
            await plane.jobs.create("j", {}, "", validate_only=validate_only)
        assert refused.value.reason is Reason.JOB_EXISTS


async def test_to_validate_creates_nothing(plane: UseCases) -> None:
    made = await plane.jobs.create("j", {"a": "b"}, "sft", validate_only=True)
    assert made.job.id == "j"
    with pytest.raises(Refusal) as refused:
        await plane.jobs.get("j")
    assert refused.value.reason is Reason.JOB_NOT_FOUND
    assert await plane.store.read(lambda tx: tx.event_span()) == (0, 0)


@pytest.mark.parametrize(("job_id", "labels"), [("J", {}), ("j", {"-": ""}), ("j", {"a": "-"})])
async def test_what_may_not_be_is_not_created(
    plane: UseCases, job_id: str, labels: dict[str, str]
) -> None:
    with pytest.raises(Refusal) as refused:
        await plane.jobs.create(job_id, labels, "")
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    with pytest.raises(Refusal):
        await plane.session(job_id, labels=labels)
    assert await names(plane) == []


async def test_labels_of_a_hello_are_checked_for_a_known_job_too(plane: UseCases) -> None:
    await plane.jobs.create("j", {"team": "nlp"}, "")
    with pytest.raises(Refusal) as refused:
        await plane.session("j", labels={"a b": ""})
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    assert (await plane.job()).session is None


async def test_jobs_are_listed_in_order_by_label_state_and_method(plane: UseCases) -> None:
    for index in (3, 1, 4, 2, 0):
        await plane.jobs.create(f"job-{index}", {"parity": "odd" if index % 2 else "even"}, "")
    await plane.session("job-1")
    await plane.session("job-4", phase=Phase.PAUSED)
    assert await names(plane) == [f"job-{i}" for i in range(5)]
    assert await names(plane, "parity=odd") == ["job-1", "job-3"]
    assert await names(plane, "parity=even,method=sft") == ["job-4"]
    assert await names(plane, "state=paused") == ["job-4"]
    assert await names(plane, "job in (job-0,job-2)") == ["job-0", "job-2"]
    assert await names(plane, states=[JobState.RUNNING]) == ["job-1"]
    assert await names(plane, states=[JobState.RUNNING, JobState.PENDING]) == [
        *("job-0", "job-1", "job-2", "job-3")
    ]
    assert await names(plane, "nowhere") == []


async def test_a_label_hides_the_jobs_own_field(plane: UseCases) -> None:
    await plane.jobs.create("j", {"state": "mine"}, "")
    assert await names(plane, "state=mine") == ["j"]
    assert await names(plane, "state=pending") == []


async def test_paging_sees_every_job_beyond_one_scan(plane: UseCases) -> None:
    def fill(tx: Transaction) -> None:
        for i in range(450):
            tx.insert_job(new_job(f"j{i:04}", {"last": ""} if i >= 430 else {}, "", NOW))

    await plane.store.write(fill)
    assert await names(plane, "last") == [f"j{i:04}" for i in range(430, 450)]


async def test_a_job_goes_with_all_that_is_its_own(plane: UseCases) -> None:
    session = await plane.session()
    await plane.submit(set_rate(), request_id="r")
    await plane.sessions.close(session)
    uid = (await plane.job()).uid
    await plane.jobs.delete("j", "")
    for gone in (plane.jobs.get("j"), plane.updates.get("j", 1), plane.submit(set_rate())):
        with pytest.raises(Refusal) as refused:
            await gone
        assert refused.value.reason is Reason.JOB_NOT_FOUND
    await plane.session()
    anew = await plane.job()
    assert anew.uid != uid
    assert (anew.revision, anew.desired) == (0, ())
    assert (await plane.submit(set_rate(2e-5), request_id="r")).revision == 1


async def test_deleting_asks_for_the_etag_if_given(plane: UseCases) -> None:
    stale = (await plane.jobs.create("j", {}, "")).job.etag
    await plane.sessions.close(await plane.session())
    with pytest.raises(Refusal) as refused:
        await plane.jobs.delete("j", stale)
    assert refused.value.reason is Reason.ETAG_MISMATCH
    current = refused.value.metadata["etag"]
    await plane.jobs.delete("j", current, validate_only=True)
    await plane.jobs.get("j")
    await plane.jobs.delete("j", current)
    with pytest.raises(Refusal) as refused:
        await plane.jobs.delete("j", "")
    assert refused.value.reason is Reason.JOB_NOT_FOUND


async def test_labels_are_set_and_removed_and_stay_so(plane: UseCases) -> None:
    etag = (await plane.jobs.create("j", {"team": "nlp", "old": ""}, "")).job.etag
    tried = await plane.jobs.label("j", {"team": "cv"}, ("old",), etag, validate_only=True)
    assert tried.job.labels == {"team": "cv"}
    assert (await plane.job()).labels == {"team": "nlp", "old": ""}

    edited = await plane.jobs.label("j", {"team": "cv"}, ("old",), etag)
    assert edited.job.labels == {"team": "cv"}
    with pytest.raises(Refusal) as refused:
        await plane.jobs.label("j", {}, ("team",), etag)
    assert refused.value.reason is Reason.ETAG_MISMATCH
    with pytest.raises(Refusal) as refused:
        await plane.jobs.label("nobody", {"team": "cv"}, (), "")
    assert refused.value.reason is Reason.JOB_NOT_FOUND

    await plane.session("j", labels={"team": "nlp", "old": "1", "gpu": "h100"})
    assert (await plane.job()).labels == {"team": "cv", "gpu": "h100"}
    events = (await plane.store.read(lambda tx: tx.event_span()))[1]
    same = await plane.jobs.label("j", {"team": "cv"}, (), "")
    assert same.job.labels == {"team": "cv", "gpu": "h100"}
    assert (await plane.store.read(lambda tx: tx.event_span()))[1] == events, "nothing has changed"


async def test_a_live_job_is_not_deleted(plane: UseCases) -> None:
    session = await plane.session()
    with pytest.raises(Refusal) as refused:
        await plane.jobs.delete("j", "")
    assert refused.value.reason is Reason.JOB_HAS_LIVE_SESSION
    await plane.sessions.close(session)
    await plane.jobs.delete("j", "")


async def test_whoever_waits_for_an_update_learns_that_the_job_is_gone(plane: UseCases) -> None:
    await plane.sessions.close(await plane.session())
    await plane.submit(set_rate())
    waiting = asyncio.ensure_future(plane.updates.wait("j", 1, 60))
    await eventually(lambda: plane.bus._subscribers.get("updates/j"), "that it waits")
    await plane.jobs.delete("j", "")
    with pytest.raises(Refusal) as refused:
        await asyncio.wait_for(waiting, 5)
    assert refused.value.reason is Reason.JOB_NOT_FOUND


async def test_jobs_are_there_after_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "control.db"
    async with use_cases(database) as first:
        made = await first.jobs.create("j", {"team": "nlp"}, "sft")
        await first.session("k")
        one = await first.jobs.get("k")
    async with use_cases(database) as second:
        assert (await second.jobs.get("j")).job == made.job
        again = await second.jobs.get("k")
        assert again.job.etag == one.job.etag
        assert again.job.parameters == one.job.parameters
        assert again.job.session is not None
        assert not again.job.session.connected, "no stream is open on the new server"
