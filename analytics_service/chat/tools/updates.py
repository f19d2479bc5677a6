"""Reads what was changed, by whom, when, why, and what came of it."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from analytics_service.chat.conversation import Citation
from analytics_service.chat.fence import NAME_LENGTH, TEXT_LENGTH, clipped
from analytics_service.chat.tools.arguments import UpdateHistoryArguments
from analytics_service.chat.tools.tool import Reading, Tool
from analytics_service.chat.tools.values import (
    number,
    operation_of,
    time_of,
    value_of,
    without_absent,
)
from control_plane.client import Client
from midcourse.control.v1 import update_pb2

MAX_CHANGES: Final = 12


def update_history(client: Client, arguments: UpdateHistoryArguments) -> Reading:
    """Reads a job's updates, the newest first."""
    states = [
        update_pb2.UpdateState.Value(f"UPDATE_STATE_{each.upper()}") for each in arguments.states
    ]
    limit = arguments.limit
    found = client.list_updates(arguments.job, states=states, page_size=limit + 1)
    updates = list(islice(found, limit + 1))
    result = {
        "job": arguments.job,
        "updates": [rendered_update(each) for each in updates[:limit]],
        "more": len(updates) > limit,
    }
    steps = [each.applied.step for each in updates[:limit] if each.applied.step]
    return Reading(
        result,
        (
            Citation(
                arguments.job,
                "updates",
                first_step=min(steps, default=None),
                last_step=max(steps, default=None),
            ),
        ),
    )


def rendered_update(update: update_pb2.Update) -> dict[str, Any]:
    """An update, for a model."""
    spec = update.spec
    changes = [operation_of(each) for each in spec.changes[:MAX_CHANGES]]
    state = update_pb2.UpdateState.Name(update.state).removeprefix("UPDATE_STATE_").lower()
    at = spec.apply_at
    return without_absent(
        {
            "revision": number(update.revision),
            "state": state,
            "author": clipped(update.author, NAME_LENGTH),
            "time": time_of(update.create_time) if update.HasField("create_time") else None,
            "reason": clipped(spec.reason, TEXT_LENGTH),
            "changes": changes,
            "changes_left_out": len(spec.changes) - len(changes) or None,
            "action": spec.action.WhichOneof("kind") if spec.HasField("action") else None,
            "to_checkpoint": clipped(spec.action.roll_back.checkpoint, TEXT_LENGTH),
            "asked_for_step": number(at.step) if at.HasField("step") else None,
            "cancel_requested": update.cancel_requested or None,
            **_outcome(update),
            "reapplied_at_steps": [number(each.step) for each in update.reapplied[:10]],
            # 0 stands for none.
            "rolled_back_by": number(update.rolled_back_by) if update.rolled_back_by else None,
        }
    )


def _outcome(update: update_pb2.Update) -> dict[str, Any]:
    match update.WhichOneof("outcome"):
        case "applied":
            return _applied(update.applied)
        case "rejected":
            of = update.rejected
            return {
                "rejected": without_absent(
                    {
                        "reason": clipped(of.reason, NAME_LENGTH),
                        "message": clipped(of.message, TEXT_LENGTH),
                        "parameter": clipped(of.parameter, NAME_LENGTH),
                        "step": number(of.step),
                    }
                )
            }
        case "expired":
            return {"expired": clipped(update.expired.message, TEXT_LENGTH)}
        case "cancelled":
            return {
                "cancelled": {
                    "by": clipped(update.cancelled.principal, NAME_LENGTH),
                    "reason": clipped(update.cancelled.reason, TEXT_LENGTH),
                }
            }
        case _:
            return {}


def _applied(of: update_pb2.Applied) -> dict[str, Any]:
    kept = of.transitions[:MAX_CHANGES]
    return {
        # 0 stands for a step that is not known.
        "applied_at_step": number(of.step) if of.step else None,
        "applied_time": time_of(of.apply_time) if of.HasField("apply_time") else None,
        "transitions": [
            {
                **without_absent(
                    {
                        "parameter": clipped(each.parameter, NAME_LENGTH),
                        "group": clipped(each.group, NAME_LENGTH),
                    }
                ),
                "old": value_of(each.old_value),
                "new": value_of(each.new_value),
            }
            for each in kept
        ],
        "transitions_left_out": len(of.transitions) - len(kept) or None,
        "checkpoint": clipped(of.action_result.checkpoint, TEXT_LENGTH),
        "evaluated": {
            clipped(name, NAME_LENGTH): number(of.action_result.metrics[name])
            for name in sorted(of.action_result.metrics)[:MAX_CHANGES]
        }
        or None,
    }


UPDATE_HISTORY: Final = Tool(
    "update_history",
    "Reads the live changes of a job, the newest first: who asked, when, why, what for, the "
    "optimizer step that first used the new values, old and new value, or why it was not applied; "
    "actions, such as a pause, too. rolled_back_by is the revision of the roll back that took the "
    "effect of a change away again. The author guard is the training process itself.",
    UpdateHistoryArguments,
    update_history,
)
