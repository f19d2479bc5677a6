"""Decides what to read for a model that can not decide it itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from analytics_service.chat.tools.jobs import GET_JOB, last_active
from analytics_service.chat.tools.metrics import METRIC_SERIES
from analytics_service.chat.tools.updates import UPDATE_HISTORY
from analytics_service.providers.base import ToolRequest
from control_plane.client import Client, job_id

MAX_JOBS: Final = 3
ACTIVE_JOBS: Final = 2
MAX_UPDATES: Final = 5
_SCANNED_JOBS: Final = 2_000
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


def requests_about(jobs: Sequence[str]) -> Iterator[ToolRequest]:
    """What to read about jobs: state, the most telling metrics, the newest changes."""
    for job in jobs[:MAX_JOBS]:
        yield ToolRequest("", GET_JOB.name, {"job": job})
        yield ToolRequest("", METRIC_SERIES.name, {"job": job, "max_points": 4})
        yield ToolRequest("", UPDATE_HISTORY.name, {"job": job, "limit": MAX_UPDATES})
