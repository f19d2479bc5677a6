"""Names of roles. Imports nothing, for command lines that are to be quick."""

from __future__ import annotations

from typing import Literal

RoleName = Literal["viewer", "operator", "agent", "admin"]
"""What a caller may do: read; read and change; hold the sessions of its jobs; everything."""
