"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar, Unpack

from analytics_service._client import calls
from analytics_service._client.chat import Chat
from analytics_service._client.target import ANALYTICS, CALL_SECONDS, CHAT_SECONDS
from grpc_runtime.client.connection import BlockingConnection
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.client.transport import Transport
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


class Client(BlockingConnection):
    """A connection to an analytics service; safe to share between threads.

    Every call has a deadline. Calls that can safely be repeated are tried again with backoff while
    the service is unavailable; questions are among them until their answer has begun, as they
    carry a request id.

    Raises:
        ValueError: The address is none.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = CALL_SECONDS,
        retry: RetryPolicy | None = None,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
    ) -> None:
        """Makes a client; it connects with the first call.

        Args:
            address: ``host:port`` or ``unix:/path``; by default what the environment variable
                MIDCOURSE_ANALYTICS says, else 127.0.0.1:50052.
            timeout: Seconds that a call may take, all its tries together; answers have a time of
                their own.
            retry: When to try again; by default 4 tries within about a second.
            credentials: Token, authorities and certificate to connect with (see
                :class:`Credentials`); by default what the environment says.
        """
        transport = Transport(
            ANALYTICS,
            address,
            timeout=timeout,
            retry=retry or RetryPolicy(),
            credentials=credentials,
        )
        super().__init__(transport)

    # Models

    def list_models(self, *, available_only: bool = False) -> list[model_pb2.Model]:
        """Returns the models: cheapest first, those that can not be chosen last.

        Args:
            available_only: Leave out the models that can not be chosen.
        """
        return list(self._transport.run(calls.list_models(available_only=available_only)))

    def recommend_model(
        self,
        question: str,
        *,
        session: str = "",
        max_cost_band: calls.Band | None = None,
        max_cost: Amount | None = None,
        allow_without_tools: bool = False,
    ) -> pb.RecommendModelResponse:
        """Returns which model is likely good enough for a question and cheapest: advice only.

        Args:
            question: What is to be asked.
            session: Where; its length counts. By default a new one.
            max_cost_band: Dearest band to recommend, such as "$$"; by default any.
            max_cost: Most that the answer may cost, in US dollars; by default what the caller's
                budgets leave.
            allow_without_tools: Recommend models too that can not call tools.

        Raises:
            NotFoundError: There is no such session.
            ValueError: ``max_cost_band`` is none.
        """
        return self._transport.run(
            calls.recommend_model(
                question,
                session=session,
                max_cost_band=max_cost_band,
                max_cost=max_cost,
                allow_without_tools=allow_without_tools,
            )
        )

    # Sessions

    def create_session(
        self, *, title: str = "", model: str = "", follow_successor: bool = False
    ) -> session_pb2.Session:
        """Makes a session.

        Args:
            title: For people; by default made of the first question.
            model: Id or alias of the model that is to answer; by default the service's.
            follow_successor: Take a retired model's successor instead of being refused.

        Raises:
            MidcourseError: The model can not be chosen; the message says why.
        """
        return self._transport.run(
            calls.create_session(title, model, follow_successor=follow_successor)
        )

    def get_session(self, session: str) -> session_pb2.Session:
        """Returns a session, by id or resource name.

        Raises:
            NotFoundError: The caller has no such session.
        """
        return self._transport.run(calls.get_session(session))

    def list_sessions(self, *, page_size: int = 0) -> Iterator[session_pb2.Session]:
        """Returns the caller's sessions, the one used last first, fetched page by page.

        Args:
            page_size: Sessions to fetch at a time; 0: the service's choice.
        """
        return self._transport.run_pages(calls.list_sessions(page_size))

    def update_session(
        self,
        session: str,
        *,
        title: str | None = None,
        model: str | None = None,
        follow_successor: bool | None = None,
        etag: str = "",
    ) -> session_pb2.Session:
        """Changes what is given of a session; an empty ``model`` is the service's default again.

        Raises:
            NotFoundError: The caller has no such session.
            ConflictError: ``etag`` was given and is not the current one.
            MidcourseError: The model can not be chosen; the message says why.
            ValueError: Nothing was given.
        """
        call = calls.update_session(
            session, title=title, model=model, follow_successor=follow_successor, etag=etag
        )
        return self._transport.run(call)

    def delete_session(self, session: str, *, etag: str = "") -> None:
        """Deletes a session with its messages. What it has cost stays on record.

        Raises:
            NotFoundError: The caller has no such session.
            ConflictError: ``etag`` was given and is not the current one.
        """
        return self._transport.run(calls.delete_session(session, etag))

    def list_messages(self, session: str, *, page_size: int = 0) -> Iterator[session_pb2.Message]:
        """Returns a session's messages, the oldest first, fetched page by page.

        Raises:
            NotFoundError: The caller has no such session.
        """
        return self._transport.run_pages(calls.list_messages(session, page_size))

    # Questions

    def chat(self, question: str, **options: Unpack[calls.ChatOptions]) -> Chat:
        """Asks a question, for whoever wants to see the answer come.

        >>> with client.chat("Why did the loss spike?", jobs=["my-run"]) as chat:
        ...     for event in chat:
        ...         print(event.text_delta, end="", flush=True)

        Returns:
            The answer as it comes; the question is sent when its first event is asked for.
        """
        return Chat(
            self._transport,
            self._transport.stub(AnalyticsServiceStub).Chat,
            calls.chat_request(question, options),
            options.get("timeout", CHAT_SECONDS),
        )

    def ask(self, question: str, **options: Unpack[calls.ChatOptions]) -> Answer:
        """Asks a question and waits for the end of the answer.

        Raises:
            NotFoundError: There is no such session or model.
            FailedPreconditionError: The model is retired, or can not be chosen now.
            ResourceExhaustedError: A budget is used up, or there is too much to do.
            UnavailableError: The service or the model's provider was not reached.
            DeadlineExceededError: The answer was not there in time, and was cancelled.
            MidcourseError: The answer failed for another reason.
        """
        with self.chat(question, **options) as chat:
            return chat.result()

    def cancel_chat(self, name: str) -> session_pb2.Message:
        """Stops an answer that is being written, from anywhere. What there is of it is kept.

        Args:
            name: Resource name of the answer (``chat.started.message``); or a session, for
                whatever is being written there.

        Raises:
            NotFoundError: There is no such answer or session.
        """
        return self._transport.run(calls.cancel_chat(name))

    # Usage and budgets

    def get_usage(
        self, group_by: calls.Group | None = None, **only: Unpack[calls.UsageFilter]
    ) -> pb.GetUsageResponse:
        """Returns sums of what was used and spent: ``summaries`` and ``total``.

        Args:
            group_by: What to sum up by; by default all in one sum.
            only: Which usage is meant, see :class:`UsageFilter`.

        Raises:
            PermissionDeniedError: The caller may not see that principal's usage.
            ValueError: ``group_by`` is none.
        """
        return self._transport.run(calls.get_usage(group_by, only))

    def list_usage(
        self, *, page_size: int = 0, **only: Unpack[calls.UsageFilter]
    ) -> Iterator[usage_pb2.UsageRecord]:
        """Returns the calls to providers, one by one, the newest first, fetched page by page.

        Args:
            page_size: Records to fetch at a time; by default 100.
            only: Which usage is meant, see :class:`UsageFilter`.

        Raises:
            PermissionDeniedError: The caller may not see that principal's usage.
        """
        return self._transport.run_pages(calls.list_usage(page_size, only))

    def get_budget(
        self, period: calls.Period, *, principal: str = "", model: str = ""
    ) -> usage_pb2.Budget:
        """Returns a budget and what is left of it; it has no ``limit`` where none is set.

        Args:
            period: "day" or "month", UTC.
            principal: Name of the caller whose budget it is; by default that of all together.
            model: Id or alias of the model it is for; by default all together.

        Raises:
            PermissionDeniedError: The caller may not see it.
            ValueError: ``period`` is none.
        """
        return self._transport.run(calls.get_budget(period, principal, model))

    def list_budgets(self) -> list[usage_pb2.Budget]:
        """Returns the budgets that have a limit."""
        return list(self._transport.run(calls.list_budgets()))

    def set_budget(
        self, limit: Amount | None, period: calls.Period, *, principal: str = "", model: str = ""
    ) -> usage_pb2.Budget:
        """Sets a limit, or lifts it.

        Args:
            limit: Most to be spent in the period, in US dollars; None: no limit any more.
            period: "day" or "month", UTC.
            principal: Name of the caller whose budget it is; by default that of all together.
            model: Id or alias of the model it is for; by default all together.

        Raises:
            InvalidArgumentError: The limit is no amount of money.
            PermissionDeniedError: The caller may not set budgets.
            ValueError: ``period`` is none.
        """
        return self._transport.run(calls.set_budget(limit, period, principal, model))

    def list_audit_records(
        self,
        *,
        principal: str = "",
        resource: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> Iterator[access_pb2.AuditRecord]:
        """Returns who changed what and who was refused, newest first, fetched page by page.

        Args:
            principal: Only of this one.
            resource: Only about this and what is below it, such as ``sessions/…``.
            start_time: Only at or after this time.
            end_time: Only before this time.
            page_size: Records to fetch at a time; 0: the service's choice.

        Raises:
            PermissionDeniedError: The caller is no administrator.
        """
        call = calls.list_audit_records(principal, resource, start_time, end_time, page_size)
        return self._transport.run_pages(call)
