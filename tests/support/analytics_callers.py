"""The two clients of the analytics service behind one face, for tests of both."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from analytics_service.client import AsyncChat, AsyncClient, Chat, Client, RetryPolicy
from midcourse.analytics.v1 import analytics_pb2 as pb

QUICK = RetryPolicy(attempts=3, initial=0.001, maximum=0.002)


class Caller:
    """One of the two clients, used the same way: the blocking one from threads."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    async def run(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method; of a listing it returns everything."""

        def call() -> Any:
            answer = getattr(self.client, method)(*args, **options)
            return list(answer) if hasattr(answer, "__next__") else answer

        if isinstance(self.client, Client):
            return await asyncio.to_thread(call)
        answer = call()
        if hasattr(answer, "__anext__"):
            return [item async for item in answer]
        return await answer if inspect.isawaitable(answer) else answer

    def chat(self, question: str, **options: Any) -> ChatCaller:
        return ChatCaller(self.client.chat(question, **options))


class ChatCaller:
    """A chat of either kind."""

    def __init__(self, chat: Chat | AsyncChat) -> None:
        self.chat = chat

    async def next(self) -> pb.ChatResponse | None:
        """The next event; None at the end."""
        chat = self.chat
        if isinstance(chat, Chat):
            return await asyncio.to_thread(lambda: next(chat, None))
        return await anext(chat, None)

    async def rest(self) -> list[pb.ChatResponse]:
        chat = self.chat
        if isinstance(chat, Chat):
            return await asyncio.to_thread(lambda: list(chat))
        return [event async for event in chat]

    async def result(self) -> Any:
        if isinstance(self.chat, Chat):
            return await asyncio.to_thread(self.chat.result)
        return await self.chat.result()

    async def leave_after(self, events: int) -> None:
        """Enters the block and leaves it early."""
        chat = self.chat
        if isinstance(chat, Chat):

            def take() -> None:
                with chat as entered:
                    for _ in range(events):
                        next(entered)

            await asyncio.to_thread(take)
        else:
            async with chat as entered:
                for _ in range(events):
                    await anext(entered)
