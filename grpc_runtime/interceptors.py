"""The server interceptor: every call gets an id, a principal, honest errors and one log event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from grpc_runtime import errors
from grpc_runtime.auth import Authenticator, CallInfo, Principal, bind_call
from grpc_runtime.errors import REQUEST_ID_KEY, StatusError
from grpc_runtime.limits import TOO_MANY_STRANGERS, Strangers
from grpc_runtime.logging import get_logger
from grpc_runtime.open_calls import OpenCalls
from grpc_runtime.reading import Reader
from grpc_runtime.served_call import ServedCall

if TYPE_CHECKING:
    from grpc_runtime.limits import CallLimits
    from grpc_runtime.observing import CallObserver
    from grpc_runtime.policy import Policy

Translate = Callable[[Exception], StatusError | None]
"""Maps a service's own exceptions to API errors; None for those it does not know."""

_T = TypeVar("_T")

_log = get_logger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all four kinds of RPC.

    For every call it takes the caller's ``x-request-id`` (or makes one) and returns it in the
    trailing metadata, authenticates, asks the policy, turns exceptions into rich statuses, logs one
    event and tells the observers. A ``StatusError`` goes to the client as it is, a service's own
    exception as ``translate`` has it, anything else as INTERNAL with nothing but the request id;
    the traceback is in the log.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        domain: str,
        translate: Translate | None = None,
        policy: Policy | None = None,
        limits: CallLimits | None = None,
        strangers: Strangers | None = None,
    ) -> None:
        """Makes an interceptor.

        Args:
            authenticator: Decides who a caller is.
            domain: Domain of errors that name none.
            translate: Maps the service's own exceptions.
            policy: Decides who may call which method; None: who is known may call all of them.
            limits: How many calls are taken on; None: any number.
            strangers: How many calls without valid credentials are; None: any number.
        """
        self._authenticator = authenticator
        self._domain = domain
        self._translate = translate
        self._policy = policy
        self._limits = limits
        self._strangers = strangers
        self.observers: list[CallObserver] = []
        self.open_calls = OpenCalls()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's handler, wrapped."""
        details = handler_call_details
        handler = await continuation(details)
        if handler is None:
            return self._wrap_stream_response(_unimplemented(details.method), details, known=False)
        if handler.response_streaming:
            return self._wrap_stream_response(handler, details)
        return self._wrap_unary_response(handler, details)

    # grpc turns what a unary handler's own (de)serializer raises into UNKNOWN with the exception's
    # text, past every interceptor; so unary messages are read and written in here.

    def _wrap_unary_response(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        streaming = handler.request_streaming
        behavior = handler.stream_unary if streaming else handler.unary_unary
        read = Reader(handler.request_deserializer, details.method, is_one_of_many=streaming)
        serialize = handler.response_serializer

        async def unary_response(request: Any, context: Any) -> Any:
            call = ServedCall(details, context, read, None if streaming else request)

            async def respond() -> Any:
                response = await behavior(request if streaming else call.take(), context)
                if response is None and _code(context) is not grpc.StatusCode.OK:
                    return b""  # the handler set a status: grpc sends no response beside it
                return response if serialize is None else serialize(response)

            return await self._serve(call, context, respond)

        if streaming:
            return grpc.stream_unary_rpc_method_handler(unary_response, read, None)
        return grpc.unary_unary_rpc_method_handler(unary_response, None, None)

    def _wrap_stream_response(
        self, handler: Any, details: grpc.HandlerCallDetails, *, known: bool = True
    ) -> Any:
        streaming = handler.request_streaming
        behavior = handler.stream_stream if streaming else handler.unary_stream
        read = Reader(handler.request_deserializer, details.method, is_one_of_many=streaming)

        async def stream_response(request: Any, context: Any) -> None:
            call = ServedCall(details, context, read, None if streaming else request, known)

            async def respond() -> None:
                responses = behavior(request if streaming else call.take(), context)
                if not hasattr(responses, "__aiter__"):
                    await responses  # a coroutine that writes to the context
                    return
                try:
                    async for response in responses:
                        await context.write(response)
                finally:
                    if close := getattr(responses, "aclose", None):
                        await close()

            await self._serve(call, context, respond)

        serialize = handler.response_serializer
        if streaming:
            return grpc.stream_stream_rpc_method_handler(stream_response, read, serialize)
        return grpc.unary_stream_rpc_method_handler(stream_response, None, serialize)

    async def _serve(
        self, call: ServedCall, context: Any, respond: Callable[[], Awaitable[_T]]
    ) -> _T:
        """Serves one call; grpc runs every call in a task, and so a context, of its own."""
        try:
            return await self._answer(call, context, respond)
        finally:
            # Not before its status is sent: that waits for a caller who does not read, for as long
            # as its connection lasts, and what is kept for it has to have a limit.
            if call.is_counted and self._limits is not None and call.principal is not None:
                self._limits.leave(call.principal.name)

    async def _answer(
        self, call: ServedCall, context: Any, respond: Callable[[], Awaitable[_T]]
    ) -> _T:
        fault: BaseException
        try:
            await self._admit(call)
            try:
                response = await respond()
            finally:
                if call.opened is not None and call.principal is not None:
                    self.open_calls.leave(call.principal.credential, call.opened)
        except asyncio.CancelledError as error:
            cut = call.opened.was_cut() if call.opened is not None else None
            task = asyncio.current_task()
            if cut is None and task is not None and task.cancelling():
                self._finish(call, _cancellation_code(context))
                raise
            # Either the call's token was revoked, or something that the handler awaited was
            # cancelled, and not this call. grpc would take that for the end of the call and never
            # send a status: the client would wait for ever.
            fault, status_error = error, cut or _internal_error(call.request_id)
        except grpc.aio.UsageError as error:  # a handler misused its context: our fault
            fault, status_error = error, _internal_error(call.request_id)
        except grpc.aio.BaseError:  # context.abort() was called, or the call is gone
            self._finish(call, _code(context))
            raise
        except Exception as error:  # noqa: BLE001 - reported to the caller and in the log
            fault, status_error = error, self._status_error(error, call.request_id)
        else:
            self._finish(call, _code(context))
            return response
        self._finish(call, status_error.code, error=status_error, fault=fault)
        if context.done():  # the handler aborted and then raised something else
            raise fault
        await self._abort(context, status_error, call.request_id)
        raise AssertionError("abort() raises")

    async def _admit(self, call: ServedCall) -> None:
        """Finds out who calls, and whether it may.

        Raises:
            Exception: It may not.
        """
        if self._policy is not None and call.known and self._policy.is_open(call.method):
            return
        call.principal = principal = await self._principal(call)
        bind_call(
            CallInfo(
                call.method,
                principal,
                call.peer,
                call.request_id,
                call.trace_parent,
                call.kept,
            )
        )
        if self._policy is not None and call.known:
            self._policy.check(principal, call.method)
        if self._limits is not None:
            call.is_counted = self._limits.enter(principal.name, call.method)
        if principal.credential:
            call.opened = self.open_calls.enter(principal.credential)

    async def _principal(self, call: ServedCall) -> Principal:
        """Finds out who calls.

        Raises:
            Exception: It has no valid credentials, or that can not be told.
        """
        strangers = self._strangers
        if strangers is None:
            return await self._authenticator.authenticate(call.caller(None))
        try:
            return await self._authenticator.authenticate(call.caller(strangers.refusal(call.peer)))
        except Exception as error:
            status = self._status_error(error, call.request_id)
            if (
                status.code is grpc.StatusCode.UNAUTHENTICATED
                or status.reason == TOO_MANY_STRANGERS
            ) and (too_many := strangers.failed(call.peer)):
                raise too_many from None
            raise

    def _finish(
        self,
        call: ServedCall,
        code: grpc.StatusCode,
        *,
        error: StatusError | None = None,
        fault: BaseException | None = None,
    ) -> None:
        call.log(code, error=error, fault=fault)
        if not self.observers:
            return
        finished = call.finished(code, error)
        for observer in self.observers:
            try:
                observer(finished)
            except Exception:  # noqa: BLE001 - logged; the call is not to suffer from it
                _log.exception("an observer of calls failed", observer=repr(observer))

    async def _abort(self, context: Any, error: StatusError, request_id: str) -> None:
        status = errors.to_proto(error, default_domain=self._domain)
        trailing = ((REQUEST_ID_KEY, request_id), *errors.trailing_metadata(status))
        try:
            await context.abort(error.code, status.message, trailing)
        except grpc.aio.InternalError as failure:
            # The connection broke just now. What gRPC knows of that it may learn only later, and
            # would have the log take its own exception for ours.
            _log.info("a caller was gone before it had its status", error=str(failure))
            raise asyncio.CancelledError from failure

    def _status_error(self, error: Exception, request_id: str) -> StatusError:
        if isinstance(error, StatusError):
            return error
        if self._translate is not None:
            try:
                translated = self._translate(error)
            except Exception:  # noqa: BLE001 - logged; the caller gets INTERNAL
                _log.exception("cannot translate an exception", untranslated=repr(error))
                translated = None
            if translated is not None:
                return translated
        return _internal_error(request_id)


def _code(context: Any) -> grpc.StatusCode:
    """Returns the status that a handler set through its context; OK if it set none."""
    code = context.code()
    if code is None or isinstance(code, grpc.StatusCode):
        return code or grpc.StatusCode.OK
    return next(
        (known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN
    )


def _cancellation_code(context: Any) -> grpc.StatusCode:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _internal_error(request_id: str) -> StatusError:
    return StatusError(
        grpc.StatusCode.INTERNAL,
        f"internal error; the server's log has the details under request id {request_id}",
        reason="INTERNAL",
    )


def _unimplemented(method: str) -> Any:
    """Returns a handler for a method that does not exist; it answers any kind of call."""

    async def refuse(_request_iterator: Any, _context: Any) -> None:
        raise StatusError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"this server has no method {method}",
            reason="METHOD_NOT_FOUND",
        )

    return grpc.stream_stream_rpc_method_handler(refuse)
