"""The analytics service put together. The only place that knows all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from analytics_service.advice import Advice
from analytics_service.catalogue.listing import ListedModel, listing
from analytics_service.catalogue.load import load_catalogue
from analytics_service.catalogue.model import Stage
from analytics_service.chat.calls import Surroundings
from analytics_service.chat.plan import Caller, Limits
from analytics_service.chat.service import ChatService, ModelPolicy
from analytics_service.chat.sessions import SessionService
from analytics_service.chat.tools import Toolbox
from analytics_service.errors import Reason, Refusal
from analytics_service.ids import new_id
from analytics_service.providers import local
from analytics_service.providers.registry import Providers
from analytics_service.providers.retry import RetryPolicy
from analytics_service.rpc.auditing import RECORDER
from analytics_service.rpc.errors import DOMAIN, code_of, translate
from analytics_service.rpc.policies import POLICY
from analytics_service.rpc.servicer import AnalyticsServicer, UseCases
from analytics_service.rpc.tokens import ControlPlaneTokens
from analytics_service.store import open_store
from analytics_service.threads import Threads
from analytics_service.upkeep import Retention, Upkeep
from analytics_service.usage.prices import PriceBook
from analytics_service.usage.service import UsageService
from control_plane.client import Client, MidcourseError, UnauthenticatedError
from grpc_runtime import security
from grpc_runtime.audit.log import AuditLog
from grpc_runtime.bearer import BearerAuthenticator
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.limits import CallLimits, Strangers
from grpc_runtime.listen import check_free
from grpc_runtime.logging import configure_logging
from grpc_runtime.observe import observing
from grpc_runtime.readiness import Readiness
from grpc_runtime.server import Service, run
from grpc_runtime.sql.address import parse_address
from midcourse.analytics.v1 import analytics_pb2_grpc

if TYPE_CHECKING:
    from analytics_service.catalogue.catalogue import Catalogue
    from analytics_service.catalogue.load import LoadedCatalogue
    from analytics_service.config import AnalyticsSettings
    from analytics_service.ports import Clock, Store
    from grpc_runtime.auth import Authenticator

_log = structlog.get_logger(__name__)

_ANSWERS_SHARE = 0.8
"""Part of the grace period that answers get to end by themselves; the rest is for telling."""

_TOOLS_AT_ONCE = 32
"""Calls of tools that read from the control plane at the same time; others wait."""
_TOKENS_AT_ONCE = 16
"""Tokens that the control plane is asked about at the same time; others wait."""

_TALKATIVE = ("anthropic", "httpx2", "openai")
"""Libraries that log a line, or a prompt, for every call; ours has one already."""


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Analytics:
    """An analytics service in this event loop.

    async with Analytics.open(settings) as analytics:
        print(analytics.service.address)
        await analytics.service.wait()
    """

    def __init__(
        self,
        settings: AnalyticsSettings,
        loaded: LoadedCatalogue,
        store: Store,
        service: Service,
        clock: Clock = utc_now,
        bearer: BearerAuthenticator | None = None,
        *,
        readiness: Readiness,
    ) -> None:
        """Puts the parts together; nothing runs before `running`."""
        self._readiness = readiness
        self.settings = settings
        self.service = service
        self._clock = clock
        self.audit = AuditLog(store, clock, _is_away)
        service.observe(RECORDER.refused_calls(self.audit))
        self._catalogue = loaded.catalogue
        self.providers = Providers(
            self._catalogue.providers,
            os.environ,
            local=local.LocalProvider,
            local_unavailable=local.unavailable,
        )
        self._prices = PriceBook(loaded.catalogue, loaded.prices)
        self._plane = Client(
            settings.control_plane,
            timeout=settings.tool_timeout,
            credentials=_plane_credentials(settings),
        )
        self._tool_threads = Threads(_TOOLS_AT_ONCE, "tools")
        self._token_threads = Threads(_TOKENS_AT_ONCE, "tokens")
        if bearer is not None:
            bearer.verifier = ControlPlaneTokens(self._plane, self._token_threads)
        replica = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.upkeep = Upkeep(
            store,
            clock,
            replica,
            _retention(settings),
            is_alone=isinstance(parse_address(settings.database), Path),
        )
        around = Surroundings(
            store=store,
            providers=self.providers,
            prices=self._prices,
            retry=RetryPolicy(attempts=settings.attempts),
            clock=clock,
            new_id=new_id,
            be_known=self.upkeep.be_known,
        )
        self.chat = ChatService(
            around,
            self._catalogue,
            ModelPolicy(
                settings.default_model, settings.follow_successors, tuple(settings.failover)
            ),
            _limits(settings),
            self._toolbox,
            replica=replica,
            code_of=code_of,
        )
        self.service.add(
            analytics_pb2_grpc.add_AnalyticsServiceServicer_to_server,
            AnalyticsServicer(
                UseCases(
                    chat=self.chat,
                    sessions=SessionService(store, clock, self.chat.choose, new_id),
                    usage=UsageService(store, self._catalogue, clock),
                    audit=self.audit,
                    advice=Advice(store, self.models, clock, settings.max_output_tokens),
                    models=self.models,
                )
            ),
        )
        self.service.on_drain(partial(self.chat.drain, settings.grace * _ANSWERS_SHARE))

    def models(self) -> list[ListedModel]:
        """The models as they are today."""
        return listing(
            self._catalogue,
            self._prices,
            default=self.settings.default_model,
            unavailable=self.chat.unavailable,
            now=self._clock(),
        )

    def _warn_of_retired(self) -> None:
        """Logs which models of the settings are retired, as no answer will come from them."""
        today = self._clock().date()
        for setting, name in [
            ("default_model", self.settings.default_model),
            *(("failover", name) for name in self.settings.failover),
        ]:
            model = self._catalogue.find(name) if name else None
            if model is not None and model.stage_on(today) is Stage.RETIRED:
                successor = self._catalogue.live_successor(model, today)
                _log.warning(
                    "a model of the settings is retired",
                    setting=setting,
                    model=name,
                    shutdown=str(model.shutdown) if model.shutdown else None,
                    successor=successor.id if successor else None,
                )

    async def _warn_of_own_rights(self) -> None:
        """Logs that callers without a token have rights, by its certificate or as everybody has."""
        if self.settings.control_plane_cert is None:
            return
        try:
            own = await self._token_threads.run(self._plane.get_caller)
        except UnauthenticatedError:
            return  # as it should be
        except MidcourseError as error:
            _log.warning(
                "cannot look whether the certificate has rights at the control plane",
                error=error.message,
            )
            return
        _log.warning(
            "callers without a token read runs with what rights the control plane gives whoever "
            "shows the service's own certificate; take it out of the control plane's "
            "cert_principals, if it is there, or have the control plane ask callers who they are",
            principal=own.principal,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Analytics]:
        """Serves while the block runs, then drains and settles."""
        self._warn_of_retired()
        chores: list[asyncio.Task[None]] = []
        try:
            await self.upkeep.begin()
            # What SDKs and connections take is not to be part of somebody's first answer.
            await self.providers.warm()
            chores += [
                asyncio.create_task(self.upkeep.run(), name="upkeep"),
                asyncio.create_task(self.chat.watch_cancels(), name="cancels"),
                asyncio.create_task(self.chat.write_late(), name="late writes"),
                asyncio.create_task(self.audit.run(), name="audit"),
                asyncio.create_task(
                    self._readiness.run(self.upkeep.beat, self.service.ready), name="readiness"
                ),
            ]
            for chore in chores:
                self.service.rely_on(chore)
            # Not relied on: it comes to its end, and a control plane that hangs holds up nothing.
            chores.append(asyncio.create_task(self._warn_of_own_rights(), name="own rights"))
            await self.service.start()
            try:
                yield self
            finally:
                await self.service.stop()
        finally:
            await self.chat.close()
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await self.providers.close()
            self._plane.close()
            self._tool_threads.close()
            self._token_threads.close()
            try:
                await self.audit.close()
            except Refusal as refusal:
                if not _is_away(refusal):
                    raise
                _log.warning("the store is away at the end", error=refusal.message)

    def _toolbox(self, caller: Caller, jobs: Sequence[str]) -> Toolbox:
        plane = self._plane.with_metadata(caller.metadata)
        return Toolbox(plane, self._tool_threads, jobs, self._clock)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: AnalyticsSettings,
        *,
        clock: Clock = utc_now,
        authenticator: Authenticator | None = None,
    ) -> AsyncIterator[Analytics]:
        """Opens the store and serves while the block runs.

        Args:
            settings: The settings.
            clock: Tells the time.
            authenticator: Decides who a caller is; by default as the settings say.

        Raises:
            CatalogueError: The catalogue's file can not be used.
            ListenError: The address can not be listened on.
            DatabaseOpenError: The database can not be opened.
            Refusal: A model that the settings name is not known.
            CredentialsError: The control plane can not be connected to as the settings say.
        """
        loaded = load_catalogue(settings.catalogue)
        check_models(settings, loaded.catalogue)
        _plane_credentials(settings)
        bearer = BearerAuthenticator()
        # The addresses first: whoever may not listen leaves no database behind.
        service = Service(
            settings.listen,
            domain=DOMAIN,
            authenticator=authenticator or security.authenticator(settings, bearer),
            translate=translate,
            policy=POLICY,
            limits=CallLimits(calls_per_second=settings.max_calls_per_second),
            strangers=Strangers(settings.max_strangers_per_second),
            tls=security.tls_files(settings),
            insecure=settings.insecure,
            max_message_bytes=settings.max_message_bytes,
            grace=settings.grace,
            health_address=settings.health_listen,
        )
        await check_free(service.address)
        readiness = Readiness("store", _is_away)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service.not_yet_serving())
            await stack.enter_async_context(observing(settings, service, "midcourse-analytics"))
            store = await open_store(
                settings.database,
                clock=clock,
                entry_now=RECORDER.entry_now,
                noticing=readiness.noticing,
                patience=settings.database_patience,
            )
            stack.push_async_callback(store.close)
            made = cls(settings, loaded, store, service, clock, bearer, readiness=readiness)
            yield await stack.enter_async_context(made.running())


def _is_away(error: Exception) -> bool:
    return isinstance(error, Refusal) and error.reason is Reason.STORE_UNAVAILABLE


def _plane_credentials(settings: AnalyticsSettings) -> Credentials:
    """What to connect to the control plane with: never a token, as every caller brings its own.

    Nor the certificate of whoever has started it, as its rights would be every caller's.

    Raises:
        CredentialsError: A caller's token would cross a network in clear.
    """
    credentials = Credentials(
        ca=settings.control_plane_ca or Credentials.from_environment().ca,
        certificate=settings.control_plane_cert,
        key=settings.control_plane_key,
    )
    forwards_tokens = "token" in settings.auth_kinds
    credentials.check_for(settings.control_plane, forwards_tokens=forwards_tokens)
    return credentials


def check_models(settings: AnalyticsSettings, catalogue: Catalogue) -> None:
    """Checks that the catalogue has the models that the settings name.

    Raises:
        Refusal: MODEL_UNKNOWN.
    """
    chosen = [] if settings.default_model is None else [("default_model", settings.default_model)]
    for setting, name in (*chosen, *(("failover", name) for name in settings.failover)):
        if catalogue.find(name) is None:
            hint = " or ".join(catalogue.suggest(name)) or ", ".join(m.id for m in catalogue)
            raise Refusal(
                Reason.MODEL_UNKNOWN,
                f"{setting}: got {name[:100]!r}, which the catalogue does not have; "
                f"there is {hint}",
            )


def _limits(settings: AnalyticsSettings) -> Limits:
    return Limits(
        max_output_tokens=settings.max_output_tokens,
        max_rounds=settings.max_rounds,
        turn_seconds=settings.turn_timeout,
        idle_seconds=settings.idle_timeout,
    )


def _retention(settings: AnalyticsSettings) -> Retention:
    def days(number: float) -> timedelta | None:
        return timedelta(days=number) if number > 0 else None

    return Retention(
        days(settings.retain_sessions_days),
        days(settings.retain_usage_days),
        days(settings.retain_audit_days),
    )


async def _serve(settings: AnalyticsSettings) -> None:
    async with Analytics.open(settings) as analytics:
        _log.info(
            "serving",
            address=str(analytics.service.address),
            control_plane=settings.control_plane,
            models=sum(listed.unavailable is None for listed in analytics.models()),
        )
        async with analytics.service.stopping_on_signals():
            await analytics.service.wait()


def serve(settings: AnalyticsSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        CatalogueError: The catalogue's file can not be used.
        ListenError: The address can not be listened on.
        DatabaseOpenError: The database can not be opened.
        Refusal: A model that the settings name is not known.
        ServerCrashedError: It could not go on.
    """
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
    run(_serve(settings))
