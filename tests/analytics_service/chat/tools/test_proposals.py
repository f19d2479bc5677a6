"""Drafts: checked, never submitted, and fit to be submitted as they stand."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from analytics_service.chat.conversation import ProposalPart
from analytics_service.chat.tools import Toolbox
from midcourse.control.v1 import control_pb2, update_pb2
from tests.support.plane import RunningPlane, error_of
from tests.support.tool_calls import asked, fail

CHANGES: dict[str, dict[str, Any]] = {
    "set": {"value": 0.004},
    "peak": {"value": 0.004},
    "hold": {"value": 0.004, "steps": 20},
    "multiply": {"factor": 0.5},
    "ramp": {"value": 0.004, "steps": 10},
    "schedule": {"shape": "cosine", "peak": 0.01, "warmup_steps": 5, "floor": 1e-6, "steps": 30},
    "release": {},
}


async def propose(tools: Toolbox, **arguments: Any) -> tuple[dict[str, Any], ProposalPart]:
    outcome = await tools.call(
        asked("propose_update", job="demo", rationale="it spiked", **arguments)
    )
    assert not outcome.error, outcome.error
    assert outcome.result is not None
    assert outcome.proposal is not None
    return dict(outcome.result), outcome.proposal


def parsed(proposal: ProposalPart) -> control_pb2.UpdateParametersRequest:
    return control_pb2.UpdateParametersRequest.FromString(proposal.request)


@pytest.mark.parametrize("operation", CHANGES)
async def test_a_valid_draft_changes_nothing_until_a_person_submits_it(
    demo: RunningPlane, tools: Toolbox, operation: str
) -> None:
    before = await demo.get_job("demo")
    change = {"parameter": "learning_rate", "operation": operation, **CHANGES[operation]}
    result, proposal = await propose(tools, changes=[change], at_step=80)
    assert result["valid"] is True
    assert result["changes"] == [change]
    assert (result["at_step"], result["expected_revision"]) == (80, 2)
    assert "nothing has changed" in result["note"]
    assert proposal.error is None
    assert proposal.rationale == "it spiked"

    request = parsed(proposal)
    assert not request.validate_only
    assert request.expected_revision == 2
    assert request.request_id
    assert (request.spec.reason, request.spec.apply_at.step) == ("it spiked", 80)
    assert not request.spec.force
    assert proposal.validated is not None
    assert update_pb2.Update.FromString(proposal.validated).spec == request.spec
    assert await demo.get_job("demo") == before

    accepted = (await demo.control.UpdateParameters(request)).update
    assert (accepted.revision, accepted.spec) == (3, request.spec)


async def test_every_draft_has_a_request_id_of_its_own(demo: RunningPlane, tools: Toolbox) -> None:
    change = {"parameter": "learning_rate", "operation": "release"}
    drafts = [parsed((await propose(tools, changes=[change]))[1]) for _ in range(2)]
    assert drafts[0].request_id != drafts[1].request_id
    await demo.control.UpdateParameters(drafts[0])
    # The run has changed since the other one was drafted.
    refused = await error_of(demo.control.UpdateParameters(drafts[1]))
    assert refused.code is grpc.StatusCode.ABORTED


async def test_an_invalid_draft_says_why(demo: RunningPlane, tools: Toolbox) -> None:
    out_of_bounds = {"parameter": "learning_rate", "operation": "set", "value": 2.0}
    result, proposal = await propose(tools, changes=[out_of_bounds])
    assert result["valid"] is False
    assert "2" in result["why"]
    assert proposal.validated is None
    assert proposal.error is not None
    assert proposal.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert proposal.error.reason
    result, _ = await propose(tools, changes=[{**out_of_bounds, "value": 2**70}])
    assert result["valid"] is False
    unknown = {"parameter": "dropout", "operation": "multiply", "factor": 2.0}
    result, _ = await propose(tools, changes=[unknown])
    assert result["valid"] is False
    assert "dropout" in result["why"]
    too_far = {"parameter": "learning_rate", "operation": "multiply", "factor": 50.0}
    result, proposal = await propose(tools, changes=[too_far])
    assert result["valid"] is False
    assert proposal.error is not None
    assert proposal.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"operation": "set"}, "operation set needs value"),
        ({"operation": "ramp", "value": 1.0}, "operation ramp needs steps"),
        ({"operation": "multiply", "factor": 2.0, "value": 1.0}, "does not take value"),
        ({"operation": "multiply", "factor": -1.0}, "changes.0.factor: "),
        ({"operation": "set", "value": float("nan")}, "changes.0.value"),
        ({"operation": "submit"}, "'set', 'peak'"),
    ],
)
async def test_wrong_drafts_are_explained(
    demo: RunningPlane, tools: Toolbox, change: dict[str, Any], said: str
) -> None:
    changes = [{"parameter": "learning_rate", **change}]
    error = await fail(tools, "propose_update", job="demo", rationale="r", changes=changes)
    assert said in error
    assert "wrong arguments" in error


async def test_a_draft_for_no_job_is_none(tools: Toolbox) -> None:
    change = {"parameter": "learning_rate", "operation": "release"}
    error = await fail(tools, "propose_update", job="nowhere", rationale="r", changes=[change])
    assert "'nowhere'" in error
