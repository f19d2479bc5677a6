"""A call as a value: what a blocking and an asynchronous client have in common of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result_co = TypeVar("_Result_co", covariant=True)
_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Response_co = TypeVar("_Response_co", covariant=True)


class StubMethod(Protocol[_Request_contra, _Response_co]):
    """What a stub has for a unary method."""

    def __call__(self, request: _Request_contra) -> _Response_co:
        """Calls the server."""


@dataclass(frozen=True, slots=True)
class Call(Generic[_Result_co]):
    """A call that a client can make; :func:`unary_call` makes one whose parts fit together.

    Attributes:
        service: Class of the service's stubs.
        method: Picks the method from a stub; that of an asynchronous stub is awaitable.
        request: What to send.
        result: Picks from the response what the client returns.
        repeatable: Calling twice does no more than calling once.
        extra_seconds: What it may take beyond the client's time for calls.
    """

    service: Callable[[Any], Any]
    method: Callable[[Any], Any]
    request: Any
    result: Callable[[Any], _Result_co]
    repeatable: bool = True
    extra_seconds: float = 0.0


def unary_call(
    service: type[_Stub],
    method: Callable[[_Stub], StubMethod[_Request, _Response]],
    request: _Request,
    result: Callable[[_Response], _Result_co],
    *,
    repeatable: bool = True,
    extra_seconds: float = 0.0,
) -> Call[_Result_co]:
    """Returns a call whose parts have been checked to fit together, by the type checker."""
    return Call(service, method, request, result, repeatable, extra_seconds)
