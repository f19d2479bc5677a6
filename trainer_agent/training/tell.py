"""What both processes say on stderr in the same words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer_agent.training.document import Problem


def tell(message: str) -> None:
    """Print a message."""
    sys.stderr.write(f"midcourse: {message}\n")
    sys.stderr.flush()


def in_a_line(error: BaseException) -> str:
    """Return what an error says, in one line that is not too long."""
    return " ".join(str(error).split())[:500]


def tell_problems(source: str, problems: Sequence[Problem]) -> None:
    """Print what is wrong with a configuration, a line each."""
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"{source} cannot be trained with: {count}", *(f"  {each}" for each in problems)]
    tell("\n".join(lines))
