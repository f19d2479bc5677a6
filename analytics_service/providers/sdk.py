"""Streams of the official SDKs: opened, read, always closed, and failing in one way only.

The SDKs for both protocols are made alike, down to their HTTP library, but share no classes. What
they raise is none of the contract either: a stream that breaks raises an error of the SDK, of its
HTTP library or of `json`, depending on the SDK.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Protocol, cast

import httpx2

from analytics_service.providers.base import Fault, ProviderError
from analytics_service.providers.faults import Endpoint

NO_KEY = "none"
"""Stands in for a key where none is needed: without one the SDKs look for keys of their own."""
CONNECT_SECONDS = 10.0
"""Most seconds to connect."""
TAIL_SECONDS = 5.0
"""Most seconds to wait for what follows the end of an answer."""


class SdkStream(Protocol):
    """What both SDKs return for `stream=True`."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Yields the decoded events."""

    async def close(self) -> None:
        """Closes the connection, if the answer has not been read to its end."""


def timeout(idle: float) -> httpx2.Timeout:
    """Limits for one call.

    Args:
        idle: Most seconds without a byte; keep-alive messages count as life.
    """
    return httpx2.Timeout(idle, connect=min(idle, CONNECT_SECONDS))


def own_headers(key: str, variable: str, omit: object) -> dict[str, str]:
    """Default headers for an endpoint that is not the SDK's own.

    They carry its key, and take back those that the SDK adds from the environment.

    Args:
        key: The endpoint's key.
        variable: Environment variable with headers, one in a line.
        omit: The SDK's mark for a header that is not to be sent.
    """
    lines = [line for line in os.environ.get(variable, "").split("\n") if ":" in line]
    names = {line.partition(":")[0].strip() for line in lines}
    unwanted = {name: cast(str, omit) for name in names if name.lower() != "authorization"}
    return {**unwanted, "Authorization": f"Bearer {key}"}


async def read(
    opening: Awaitable[SdkStream], endpoint: Endpoint, errors: type[Exception], idle: float
) -> AsyncGenerator[Any, None]:
    """Opens a stream and yields its events; closes it however this ends.

    Args:
        opening: The SDK's call.
        endpoint: Who is called.
        errors: Root of the SDK's exceptions.
        idle: Seconds after which a silent stream times out, for the error.

    Raises:
        ProviderError: The call failed.
    """
    stream: SdkStream | None = None
    try:
        stream = await opening
        async for event in stream:
            yield event
        return
    except (errors, httpx2.HTTPError, ValueError, RecursionError) as error:
        failure = _failure(error, endpoint, idle, has_begun=stream is not None)
    finally:
        if stream is not None:
            await stream.close()
    # Raised out here, it does not drag along the SDK's exception, which may repeat a key.
    raise failure


async def following(events: AsyncIterator[Any], *, has_ended: bool) -> Any:
    """The next event; None: there is none.

    Args:
        events: Of `read`.
        has_ended: The answer is whole. Its usage may be to come, and the end of the HTTP
            response, without which the connection can not be used again. Neither is waited for
            long, and whatever happens to the stream is no failure any more.

    Raises:
        ProviderError: The call failed.
    """
    try:
        async with asyncio.timeout(TAIL_SECONDS if has_ended else None):
            return await anext(events, None)
    except (ProviderError, TimeoutError):
        if has_ended:
            return None
        raise


def _failure(
    error: Exception, endpoint: Endpoint, idle: float, *, has_begun: bool
) -> ProviderError:
    response: httpx2.Response | None = getattr(error, "response", None)
    body = getattr(error, "body", None)
    if response is not None and response.is_error:
        return endpoint.refusal(
            body,
            words=response.reason_phrase,
            status=response.status_code,
            headers=response.headers,
        )
    if body is not None:  # an error event in the stream
        return endpoint.refusal(body, words=str(error))
    cause = error if isinstance(error, httpx2.HTTPError) else error.__cause__
    why = f"{type(cause or error).__name__}: {cause or error}".rstrip(": ")
    match cause:
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return endpoint.error(
                Fault.UNAVAILABLE, f"can not be reached ({why})", is_unbilled=True
            )
        case httpx2.TimeoutException():
            return endpoint.error(Fault.TIMEOUT, f"was silent for {idle:g} s")
        case _ if has_begun:
            return endpoint.error(Fault.STREAM_BROKEN, f"the answer broke off ({why})")
        case _:
            return endpoint.error(Fault.UNAVAILABLE, f"the call failed ({why})")
