"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Numeric, String, Text
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


KEY = String().with_variant(String(collation="C"), "postgresql")
"""Text that is compared and sorted by code point, as Python and SQLite do; so pages and keys
come in the same order in every database, whatever its language is."""


class UtcTime(TypeDecorator[datetime]):
    """A time with UTC as its zone, as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    # Not by `process_bind_param` and the like, each of which is two calls more for every value.

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], int | None]:
        """To the database."""
        return lambda time: None if time is None else (time - _EPOCH) // _MICROSECOND

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[int | None], datetime | None]:
        """From the database."""
        return lambda count: None if count is None else _EPOCH + timedelta(0, 0, count)


class Name(TypeDecorator[StrEnum]):
    """A member of an enumeration, by its value."""

    impl = String
    cache_ok = True

    def __init__(self, members: type[StrEnum]) -> None:
        super().__init__()
        self.members = members

    def bind_processor(self, dialect: Dialect) -> Callable[[StrEnum | None], str | None]:
        """To the database."""
        return lambda member: None if member is None else member.value

    def result_processor(
        self, dialect: Dialect, coltype: object
    ) -> Callable[[str | None], StrEnum | None]:
        """From the database."""
        known = {member.value: member for member in self.members}
        return lambda name: None if name is None else known.get(name) or self.members(name)


class DecimalText(TypeDecorator[Decimal]):
    """A finite decimal number, exact: NUMERIC in PostgreSQL, text in SQLite.

    SQLite has no exact numbers. It compares such a column as text and adds it up as
    floating point, so do neither in SQL: read the rows and add them up as Decimals.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type in one dialect."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(asdecimal=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        """To the database.

        Raises:
            ValueError: If the number is not finite.
        """
        if value is None:
            return None
        if not value.is_finite():
            raise ValueError(f"got {value}, allowed: a finite number")
        return value if dialect.name == "postgresql" else f"{value:f}"

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """From the database."""
        return None if value is None else Decimal(value)
