"""Client of the analytics service: ask about training runs from Python.

>>> from analytics_service.client import Client
>>> with Client() as analytics:
...     answer = analytics.ask("At which step did the loss of my-run spike, and why?")
...     print(answer.text, answer.cost)

:class:`AsyncClient` is the same for asyncio. Answers of calls are the API's own messages
(``midcourse.analytics.v1``); errors are :class:`MidcourseError` and its subclasses, the very ones
that :mod:`control_plane.client` raises.
"""

from __future__ import annotations

from analytics_service._client.aio import AsyncClient
from analytics_service._client.answer import Answer, text_of
from analytics_service._client.calls import BANDS, Band, ChatOptions, Group, Period, UsageFilter
from analytics_service._client.chat import AsyncChat, Chat
from analytics_service._client.money import Amount, cost
from analytics_service._client.sync import Client
from analytics_service._client.target import ADDRESS_VARIABLE, DEFAULT_ADDRESS
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
    "BANDS",
    "DEFAULT_ADDRESS",
    "AlreadyExistsError",
    "Amount",
    "Answer",
    "AsyncChat",
    "AsyncClient",
    "Band",
    "Chat",
    "ChatOptions",
    "Client",
    "ConflictError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "Group",
    "InvalidArgumentError",
    "MidcourseError",
    "NotFoundError",
    "OutOfRangeError",
    "Period",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "RetryPolicy",
    "UnauthenticatedError",
    "UnavailableError",
    "UsageFilter",
    "cost",
    "text_of",
]
