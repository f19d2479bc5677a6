"""What can go wrong with a database.

::

    DatabaseOpenError           can not be opened
    DatabaseAwayError           can not be opened now; perhaps soon
    DatabaseUnavailableError    open, but can not be read or written now
    DatabaseClosedError         closed by its owner
    UnstorableTextError         a text has a character that the database has no place for
    TransactionLostError        work went on after the database had undone its transaction
"""

from __future__ import annotations


class DatabaseOpenError(Exception):
    """The database can not be opened. The message says why and what to do, and no secrets."""


class DatabaseAwayError(DatabaseOpenError):
    """The database's server does not answer, or not yet: to be tried again."""


class DatabaseUnavailableError(Exception):
    """The database can not be read or written now. The message says why and what to do.

    Attributes:
        retry_delay: Seconds after which another attempt makes sense; None if only a
            person can help, or if it is unknown whether the last one took effect.
    """

    def __init__(self, message: str, retry_delay: float | None) -> None:
        super().__init__(message)
        self.retry_delay = retry_delay


class DatabaseClosedError(Exception):
    """The database was closed."""

    def __init__(self) -> None:
        super().__init__("the database is closed; open it again")


class UnstorableTextError(Exception):
    """A text that was to be stored or looked for has a NUL character, which PostgreSQL refuses."""

    def __init__(self) -> None:
        super().__init__("a text has a NUL character (U+0000), which can not be stored")


class TransactionLostError(RuntimeError):
    """The database has undone a transaction, and the work in it went on as if it had not."""
