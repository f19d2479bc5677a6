"""How a training process and the launcher end; ``steering.roll_back`` has one more way."""

from __future__ import annotations

from typing import Final

USAGE: Final = 2
"""The command line or the configuration is wrong."""
CONFIGURATION: Final = 78
"""The configuration is wrong, and the training process has said why (``EX_CONFIG``)."""
