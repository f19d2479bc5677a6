"""What the benchmarks print, keep and draw, from figures that are made up."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import documents
from tests.bench.noise import free_share
from tests.bench.report import (
    FAILED,
    MET,
    NOT_JUDGED,
    NOT_MET,
    Hop,
    Report,
    Row,
    figure,
    present,
)

ROWS = (
    Row("live update, p50", "ms", 0.8, 2.1, 2.7, "2 × the floor", part="live-update", free=0.98),
    Row("live update, p99", "ms", 1.9, 6.1, 4.4, part="live-update", load=1.5, free=0.98),
    Row("heartbeats", "/s", 40_000.0, 21_000.0, 20_000.0, at_least=True, part="intake"),
    Row("polling", "ms", None, 2.0, None, peer=540.0, part="polling"),
    Row("errors", "errors", None, 0.0, 0.0, part="chat"),
    Row("the rest of growth", "", None, None, failure="took longer than 60 s", part="growth"),
)
REPORT = Report(ROWS, (Hop("commit, on disk", 0.31, 1.2), Hop("all of it", 2.1, 6.0)))


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("below", "ms", None, 1.0, 2.0), MET),
        (Row("above", "ms", None, 3.0, 2.0), NOT_MET),
        (Row("as many", "/s", None, 2.0, 2.0, at_least=True), MET),
        (Row("too few", "/s", 9.0, 1.0, 2.0, at_least=True), NOT_MET),
        (Row("no goal", "ms", None, 3.0), NOT_JUDGED),
        (Row("the floor misses it too", "ms", 2.5, 3.0, 2.0), NOT_JUDGED),
        (Row("on a busy machine", "ms", None, 3.0, 2.0, free=0.5), NOT_JUDGED),
        (Row("met all the same", "ms", None, 1.0, 2.0, free=0.5), MET),
        (Row("failed", "", None, None, failure="out of luck"), FAILED),
    ],
    ids=lambda given: given.what if isinstance(given, Row) else given,
)
def test_a_figure_is_judged(row: Row, verdict: str) -> None:
    assert row.verdict[0] == verdict


def test_the_ratio_is_to_the_floor_or_else_to_the_peer() -> None:
    assert Row("", "ms", 2.0, 6.0, peer=60.0).ratio == 3.0
    assert Row("", "ms", None, 6.0, peer=60.0).ratio == 0.1
    assert Row("", "ms", None, 6.0).ratio is None
    assert Row("", "ms", 0.0, 6.0).ratio is None


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "out" / "bench.json")
    read = Report.read(tmp_path / "out" / "bench.json")
    assert (tuple(read.rows), tuple(read.hops)) == (ROWS, REPORT.hops)
    assert (read.taken, read.machine, read.quick) == (REPORT.taken, REPORT.machine, False)


def test_the_table_shows_every_row_with_its_verdict() -> None:
    shown = io.StringIO()
    present(ROWS, Console(file=shown, width=200))
    for row in ROWS:
        line = next(line for line in shown.getvalue().splitlines() if f" {row.what} " in line)
        assert row.verdict[0] in line
        assert row.verdict[1] in line


def test_figures_have_three_digits_and_unknown_ones_none() -> None:
    assert [figure(value, "ms") for value in (None, 0.0, 0.01234, 12.34, 12_345.6)] == [
        *("–", "0 ms", "0.0123 ms", "12.3 ms", "12,346 ms")
    ]


def test_a_page_gets_tables_and_plot_and_keeps_what_is_around_them(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    around = "# Before\n<!-- table: begin -->{}<!-- table: end -->\nbetween | \\1\n"
    around += "<!-- hops: begin -->{}<!-- hops: end -->\nafter\n"
    page.write_text(around.format("old", "old"))
    documents.renew(REPORT, page)
    written = page.read_text()
    assert "old" not in written
    assert "| live update, p99 | 1.9 ms | – | 6.1 ms | 3.21 × | ≤ 4.4 ms | **not met** |" in written
    assert "**failed**: took longer than 60 s" in written
    assert "| commit, on disk | 0.31 ms | 1.2 ms |" in written
    assert written.startswith("# Before\n")
    assert "between | \\1\n" in written
    drawing = (tmp_path / documents.PLOT).read_text()
    assert "live update, p50" in drawing
    assert "heartbeats" in drawing
    documents.renew(REPORT, page)
    assert (page.read_text(), (tmp_path / documents.PLOT).read_text()) == (written, drawing)


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Nothing\n")
    with pytest.raises(ValueError, match="table: begin"):
        documents.renew(REPORT, page)


def test_the_repositorys_page_has_the_markers() -> None:
    text = documents.PAGE.read_text()
    for name in ("table", "hops"):
        assert documents.between(text, name, "made").count("made") == text.count("made") + 1


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    documents.plot(Report(ROWS[3:]), tmp_path / "plot.svg")
    assert not (tmp_path / "plot.svg").exists()


def test_more_is_better_where_a_goal_is_the_least() -> None:
    assert documents.times_goal(ROWS[2], 40_000.0) == 0.5
    assert documents.times_goal(ROWS[0], 5.4) == pytest.approx(2.0)


def test_the_free_share_is_a_share() -> None:
    assert 0 < free_share() <= 1
