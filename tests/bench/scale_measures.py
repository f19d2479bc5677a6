"""What tests.bench.scale measures of a control plane under load."""

from __future__ import annotations

import asyncio
import time

import grpc

from grpc_runtime.options import client_options
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.scale_plan import SELECTOR, Plane
from trainer_agent.simulate import LightJobs

PROBE = "probe"
LATENCY_SECONDS = 120.0
"""A part that takes latencies ends after so long, with fewer of them."""


async def update_latencies(plane: Plane, count: int) -> list[float]:
    """Milliseconds from the call to the boundary that applied it, of one job with 1 ms steps."""
    taken: list[float] = []
    metrics = ("loss",)
    until_then = time.monotonic() + LATENCY_SECONDS
    async with LightJobs(plane.address, prefix=PROBE, step_time=0.001, metrics=metrics) as jobs:
        job = jobs[0]
        async with grpc.aio.insecure_channel(plane.address, options=client_options()) as channel:
            stub = ControlPlaneServiceStub(channel)
            warm = max(10, count // 10)
            for number in range(count + warm):
                if time.monotonic() > until_then and len(taken) > warm:
                    break
                request = api.UpdateParametersRequest(job=f"jobs/{job.job_id}")
                change = request.spec.changes.add(parameter="learning_rate")
                change.set.value.number = 1e-3 if number % 2 else 2e-3
                called = time.time_ns()
                answer = await stub.UpdateParameters(request, timeout=30)
                outcome = await job.outcome(answer.update.revision)
                assert outcome.HasField("applied"), outcome
                if number >= warm:
                    taken.append((outcome.applied.apply_time.ToNanoseconds() - called) / 1e6)
                await asyncio.sleep(0.005)  # one at a time, spread over the agents' heartbeats
    return taken


def batch_milliseconds(plane: Plane, jobs: int, count: int) -> list[float]:
    """Milliseconds from the call to the last job's being known to have applied it."""
    taken = []
    with plane.stub() as stub:
        for number in range(count):
            request = api.BatchUpdateParametersRequest(selector=SELECTOR)
            change = request.spec.changes.add(parameter="weight_decay")
            change.set.value.number = 0.01 * (number + 2)
            began = time.perf_counter()
            batch = stub.BatchUpdateParameters(request, timeout=60).batch
            applied = 0
            for seen in stub.WatchBatch(api.WatchBatchRequest(name=batch.name), timeout=60):
                applied = seen.batch.progress.applied
                if applied >= jobs:
                    break
            taken.append((time.perf_counter() - began) * 1e3)
            assert applied == jobs, f"{applied} of {jobs} applied"
    return taken


def heard(plane: Plane, seconds: float) -> tuple[int, int]:
    """How many agents were heard within the last seconds, and how many jobs lost samples."""
    lately, dropped, token = 0, 0, ""
    with plane.stub() as stub:
        while True:
            page = stub.ListJobs(
                api.ListJobsRequest(selector=SELECTOR, page_size=1000, page_token=token)
            )
            now = time.time()
            for job in page.jobs:
                last = job.session.last_seen_time.ToNanoseconds() / 1e9
                lately += job.session.connected and now - last < seconds
                dropped += bool(job.dropped_samples)
            token = page.next_page_token
            if not token:
                return lately, dropped
