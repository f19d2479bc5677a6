"""Where the control plane is."""

from __future__ import annotations

from typing import Final

from grpc_runtime.client.target import Target

ADDRESS_VARIABLE: Final = "MIDCOURSE_CONTROL_PLANE"
"""Environment variable with the address of the control plane."""

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"

CONTROL_PLANE: Final = Target("control plane", ADDRESS_VARIABLE, DEFAULT_ADDRESS)

CALL_SECONDS: Final = 10.0
"""What a call may take unless told otherwise, all its tries together."""
