"""Exit codes of the `midcourse` command: the one place that says them."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class ExitCode(enum.IntEnum):
    """What the command's exit status means, as ``midcourse --help`` shows it."""

    OK = 0, "done"
    FAILURE = 1, "another failure"
    USAGE = 2, "the command line is wrong"
    NOT_FOUND = 3, "no such job, update, session or answer"
    REFUSED = 4, "refused: invalid, in conflict, not now or not allowed"
    UNREACHABLE = 5, "the control plane, the analytics service or a provider does not answer"
    NOT_APPLIED = 6, "the update was rejected, expired or cancelled"
    TIMEOUT = 7, "the time to wait is over, the update still open"
    JOB_FAILED = 8, "the watched job failed"
    INTERRUPTED = 130, "interrupted"
    BROKEN_PIPE = 141, "whoever read the output is gone"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """Makes a member with its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member


def help_text() -> str:
    """Returns the paragraph about exit codes for the end of the help."""
    codes = [f"  {code.value:>3}  {code.meaning}" for code in ExitCode]
    return "\n".join(["\b", "Exit codes:", *codes])  # \b: the lines stay as they are


class CommandError(Exception):
    """Ends the command with a line on stderr.

    Attributes:
        message: What was wrong and what to do.
        code: Exit code.
        details: More lines, where several things are wrong at once.
    """

    def __init__(self, message: str, code: ExitCode, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = tuple(details)
