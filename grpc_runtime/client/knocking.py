"""Finding out cheaply that nobody listens at an address.

A gRPC call that finds nobody costs some milliseconds of a processor, a connection attempt by
itself a tenth of that. Where many clients of one machine wait for a server that is started
again, their calls would take the processor that it needs to start.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from grpc_runtime.client.target import is_local
from grpc_runtime.listen import Address, AddressError

_SECONDS: Final = 1.0
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")


async def nobody_listens(target: str) -> bool:
    """Tells whether a connection to a target is refused; False also where that is not known.

    Args:
        target: An address as for a channel. One that gRPC alone can read is not tried, nor one
            that may be reached by a proxy.
    """
    if not is_local(target) and any(os.environ.get(name) for name in _PROXIES):
        return False
    try:
        address = Address.parse(target)
        if address.port is None:
            return False
        async with asyncio.timeout(_SECONDS):
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, address.host, address.port
            )
    except ConnectionRefusedError:
        return True
    except (AddressError, OSError, TimeoutError):
        return False  # what it means is for gRPC to find out, and to say
    transport.abort()
    return False
