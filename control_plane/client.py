"""Client of the control plane: watch and correct training jobs from Python.

>>> from control_plane.client import Client
>>> with Client() as plane:
...     update = plane.set("my-run", learning_rate=5e-5, wait=True)
...     print(update.applied.step)

:class:`AsyncClient` is the same for asyncio. Answers are the API's own messages
(``midcourse.control.v1``), errors are :class:`MidcourseError` and its subclasses, which every
client of the project raises; those of :class:`UpdateError` are this one's own.
"""

from __future__ import annotations

from control_plane._client.aio import AsyncClient
from control_plane._client.errors import UpdateError, UpdateNotAppliedError, UpdateTimeoutError
from control_plane._client.names import is_settled, job_id
from control_plane._client.requests import BatchOptions, UpdateOptions
from control_plane._client.roles import RoleName
from control_plane._client.sync import Client
from control_plane._client.target import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from control_plane._client.watch import AsyncBatchWatch, AsyncJobWatch, BatchWatch, JobWatch
from grpc_runtime.client.credentials import NO_CREDENTIALS, Credentials, CredentialsError
from grpc_runtime.client.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.errors import FieldViolation

__all__ = [
    "ADDRESS_VARIABLE",
    "DEFAULT_ADDRESS",
    "NO_CREDENTIALS",
    "AlreadyExistsError",
    "AsyncBatchWatch",
    "AsyncClient",
    "AsyncJobWatch",
    "BatchOptions",
    "BatchWatch",
    "Client",
    "ConflictError",
    "Credentials",
    "CredentialsError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InvalidArgumentError",
    "JobWatch",
    "MidcourseError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "RetryPolicy",
    "RoleName",
    "UnauthenticatedError",
    "UnavailableError",
    "UpdateError",
    "UpdateNotAppliedError",
    "UpdateOptions",
    "UpdateTimeoutError",
    "is_settled",
    "job_id",
]
