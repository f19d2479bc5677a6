"""Labels of a job: what its agent says, and what callers have edited, whose word counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime

from control_plane.domain.errors import invalid
from control_plane.domain.job import MAX_LABELS, Job, check_labels, is_label_key

MAX_EDITS = 2 * MAX_LABELS
"""Keys that callers may have set or removed: also what was removed must be remembered."""


def with_agents_labels(job: Job, said: Mapping[str, str]) -> dict[str, str]:
    """A job's labels once its agent has said its own. What callers have edited stays.

    Raises:
        Refusal: If they are not allowed, or too many.
    """
    check_labels(said)
    labels = dict(job.labels)
    labels.update((key, value) for key, value in said.items() if key not in job.label_edits)
    check_labels(labels)
    return labels


def edited(job: Job, put: Mapping[str, str], remove: Collection[str], now: datetime) -> Job:
    """The job with its labels edited by a caller; the same job if that changes nothing.

    Raises:
        Refusal: If a label is not allowed, both set and removed, or one too many.
    """
    check_labels(put, "set_labels")
    for index, key in enumerate(remove):
        if not is_label_key(key):
            raise invalid(f"remove_labels[{index}]", f"got {key[:80]!r}, which is no label's key")
        if key in put:
            raise invalid(
                f"remove_labels[{index}]", f"got {key!r}, which set_labels has too; name it once"
            )
    kept = {key: value for key, value in job.labels.items() if key not in remove}
    labels = {**kept, **put}
    check_labels(labels, "set_labels")
    edits = {**job.label_edits, **put}
    # What was never there need not be kept away.
    edits.update((key, None) for key in remove if key in job.labels or key in job.label_edits)
    if len(edits) > MAX_EDITS:
        raise invalid(
            "set_labels",
            f"callers have set or removed {len(job.label_edits)} labels of this job, and this "
            f"would make it {len(edits)}; at most {MAX_EDITS}",
        )
    if (labels, edits) == (job.labels, job.label_edits):
        return job
    return replace(job, labels=labels, label_edits=edits).changed(now)
