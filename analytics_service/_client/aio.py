"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar, Unpack

from analytics_service._client import calls
from analytics_service._client.chat import AsyncChat
from analytics_service._client.target import ANALYTICS, CALL_SECONDS, CHAT_SECONDS
from grpc_runtime.client.aio import AsyncTransport
from grpc_runtime.client.connection import AsyncConnection
from grpc_runtime.client.retry import RetryPolicy
from midcourse.analytics.v1.analytics_pb2_grpc import AnalyticsServiceStub

if TYPE_CHECKING:
    from datetime import datetime

    import grpc

    from analytics_service._client.answer import Answer
    from analytics_service._client.money import Amount
    from grpc_runtime.client.credentials import Credentials
    from midcourse.analytics.v1 import analytics_pb2 as pb
    from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
    from midcourse.control.v1 import access_pb2

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class AsyncClient(AsyncConnection):
    """A connection to an analytics service, for the event loop that it is made in.

    Its methods are those of :class:`Client`, awaitable: the same arguments, answers and errors.

    Raises:
        ValueError: The address is none.
        RuntimeError: No event loop is running.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = CALL_SECONDS,
        retry: RetryPolicy | None = None,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client, as :class:`Client` is made; it connects with the first call."""
        transport = AsyncTransport(
            ANALYTICS,
            address,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )
        super().__init__(transport)

    # Models

    async def list_models(self, *, available_only: bool = False) -> list[model_pb2.Model]:
        """As :meth:`Client.list_models`."""
        return list(await self._transport.run(calls.list_models(available_only=available_only)))

    async def recommend_model(
        self,
        question: str,
        *,
        session: str = "",
        max_cost_band: calls.Band | None = None,
        max_cost: Amount | None = None,
        allow_without_tools: bool = False,
    ) -> pb.RecommendModelResponse:
        """As :meth:`Client.recommend_model`."""
        return await self._transport.run(
            calls.recommend_model(
                question,
                session=session,
                max_cost_band=max_cost_band,
                max_cost=max_cost,
                allow_without_tools=allow_without_tools,
            )
        )

    # Sessions

    async def create_session(
        self, *, title: str = "", model: str = "", follow_successor: bool = False
    ) -> session_pb2.Session:
        """As :meth:`Client.create_session`."""
        return await self._transport.run(
            calls.create_session(title, model, follow_successor=follow_successor)
        )

    async def get_session(self, session: str) -> session_pb2.Session:
        """As :meth:`Client.get_session`."""
        return await self._transport.run(calls.get_session(session))

    def list_sessions(self, *, page_size: int = 0) -> AsyncIterator[session_pb2.Session]:
        """As :meth:`Client.list_sessions`, to be iterated over with ``async for``."""
        return self._transport.run_pages(calls.list_sessions(page_size))

    async def update_session(
        self,
        session: str,
        *,
        title: str | None = None,
        model: str | None = None,
        follow_successor: bool | None = None,
        etag: str = "",
    ) -> session_pb2.Session:
        """As :meth:`Client.update_session`."""
        call = calls.update_session(
            session, title=title, model=model, follow_successor=follow_successor, etag=etag
        )
        return await self._transport.run(call)

    async def delete_session(self, session: str, *, etag: str = "") -> None:
        """As :meth:`Client.delete_session`."""
        return await self._transport.run(calls.delete_session(session, etag))

    def list_messages(
        self, session: str, *, page_size: int = 0
    ) -> AsyncIterator[session_pb2.Message]:
        """As :meth:`Client.list_messages`, to be iterated over with ``async for``."""
        return self._transport.run_pages(calls.list_messages(session, page_size))

    # Questions

    def chat(self, question: str, **options: Unpack[calls.ChatOptions]) -> AsyncChat:
        """Asks a question, for whoever wants to see the answer come.

        >>> async with client.chat("Why did the loss spike?") as chat:
        ...     async for event in chat:
        ...         print(event.text_delta, end="", flush=True)

        Returns:
            The answer as it comes; the question is sent when its first event is asked for.
        """
        return AsyncChat(
            self._transport,
            self._transport.stub(AnalyticsServiceStub).Chat,
            calls.chat_request(question, options),
            options.get("timeout", CHAT_SECONDS),
        )

    async def ask(self, question: str, **options: Unpack[calls.ChatOptions]) -> Answer:
        """As :meth:`Client.ask`."""
        async with self.chat(question, **options) as chat:
            return await chat.result()

    async def cancel_chat(self, name: str) -> session_pb2.Message:
        """As :meth:`Client.cancel_chat`."""
        return await self._transport.run(calls.cancel_chat(name))

    # Usage and budgets

    async def get_usage(
        self, group_by: calls.Group | None = None, **only: Unpack[calls.UsageFilter]
    ) -> pb.GetUsageResponse:
        """As :meth:`Client.get_usage`."""
        return await self._transport.run(calls.get_usage(group_by, only))

    def list_usage(
        self, *, page_size: int = 0, **only: Unpack[calls.UsageFilter]
    ) -> AsyncIterator[usage_pb2.UsageRecord]:
        """As :meth:`Client.list_usage`, to be iterated over with ``async for``."""
        return self._transport.run_pages(calls.list_usage(page_size, only))

    async def get_budget(
        self, period: calls.Period, *, principal: str = "", model: str = ""
    ) -> usage_pb2.Budget:
        """As :meth:`Client.get_budget`."""
        return await self._transport.run(calls.get_budget(period, principal, model))

    async def list_budgets(self) -> list[usage_pb2.Budget]:
        """As :meth:`Client.list_budgets`."""
        return list(await self._transport.run(calls.list_budgets()))

    async def set_budget(
        self, limit: Amount | None, period: calls.Period, *, principal: str = "", model: str = ""
    ) -> usage_pb2.Budget:
        """As :meth:`Client.set_budget`."""
        return await self._transport.run(calls.set_budget(limit, period, principal, model))

    def list_audit_records(
        self,
        *,
        principal: str = "",
        resource: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[access_pb2.AuditRecord]:
        """As :meth:`Client.list_audit_records`, to be iterated over with ``async for``."""
        call = calls.list_audit_records(principal, resource, start_time, end_time, page_size)
        return self._transport.run_pages(call)
