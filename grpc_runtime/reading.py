"""The requests of a method: from bytes to messages that can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError, Message

from grpc_runtime import errors
from grpc_runtime.errors import StatusError
from grpc_runtime.texts import TooManyPartsError, field_with_nul, replace_nul

if TYPE_CHECKING:
    from collections.abc import Callable

# A message of so many bytes is read in well under a millisecond, whatever it is made of.
_MOST_GLANCED_AT: Final = 16 * 1024


class Reader:
    """Reads the requests of a method; failures are the caller's INVALID_ARGUMENT.

    No text that it returns has a NUL, which not every database takes. A request with one is
    refused; in a stream of requests, where that would be the end of all the others, each NUL is
    replaced by U+FFFD.
    """

    def __init__(
        self, deserialize: Callable[[bytes], Any] | None, method: str, *, is_one_of_many: bool
    ) -> None:
        """Takes the deserializer of generated code, and whether requests come in streams."""
        self._deserialize = deserialize
        self._method = method
        self._is_one_of_many = is_one_of_many

    def __call__(self, raw: bytes) -> Any:
        """Reads a request.

        Raises:
            StatusError: INVALID_ARGUMENT, it can not be read, or has what is not allowed anywhere.
        """
        if self._deserialize is None:
            return raw
        try:
            request = self._deserialize(raw)
        except (DecodeError, ValueError) as error:
            raise StatusError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the request is not a readable message of the type that {self._method} takes",
                reason="MALFORMED_REQUEST",
            ) from error
        if b"\0" in raw and isinstance(request, Message):
            self._refuse_nul(request)
        return request

    def glance(self, raw: bytes) -> Any:
        """Reads what a caller wanted who was refused, if that takes next to no time.

        Returns:
            The request; its texts may have NULs. None: it is too large, or can not be read.
        """
        if len(raw) > _MOST_GLANCED_AT:
            return None
        try:
            return raw if self._deserialize is None else self._deserialize(raw)
        except (DecodeError, ValueError):
            return None

    def _refuse_nul(self, request: Message) -> None:
        try:
            if self._is_one_of_many:
                replace_nul(request)
            elif field := field_with_nul(request):
                raise errors.invalid_argument(
                    field, "got a NUL character (U+0000), allowed: a text without one"
                )
        except TooManyPartsError as error:
            raise errors.invalid_argument("request", str(error)) from None
