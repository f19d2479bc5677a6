"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Numeric, String, Text
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
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

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To the database."""
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else _EPOCH + value * _MICROSECOND


class Name(TypeDecorator[StrEnum]):
    """A member of an enumeration, by its value."""

    impl = String
    cache_ok = True

    def __init__(self, members: type[StrEnum]) -> None:
        super().__init__()
        self.members = members

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        """From the database."""
        return None if value is None else self.members(value)


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
