from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import structlog

from grpc_runtime.options import client_options
from grpc_runtime.server import Service

SERVICE = "test.Echo"


def generic(**handlers: grpc.RpcMethodHandler[Any, Any]) -> Callable[[Any, Any], None]:
    """Returns what generated code calls ``add_EchoServicer_to_server``."""

    def register(_servicer: Any, server: Any) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_registered_method_handlers(SERVICE, handlers)

    return register


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Starts a service with the given handlers; yields it and a channel to it."""

    @contextlib.asynccontextmanager
    async def serve(
        *, service: dict[str, Any] | None = None, **handlers: grpc.RpcMethodHandler[Any, Any]
    ) -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
        server = Service("127.0.0.1:0", domain="test.example", **(service or {}))
        server.add(generic(**handlers), None)
        async with server:
            target = str(server.address)
            async with grpc.aio.insecure_channel(target, options=client_options()) as channel:
                yield server, channel

    return serve


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Undoes what ``configure_logging`` does to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """Everything that is logged, as dictionaries."""
    merge = structlog.contextvars.merge_contextvars
    with structlog.testing.capture_logs(processors=[merge]) as captured:
        yield captured
