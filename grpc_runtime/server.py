"""A gRPC server's life: bind, serve, drain, stop.

For example::

    async def main() -> None:
        async with opened_store() as store:
            service = Service("127.0.0.1:50051", domain="example")
            service.add(add_GreeterServicer_to_server, Greeter(store))
            service.on_drain(say_goodbye)
            await service.serve()

    run(main())
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_runtime.auth import AnonymousAuthenticator, Authenticator, Revocable
from grpc_runtime.health import HealthServicer
from grpc_runtime.interceptors import CallInterceptor, Translate
from grpc_runtime.listen import Address, ListenError, check_exposure, check_free
from grpc_runtime.logging import get_logger
from grpc_runtime.options import MAX_MESSAGE_BYTES, server_options
from grpc_runtime.reflection import reflection_handlers

if TYPE_CHECKING:
    from grpc_runtime.limits import CallLimits, Strangers
    from grpc_runtime.observing import CallObserver
    from grpc_runtime.policy import Policy
    from grpc_runtime.tls import TlsFiles

T = TypeVar("T")
Callback = Callable[[], Awaitable[None]]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for what was cancelled to clean up before the stop goes on without it.
_CANCEL_SECONDS = 1.0
_CRASH_CHECK_SECONDS = 0.25

_log = get_logger(__name__)


class ServerCrashedError(Exception):
    """The server could not go on; its cause tells why."""


class Service:
    """A gRPC server with health, reflection, errors, logs and a graceful end.

    Every call passes :class:`~grpc_runtime.interceptors.CallInterceptor`.
    """

    def __init__(
        self,
        address: str | Address,
        *,
        domain: str,
        authenticator: Authenticator | None = None,
        translate: Translate | None = None,
        policy: Policy | None = None,
        limits: CallLimits | None = None,
        strangers: Strangers | None = None,
        tls: TlsFiles | None = None,
        insecure: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        grace: float = 10.0,
        health_address: str | Address | None = None,
    ) -> None:
        """Describes a server; nothing is opened before :meth:`start`.

        Args:
            address: Where to listen: ``host:port``, ``[ipv6]:port`` or ``unix:path``; port 0 lets
                the system choose.
            domain: Domain of the errors that name none.
            authenticator: Decides who a caller is; by default callers on this host are anonymous
                (with ``insecure``, all callers) and there are no others.
            translate: Maps the service's own exceptions to API errors.
            policy: Decides who may call which method; None: who is known may call all of them.
            limits: How many calls are taken on; None: any number.
            strangers: How many calls without valid credentials are; None: any number.
            tls: Certificate and key; None for plain connections.
            insecure: Listen beyond loopback without TLS or authentication all the same.
            max_message_bytes: Largest message to take or to send.
            grace: Seconds from the start of a drain to the end of the last call.
            health_address: Where to answer health checks and nothing else, without TLS and from
                anybody: for probes that speak no TLS, such as Kubernetes'. None or empty: nowhere
                but at ``address``.

        Raises:
            AddressError: An address cannot be read.
            ExposedError: Other hosts could connect unprotected; see
                :func:`~grpc_runtime.listen.check_exposure`.
        """
        self._address = address if isinstance(address, Address) else Address.parse(address)
        if authenticator is None:
            authenticator = AnonymousAuthenticator(allow_remote=insecure)
        check_exposure(
            self._address,
            tls=tls is not None,
            authenticated=authenticator.verifies,
            insecure=insecure,
        )
        self._authenticator = authenticator
        self._interceptor = CallInterceptor(
            authenticator,
            domain=domain,
            translate=translate,
            policy=policy,
            limits=limits,
            strangers=strangers,
        )
        self._tls = tls
        self._options = server_options(max_message_bytes=max_message_bytes)
        self._grace = grace
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._on_drain: list[Callback] = []
        self._health = HealthServicer()
        self._health_only: Service | None = None
        if health_address:
            self._health_only = Service(health_address, domain=domain, insecure=True)
            self._health_only._health = self._health  # noqa: SLF001 - of this very class
        self._hurry = asyncio.Event()
        self._opening = asyncio.Lock()
        self._server: grpc.aio.Server | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._failure: ServerCrashedError | None = None

    def add(self, register: Callable[[Any, Any], None], servicer: object) -> None:
        """Adds a service; health and reflection learn its name.

        Args:
            register: The generated ``add_…Servicer_to_server`` function.
            servicer: The implementation, with asynchronous methods.
        """
        register(servicer, _HandlerCollector(self._handlers))

    def on_drain(self, callback: Callback) -> None:
        """Has a callback awaited when a drain begins, while all calls are still served.

        This is where open streams are told to end. Callbacks run side by side and are cancelled
        when the grace period is over; one that fails is logged.
        """
        self._on_drain.append(callback)

    def observe(self, observer: CallObserver) -> None:
        """Has somebody told of every call when it has ended."""
        self._interceptor.observers.append(observer)

    def rely_on(self, task: asyncio.Task[Any]) -> None:
        """Stops once a task ends, other than by being cancelled; :meth:`wait` raises then.

        It is a bug, and without the task the service would lie by silence.
        """
        task.add_done_callback(self._chore_ended)

    def _chore_ended(self, chore: asyncio.Task[Any]) -> None:
        if chore.cancelled() and chore.cancelling():
            return
        error = cause = (
            asyncio.CancelledError("what it waited for was cancelled")
            if chore.cancelled()
            else chore.exception()
        )
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]  # a group's own message says nothing
        name = chore.get_name()
        _log.critical("a background task failed; stopping", task=name, exc_info=error)
        if self._failure is None:
            why = "it ended" if cause is None else str(cause) or repr(cause)
            self._failure = ServerCrashedError(f"the background task {name!r} failed: {why}")
            self._failure.__cause__ = error
        self._drain_once(self._grace)

    def end_calls(self, credential: str) -> None:
        """Ends the calls under way of a credential, given by its id, with UNAUTHENTICATED."""
        self._interceptor.open_calls.end(credential)

    @property
    def service_names(self) -> tuple[str, ...]:
        """Full names of the services added."""
        return tuple(_service_name(handler) for handler in self._handlers)

    @property
    def address(self) -> Address:
        """Where the server listens, with the port that was bound once it is started."""
        return self._address

    async def start(self) -> Address:
        """Starts serving and returns the bound address; one told to stop by then never serves.

        Raises:
            AddressInUseError: Another server listens there.
            TlsError: Certificate or key cannot be used.
            ListenError: The address cannot be bound for another reason.
        """
        if self._server is not None:
            raise RuntimeError("a Service can be started once only")
        # A drain waits for the opening, and stops what was opened.
        async with self.not_yet_serving(), self._opening:
            if self._is_draining():
                return self._address
            self._server = await self._open()
            self._supervision = asyncio.create_task(self._supervise())
            if isinstance(self._authenticator, Revocable):
                watching = self._interceptor.open_calls.watch(self._authenticator.ended)
                self._looking = asyncio.create_task(watching)
        self.ready(True)
        if self._health_only is not None:
            self._health.opened()
        _log.info("serving", address=str(self._address), services=list(self.service_names))
        return self._address

    @contextlib.asynccontextmanager
    async def not_yet_serving(self) -> AsyncIterator[None]:
        """Answers health checks with NOT_SERVING, where they have an address of their own.

        From here on, until the service has stopped, or the block has failed.

        Raises:
            ListenError: That address cannot be listened on.
        """
        if self._health_only is not None and self._health_only._server is None:  # noqa: SLF001 - of this very class
            # The first to listen and the last to stop: a probe has an answer at all times.
            self._health.opening()
            await self._health_only.start()
        try:
            yield
        except BaseException:
            if self._health_only is not None:
                await self._health_only.stop(0)
            raise

    def ready(self, is_ready: bool) -> None:
        """Has health checks of the services say whether calls make sense now.

        That of the server as a whole, which has no name, tells only whether it runs: to start it
        again would help nothing. While it drains all of them say NOT_SERVING.
        """
        says = health_pb2.HealthCheckResponse
        for name in self.service_names:
            self._health.set(name, says.SERVING if is_ready else says.NOT_SERVING)

    async def _open(self) -> grpc.aio.Server:
        """Makes a server, binds the address and starts it."""
        handlers = list(self._handlers)
        collector: Any = _HandlerCollector(handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, collector)
        if self._handlers:  # else it answers health checks, and nothing else
            handlers += reflection_handlers([_service_name(handler) for handler in handlers])
        credentials = None if self._tls is None else self._tls.credentials()
        if self._address.port != 0:
            await check_free(self._address)
        server = grpc.aio.server(
            handlers=handlers, interceptors=(self._interceptor,), options=self._options
        )
        target = str(self._address)
        try:
            if credentials is None:
                port = server.add_insecure_port(target)
            else:
                port = server.add_secure_port(target, credentials)
        except RuntimeError as error:
            hint = "" if credentials is None else " with this TLS certificate and key"
            raise ListenError(f"cannot listen on {target}{hint}: {error}") from error
        self._address = self._address.with_port(port)
        await server.start()
        return server

    async def _supervise(self) -> None:
        """Waits for the server's end; opens it anew if it crashes.

        grpc's loop that accepts calls dies of any exception, and a client can cause one: a method
        name that is not UTF-8 is enough. Its other calls are lost then, but not the service.
        """
        while True:
            server = self._require_server()
            try:
                # With a time limit: without one, grpc tells of a crash only once all calls ended.
                while await server.wait_for_termination(_CRASH_CHECK_SECONDS):
                    pass
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and mended
                if self._is_draining():
                    return
                _log.exception("the gRPC server crashed; opening it again")
            else:
                return
            await server.stop(None)
            async with self._opening:
                if self._is_draining():
                    return
                self._server = await self._open()

    def _is_draining(self) -> bool:
        return self._draining is not None

    def _require_server(self) -> grpc.aio.Server:
        if self._server is None:
            raise RuntimeError("the Service has not been started")
        return self._server

    async def wait(self) -> None:
        """Waits until the server has been stopped.

        Raises:
            ServerCrashedError: It crashed and could not be opened again, or a task failed that it
                relies on.
        """
        if not self._is_draining():
            self._require_server()
        supervised = [] if self._supervision is None else [self._supervision]
        if self._health_only is not None and (other := self._health_only._supervision) is not None:  # noqa: SLF001 - of this very class
            supervised.append(other)
        try:
            if supervised:
                # They go on if this wait is cancelled.
                ended, _ = await asyncio.wait(supervised, return_when=asyncio.FIRST_COMPLETED)
                for supervision in ended:
                    supervision.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported below
            self._failure = ServerCrashedError(
                f"the gRPC server crashed and could not be opened again: {error}"
            )
            self._failure.__cause__ = error
        await self.stop(0)
        if self._failure is not None:
            raise self._failure

    async def stop(self, grace: float | None = None) -> None:
        """Drains and stops; every caller waits for the same end.

        Health turns to NOT_SERVING, the ``on_drain`` callbacks run, calls get the rest of the
        grace period to end and are cancelled then.

        Args:
            grace: Seconds for all of it; by default the server's.
        """
        await asyncio.shield(self._drain_once(self._grace if grace is None else grace))

    async def serve(self) -> None:
        """Starts, serves until SIGTERM or SIGINT, drains and stops.

        A second signal cuts the grace period short; a third one ends the process as usual.

        Raises:
            ListenError: See :meth:`start`.
            ServerCrashedError: See :meth:`wait`.
        """
        async with self.stopping_on_signals():
            await self.start()
            await self.wait()

    @contextlib.asynccontextmanager
    async def stopping_on_signals(self) -> AsyncIterator[None]:
        """Lets SIGTERM and SIGINT stop the server while the block runs; main thread only."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def __aenter__(self) -> Service:
        """Starts the server."""
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stops the server."""
        await self.stop()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._draining is None:
            _log.info("draining", signal=number.name, grace_seconds=self._grace)
            self._drain_once(self._grace)
            return
        _log.warning("stopping at once", signal=number.name)
        self._hurry.set()
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.remove_signal_handler(each)

    def _drain_once(self, grace: float) -> asyncio.Task[None]:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(grace))
        return self._draining

    async def _drain(self, grace: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        self._health.drain()
        await self._run_until(deadline, self._on_drain)
        self._health.close()
        async with self._opening:
            pass  # a crashed server that is being opened again is stopped like any other
        if self._server is not None:
            stopping = asyncio.create_task(self._server.stop(max(0.0, deadline - loop.time())))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            if not stopping.done():
                await self._server.stop(None)
            await stopping
        if self._health_only is not None:
            await self._health_only.stop(0)
        if self._looking is not None:
            self._looking.cancel()
        _log.info("stopped", address=str(self._address))

    async def _run_until(self, deadline: float, callbacks: Sequence[Callback]) -> None:
        """Runs callbacks side by side until the deadline or a second signal."""
        if not callbacks:
            return
        loop = asyncio.get_running_loop()
        names = {asyncio.ensure_future(callback()): _name(callback) for callback in callbacks}
        hurry = asyncio.create_task(self._hurry.wait())
        everything = asyncio.create_task(asyncio.wait(names))
        await asyncio.wait(
            (everything, hurry),
            timeout=max(0.0, deadline - loop.time()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurry.cancel()
        late = [task for task in names if not task.done()]
        if late:
            _log.warning("drain callbacks cut short", callbacks=[names[task] for task in late])
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=_CANCEL_SECONDS)
        everything.cancel()
        for task, name in names.items():
            if task.done() and not task.cancelled() and (error := task.exception()):
                _log.error("drain callback failed", callback=name, exc_info=error)


class _HandlerCollector:
    """Takes the place of a server in the generated ``add_…_to_server`` functions.

    Handlers are collected because a server can only be made inside a running event loop.
    """

    def __init__(self, handlers: list[grpc.GenericRpcHandler]) -> None:
        self._handlers = handlers

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: Any) -> None:
        """Does nothing: these are the same methods once more."""


def _service_name(handler: Any) -> str:
    name: str = handler.service_name()
    return name


def _name(callback: Callback) -> str:
    return getattr(callback, "__qualname__", repr(callback))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on an event loop of its own, uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:  # no uvloop for this platform
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
