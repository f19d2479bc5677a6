"""Where the analytics service is."""

from __future__ import annotations

from typing import Final

from grpc_runtime.client.target import Target

ADDRESS_VARIABLE: Final = "MIDCOURSE_ANALYTICS"
"""Environment variable with the address of the analytics service."""

DEFAULT_ADDRESS: Final = "127.0.0.1:50052"

ANALYTICS: Final = Target("analytics service", ADDRESS_VARIABLE, DEFAULT_ADDRESS)

CALL_SECONDS: Final = 10.0
"""What a call may take unless told otherwise, all its tries together."""

CHAT_SECONDS: Final = 600.0
"""What an answer may take unless told otherwise."""
