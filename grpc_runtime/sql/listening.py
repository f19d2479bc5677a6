"""Listening to a PostgreSQL server's notifications, on a connection of its own."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import AsyncConnection

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 1.0

_log = get_logger(__name__)


async def listen(
    connecting: dict[str, Any],
    database: str,
    channel: str,
    heard: Callable[[], None],
    own: set[int],
) -> None:
    """Calls `heard` whenever there may be something new: runs until cancelled.

    That is with every notification, and each time that it has begun to listen, as what
    was sent before is lost. A connection that breaks is made anew.

    Args:
        connecting: Parameters of the connection.
        database: What to call the database in logs, without secrets.
        channel: The name of the channel.
        heard: Is called in the event loop.
        own: The server's processes whose notifications need not be heard; emptied where one of
            them may be somebody else's by now.
    """
    import psycopg
    from psycopg import sql

    delay = _FIRST_DELAY
    failing = begun = False
    while True:
        try:
            connection: AsyncConnection[Any] = await psycopg.AsyncConnection.connect(
                **connecting, autocommit=True
            )
            async with connection:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                delay = _FIRST_DELAY
                if begun:
                    # A server that was started again may have given the numbers to others.
                    own.clear()
                begun = True
                if failing:
                    failing = False
                    _log.info("hears the database again", database=database)
                heard()
                async for notification in connection.notifies():
                    if notification.pid not in own:
                        heard()
        except psycopg.OperationalError as error:
            if not failing:
                failing = True
                told = " ".join(str(error).split())
                _log.warning("does not hear the database", database=database, error=told)
        await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 - spreads reconnects, no secret
        delay = min(2 * delay, _LONGEST_DELAY)
