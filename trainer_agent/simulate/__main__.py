"""``python -m trainer_agent.simulate``: light jobs; also ``midcourse simulate``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs light jobs and returns the exit status."""
    from trainer_agent.simulate.options import parse_options

    options = parse_options(arguments)
    # After the arguments are known to be right: this loads grpc.
    from trainer_agent.simulate.main import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
