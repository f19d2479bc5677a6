"""The control plane put together: store, use cases, gRPC edge. The only place that knows all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.errors import Reason, Refusal
from control_plane.measuring import Levels, MeasuredStore, UpdateMetrics
from control_plane.rpc.access_servicer import AccessServicer, Tokens
from control_plane.rpc.agent_servicer import AgentServicer
from control_plane.rpc.auditing import RECORDER
from control_plane.rpc.control_servicer import ControlPlaneServicer, UseCases
from control_plane.rpc.errors import DOMAIN, translate
from control_plane.rpc.policies import POLICY, WATCHES, name_now, scope_now
from control_plane.services.access import Secrets, TokenService
from control_plane.services.audit import AuditedStore, AuditRecords
from control_plane.services.batches import BatchService
from control_plane.services.bus import LocalBus
from control_plane.services.history import HistoryService
from control_plane.services.jobs import JobService
from control_plane.services.metrics import MetricsService
from control_plane.services.passing import ObservedStore, UpdateObserver
from control_plane.services.readiness import WatchedStore
from control_plane.services.scoped import ScopedStore
from control_plane.services.session_parts import SessionLimits
from control_plane.services.sessions import SessionService
from control_plane.services.telemetry import TelemetryHub
from control_plane.services.updates import UpdateService
from control_plane.services.upkeep import Retention, Upkeep
from control_plane.services.watch import WatchService
from control_plane.store import open_store
from grpc_runtime import failpoints
from grpc_runtime.audit.log import AuditLog
from grpc_runtime.bearer import BearerAuthenticator, digest, new_secret
from grpc_runtime.limits import CallLimits, OpenLimit, Strangers
from grpc_runtime.listen import check_free
from grpc_runtime.logging import configure_logging
from grpc_runtime.observe import Observation, observing
from grpc_runtime.process import prepare_for_many
from grpc_runtime.readiness import Readiness
from grpc_runtime.security import authenticator, tls_files
from grpc_runtime.server import Service, run
from grpc_runtime.sql import shown
from midcourse.agent.v1 import session_pb2_grpc
from midcourse.control.v1 import access_pb2_grpc, control_pb2_grpc

if TYPE_CHECKING:
    from control_plane.config import ServerSettings
    from control_plane.services.ports import Clock, Store

_log = structlog.get_logger(__name__)

_UNOBSERVED = Observation()


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class FailingBus(LocalBus):
    """A bus that passes the places where a test can have this process fail."""

    def notify(self, topic: str) -> None:
        """Wakes everybody who is subscribed to the topic."""
        failpoints.reached("wakeup.before")
        super().notify(topic)
        failpoints.reached("wakeup.after")


def token_service(store: Store, clock: Clock) -> TokenService:
    """The use case of tokens over a store with everything in it."""
    return TokenService(store, clock, Secrets(new_secret, digest))


class ControlPlane:
    """A control plane in this event loop.

    async with ControlPlane.open(settings) as plane:
        print(plane.service.address)
        await plane.service.wait()
    """

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        service: Service,
        clock: Clock = utc_now,
        bearer: BearerAuthenticator | None = None,
        observation: Observation = _UNOBSERVED,
    ) -> None:
        """Puts the parts together; nothing runs before `running`."""
        self.settings = settings
        self.observation = observation
        self._readiness = Readiness("store", _is_away)
        store = self._watched = WatchedStore(store, self._readiness.noticing)
        observers: list[UpdateObserver] = []
        if observation.tracer is not None:
            # Imported where it is wanted: what it needs is an extra.
            from control_plane.tracing import UpdateTraces

            observers.append(UpdateTraces(observation.tracer))
        if observation.registry is not None:
            observers.append(UpdateMetrics(observation.registry))
            store = MeasuredStore(store, observation.registry)
        if observers:
            store = ObservedStore(store, observers)
        self.audit = AuditLog(AuditRecords(store), clock, _is_away)
        service.observe(RECORDER.refused_calls(self.audit))
        store = AuditedStore(store, clock, RECORDER.entry_now)
        self.tokens = token_service(store, clock)
        self.tokens.on_revoked(service.end_calls)
        if bearer is not None:
            bearer.verifier = Tokens(self.tokens)
            self.tokens.on_revoked(bearer.forget)
        everything, store = store, ScopedStore(store, scope_now, name_now)
        self.bus = FailingBus() if failpoints.armed() else LocalBus()
        self.telemetry = TelemetryHub(
            everything,
            clock,
            flush_interval=settings.flush_interval,
            max_pending_samples=settings.max_pending_samples,
        )
        self.sessions = SessionService(
            *(store, clock, self.bus, self.telemetry, _limits(settings)),
            everything=everything,
            scope_now=scope_now,
        )
        self.jobs = JobService(store, clock, self.bus, self.telemetry, self.sessions.connected)
        self.updates = UpdateService(
            store, clock, self.bus, self.telemetry, max_open_updates=settings.max_open_updates
        )
        self.batches = BatchService(
            store, clock, self.bus, self.telemetry, max_open_updates=settings.max_open_updates
        )
        self.metrics = MetricsService(store, self.telemetry)
        self.watches = WatchService(store, self.bus, self.jobs, self.telemetry)
        self.upkeep = Upkeep(
            store, clock, self.sessions, self.updates, self.jobs, _retention(settings)
        )
        if observation.registry is not None:
            observation.registry.register(Levels(self.sessions, self.telemetry, self.watches))
        self._store = store
        self.service = service
        use_cases = UseCases(
            self.jobs,
            self.updates,
            self.watches,
            self.metrics,
            self.batches,
            HistoryService(store),
            settings.heartbeat_interval,
            settings.watch_patience,
        )
        self.service.add(
            control_pb2_grpc.add_ControlPlaneServiceServicer_to_server,
            ControlPlaneServicer(use_cases),
        )
        self.service.add(
            session_pb2_grpc.add_AgentServiceServicer_to_server, AgentServicer(self.sessions)
        )
        self.service.add(
            access_pb2_grpc.add_AccessServiceServicer_to_server,
            AccessServicer(self.tokens, self.audit),
        )
        self.service.on_drain(self._drain)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ControlPlane]:
        """Serves while the block runs, then drains and flushes."""
        chores = [
            asyncio.create_task(self.telemetry.run(), name="telemetry"),
            *(asyncio.create_task(c, name=name) for name, c in self.upkeep.chores().items()),
            asyncio.create_task(self.tokens.run(), name="tokens"),
            asyncio.create_task(self.audit.run(), name="audit"),
            asyncio.create_task(self._store.follow(self.bus.hear), name="follower"),
            asyncio.create_task(
                self._readiness.run(self._watched.attempt, self.service.ready), name="readiness"
            ),
        ]
        for chore in chores:
            self.service.rely_on(chore)
        try:
            await self.service.start()
            try:
                yield self
            finally:
                await self.service.stop()
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            try:
                await self.telemetry.flush()
                await self.sessions.leave()
                await self.tokens.write_uses()
                await self.audit.close()
            except Refusal as refusal:
                if refusal.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                # Agents keep what is not acknowledged, and other servers see this one go silent.
                _log.warning("the store is away at the end", error=refusal.message)

    async def _drain(self) -> None:
        """Sends agents away, and ends what would wait for longer than the server lives."""
        self.bus.drain()
        await self.sessions.drain()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: ServerSettings) -> AsyncIterator[ControlPlane]:
        """Opens the store and serves while the block runs.

        Raises:
            ListenError: If the address can not be listened on.
            StoreOpenError: If the database can not be opened.
        """
        # The addresses first: whoever may not listen leaves no database behind.
        bearer = BearerAuthenticator()
        service = _service(settings, bearer)
        await check_free(service.address)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service.not_yet_serving())
            observation = await stack.enter_async_context(
                observing(settings, service, "midcourse-control-plane")
            )
            store = await open_store(
                settings.database,
                poll_interval=settings.poll_interval,
                patience=settings.database_patience,
            )
            stack.push_async_callback(store.close)
            plane = cls(settings, store, service, bearer=bearer, observation=observation)
            yield await stack.enter_async_context(plane.running())


def _is_away(error: Exception) -> bool:
    return isinstance(error, Refusal) and error.reason is Reason.STORE_UNAVAILABLE


def _service(settings: ServerSettings, bearer: BearerAuthenticator) -> Service:
    return Service(
        settings.listen,
        domain=DOMAIN,
        authenticator=authenticator(settings, bearer),
        translate=translate,
        policy=POLICY,
        limits=CallLimits(
            calls_per_second=settings.max_calls_per_second,
            open_limit=OpenLimit(
                *("watches and waits", WATCHES),
                most=settings.max_watches,
                most_per_principal=settings.max_watches_per_principal,
            ),
        ),
        strangers=Strangers(settings.max_strangers_per_second),
        tls=tls_files(settings),
        insecure=settings.insecure,
        max_message_bytes=settings.max_message_bytes,
        grace=settings.grace,
        health_address=settings.health_listen,
    )


def _limits(settings: ServerSettings) -> SessionLimits:
    return SessionLimits(
        heartbeat_interval=settings.heartbeat_interval,
        lost_after_intervals=settings.lost_after,
        stall_after=settings.stall_after,
        max_sessions=settings.max_sessions,
        max_message_bytes=settings.max_message_bytes,
    )


def _retention(settings: ServerSettings) -> Retention:
    def days(number: float) -> timedelta | None:
        return timedelta(days=number) if number > 0 else None

    return Retention(
        days(settings.retain_samples_days),
        days(settings.retain_events_days),
        days(settings.retain_audit_days),
        days(settings.retain_tokens_days),
        days(settings.retain_jobs_days),
    )


async def _serve(settings: ServerSettings) -> None:
    async with ControlPlane.open(settings) as plane:
        _log.info("serving", address=str(plane.service.address), database=shown(settings.database))
        async with plane.service.stopping_on_signals():
            await plane.service.wait()


def serve(settings: ServerSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ListenError: If the address can not be listened on.
        StoreOpenError: If the database can not be opened.
        ServerCrashedError: If it could not go on.
    """
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    prepare_for_many()
    run(_serve(settings))
