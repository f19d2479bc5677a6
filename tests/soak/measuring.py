"""What is measured every few seconds: processes, queues, tables."""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tests.soak.load import Load
from tests.soak.stand import Service, Stand, status_of

GAUGES = {
    "python_asyncio_tasks": "tasks",
    "midcourse_sessions": "sessions",
    "midcourse_watches": "watches",
    "midcourse_session_queue": "messages for agents",
    "midcourse_samples_waiting": "samples waiting",
}
SUMS = {
    "midcourse_store_transactions": "transactions waiting",
    "process_cpu_seconds_total": "processor seconds",
}


@dataclass
class Courses:
    """What was measured, by name.

    Attributes:
        seconds: When, since the start; the same for all.
        values: One list each, as long as `seconds`.
        units: `bytes`, `rows`, `ms` or nothing.
    """

    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    units: dict[str, str] = field(default_factory=dict)

    def add(self, second: float, measured: dict[tuple[str, str], float]) -> None:
        """Adds one measurement of everything, by name and unit."""
        for (name, unit), value in measured.items():
            course = self.values[name]
            # A table or a queue that was not there before was empty.
            course.extend([0.0] * (len(self.seconds) - len(course)))
            course.append(value)
            self.units[name] = unit
        self.seconds.append(second)
        for course in self.values.values():
            course.extend([course[-1]] * (len(self.seconds) - len(course)))


def _of_service(service: Service) -> dict[tuple[str, str], float]:
    name = service.name
    measured: dict[tuple[str, str], float] = {}
    for what, value in status_of(service.process.pid).items():
        measured[f"{name}: {what}", "bytes" if what == "memory" else ""] = value
    with urllib.request.urlopen(service.metrics, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    for family in families:
        for sample in family.samples:
            if sample.name in GAUGES:
                measured[f"{name}: {GAUGES[sample.name]}", ""] = sample.value
            elif sample.name in SUMS:
                key = f"{name}: {SUMS[sample.name]}", ""
                measured[key] = measured.get(key, 0.0) + sample.value
    for what, size in service.bytes().items():
        measured[f"{name}: {what}", "bytes"] = size
    for table, rows in service.tables().items():
        measured[f"{name}: table {table}", "rows"] = rows
    return measured


async def measure(stand: Stand, load: Load, courses: Courses, began: float) -> None:
    """Measures everything once."""
    measured: dict[tuple[str, str], float] = {}
    for service in stand.services:
        measured |= await asyncio.to_thread(_of_service, service)
    taken, load.latencies = load.latencies, []
    if taken:
        measured["update accepted, median", "ms"] = statistics.median(taken) * 1e3
    courses.add(time.monotonic() - began, measured)
