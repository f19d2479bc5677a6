"""Server reflection, so that tools such as grpcurl work without our protos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

_METHOD = "ServerReflectionInfo"
# The library knows v1alpha only. v1 has the same messages under another name, and newer tools
# ask for it first. It is not listed among the services: its descriptor is not in the pool.
_SERVICES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")


def reflection_handlers(service_names: Iterable[str]) -> list[grpc.GenericRpcHandler]:
    """Returns the handlers of both reflection services.

    Args:
        service_names: Full names of the services to describe; their protos have to be imported.
    """
    servicer = reflection.aio.ReflectionServicer([*service_names, reflection.SERVICE_NAME])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {_METHOD: handler}) for name in _SERVICES]
