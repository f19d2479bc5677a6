"""Decides what to read for a model that can not decide it itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from analytics_service.chat.tools.jobs import last_active
from analytics_service.chat.tools.metrics import METRIC_SERIES, telling_metrics
from analytics_service.chat.tools.updates import UPDATE_HISTORY
from analytics_service.providers.base import ToolRequest
from control_plane.client import Client, job_id

MAX_JOBS: Final = 3
ACTIVE_JOBS: Final = 2
MAX_UPDATES: Final = 5
MAX_METRICS: Final = 4
_SCANNED_JOBS: Final = 2_000
_WORD: Final = re.compile(r"[^\W_]+")
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")


def jobs_in_question(client: Client, question: str) -> list[str]:
    """The jobs that a question names, else those that were active last.

    Raises:
        MidcourseError: The jobs could not be listed.
    """
    jobs = list(islice(client.list_jobs(page_size=500), _SCANNED_JOBS))
    ids = [job_id(each.name) for each in jobs]
    if named := named_in(question, ids):
        return named[:MAX_JOBS]
    recent = sorted(jobs, key=last_active, reverse=True)
    return [job_id(each.name) for each in recent[:ACTIVE_JOBS]]


def named_in(question: str, ids: Iterable[str]) -> list[str]:
    """Those of the ids that a question names as words of their own, in the order it does."""
    known = set(ids)
    return list(dict.fromkeys(w for w in _ID.findall(question.lower()) if w in known))


def metrics_in_question(question: str, names: Sequence[str]) -> list[str]:
    """The metrics that a question names, else the most telling one.

    A small model is easily led astray by what it was not asked about.
    """
    said = _as_words(question)
    named = [name for name in names if f" {_as_words(name)} " in f" {said} "]
    return named[:MAX_METRICS] or telling_metrics(names, 1)


def requests_about(job: str, question: str, metrics: Sequence[str]) -> Iterator[ToolRequest]:
    """What to read about a job beside its state: metrics, and the newest changes.

    Args:
        job: Its id.
        question: What is asked.
        metrics: Names of the metrics that it has.
    """
    series = {"job": job, "metrics": metrics_in_question(question, metrics), "max_points": 4}
    yield ToolRequest("", METRIC_SERIES.name, series)
    yield ToolRequest("", UPDATE_HISTORY.name, {"job": job, "limit": MAX_UPDATES})


def _as_words(text: str) -> str:
    """Lower case, with one space between words: learning_rate is the learning rate."""
    return " ".join(_WORD.findall(text.lower()))
