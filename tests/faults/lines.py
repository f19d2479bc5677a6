"""Records as lines of JSON, and back."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from tests.faults.records import (
    Acknowledged,
    Answered,
    Asked,
    Confirmed,
    Delivered,
    Failed,
    Fault,
    Hello,
    InForce,
    Missed,
    Quiet,
    Run,
    Saved,
    StoredBatch,
    StoredEvent,
    StoredJob,
    StoredUpdate,
    Told,
    TrainerBegan,
    TrainerEnded,
    TrainerSettled,
    WatchBegan,
    Watched,
    WatchEnded,
    Welcomed,
)

AnyRecord = Annotated[
    Run
    | Fault
    | Missed
    | Quiet
    | Asked
    | Answered
    | Failed
    | WatchBegan
    | Watched
    | WatchEnded
    | Hello
    | Welcomed
    | Delivered
    | Told
    | Acknowledged
    | TrainerBegan
    | TrainerSettled
    | InForce
    | Confirmed
    | Saved
    | TrainerEnded
    | StoredJob
    | StoredUpdate
    | StoredBatch
    | StoredEvent,
    Field(discriminator="kind"),
]

LINE: TypeAdapter[AnyRecord] = TypeAdapter(AnyRecord)
"""A record as a line of JSON, and back."""
