"""docs/operations.md and the alerting rules fit together, and commands do what they say."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import yaml

from control_plane.config import ServerSettings
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text()
ALERTS = ROOT / "docs" / "prometheus" / "alerts.yaml"
DURATION = r"[1-9]\d*[smh]"


def test_every_alert_is_a_rule_that_is_explained() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 10
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert re.fullmatch(DURATION, rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / page == PAGE
        assert anchor == rule["alert"].lower()
    assert re.findall(r"^### (\S+)$", TEXT, re.MULTILINE) == names


def test_the_first_error_of_a_method_is_noticed_too() -> None:
    """Its series begins with it, and what begins has not increased."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    (rule,) = [r for r in group["rules"] if r["alert"] == "MidcourseInternalErrors"]
    increased, _, begun = rule["expr"].partition(" or ")
    (counted,) = re.findall(r"increase\((\S+)\[5m\]\)", increased)
    assert f"({counted} unless {counted} offset 5m)" in begun


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        page = PAGE.parent / path if path else PAGE
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            made = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in made, target


def test_settings_that_are_named_have_the_defaults_that_are_told() -> None:
    told = dict(re.findall(r"`(retain_\w+|lost_after)` \((\d+)\)", TEXT))
    for name, days in told.items():
        if name in ServerSettings.model_fields:
            assert ServerSettings.model_fields[name].default == float(days), name
    assert {"retain_samples_days", "retain_events_days", "retain_audit_days"} <= set(told)


def test_the_commands_for_backups_copy_what_is_in_the_log_alone(tmp_path: Path) -> None:
    assert ".backup" in TEXT
    assert "VACUUM INTO" in TEXT
    source = tmp_path / "control.db"
    with contextlib.closing(sqlite3.connect(source)) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("CREATE TABLE t (x)")
        writing.execute("INSERT INTO t VALUES (1)")
        writing.commit()
        assert source.with_name("control.db-wal").stat().st_size
        with contextlib.closing(sqlite3.connect(source)) as reading:
            reading.execute("VACUUM INTO ?", [str(tmp_path / "vacuumed.db")])
            with contextlib.closing(sqlite3.connect(tmp_path / "backed-up.db")) as target:
                reading.backup(target)
        for copy in ("vacuumed.db", "backed-up.db"):
            with contextlib.closing(sqlite3.connect(tmp_path / copy)) as restored:
                assert restored.execute("SELECT x FROM t").fetchall() == [(1,)]
