"""Names of the environment variables that say what a client connects with. Loads no grpc."""

from __future__ import annotations

from typing import Final

TOKEN_VARIABLE: Final = "MIDCOURSE_TOKEN"  # noqa: S105 - a name
"""Environment variable with a token."""
TOKEN_FILE_VARIABLE: Final = "MIDCOURSE_TOKEN_FILE"  # noqa: S105 - a name
"""Environment variable with the path of a file that has a token in it."""
CA_VARIABLE: Final = "MIDCOURSE_TLS_CA"
"""Environment variable with the path of a PEM file of authorities, or ``system``; asks for TLS."""
CERT_VARIABLE: Final = "MIDCOURSE_CLIENT_CERT"
"""Environment variable with the path of a PEM file with the client's own certificate."""
KEY_VARIABLE: Final = "MIDCOURSE_CLIENT_KEY"
"""Environment variable with the path of a PEM file with that certificate's key."""

SYSTEM_CA: Final = "system"
"""In place of a file of authorities: those that gRPC brings along, for servers in public."""
