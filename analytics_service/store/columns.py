"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import PydanticSerializationError
from sqlalchemy import BigInteger, String, Text
from sqlalchemy.types import TypeDecorator

from grpc_runtime.sql import KEY

if TYPE_CHECKING:
    from sqlalchemy import Dialect

_PLACES = 12
_MAX_UNITS = 2**63 - 1
_EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)


class Money(TypeDecorator[Decimal]):
    """US dollars as a whole number of 1e-12 dollars, so that SQL adds them up exactly.

    A price per million tokens with up to six decimals makes a cost that is exact. What is
    finer is rounded, half to even. Amounts reach up to some 9.2 million dollars, sums in
    SQLite too.
    """

    impl = BigInteger
    cache_ok = True

    MAX = Decimal(_MAX_UNITS // 10**_PLACES)
    """Most that can be kept, in whole dollars."""

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """To the database.

        Raises:
            ValueError: If the amount is not finite, or too large.
        """
        return None if value is None else self._units(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """From the database; a sum comes from PostgreSQL as a Decimal."""
        return None if value is None else self._amount(value)

    @classmethod
    def rounded(cls, value: Decimal) -> Decimal:
        """The amount as it is kept.

        Raises:
            ValueError: If it is not finite, or too large.
        """
        return cls._amount(cls._units(value))

    @classmethod
    def _units(cls, value: Decimal) -> int:
        if not value.is_finite() or abs(value) > cls.MAX:
            raise ValueError(f"got {value} US dollars, allowed: up to {cls.MAX}")
        return int(value.scaleb(_PLACES, _EXACT).to_integral_value(context=_EXACT))

    @staticmethod
    def _amount(units: int | Decimal) -> Decimal:
        amount = Decimal(units).scaleb(-_PLACES, _EXACT).normalize(_EXACT)
        # Without an exponent, which would be shown.
        return amount.quantize(Decimal(1), context=_EXACT) if amount == int(amount) else amount


class OrAll(TypeDecorator[str]):
    """A name, or None for all together. Never NULL, and no name is taken for all."""

    impl = String
    cache_ok = True

    ALL = "*"

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """The type in one dialect."""
        return dialect.type_descriptor(KEY.dialect_impl(dialect))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str:
        """To the database."""
        return self.ALL if value is None else f"={value}"

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """From the database."""
        return None if value is None or value == self.ALL else value[1:]


class Words(TypeDecorator[str]):
    """Text by people and programs. What no database can keep becomes a replacement character."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """To the database."""
        if value is None:
            return None
        # PostgreSQL keeps no NUL; halves of surrogate pairs have no encoding.
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """From the database."""
        return value


class Json(TypeDecorator[Any]):
    """A value as JSON text; None is NULL.

    Without loss, but for halves of surrogate pairs, which are replaced. Bytes are base64;
    NaN and infinities the bare words that Python's own `json` writes.
    """

    impl = Text
    cache_ok = True

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of
        # A dataclass can not be given a configuration from outside, but takes over a union's.
        self._adapter: TypeAdapter[Any] = TypeAdapter(
            of | None,
            config=ConfigDict(
                ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
            ),
        )

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """To the database."""
        if value is None:
            return None
        try:
            return self._adapter.dump_json(value).decode()
        except PydanticSerializationError:
            # Halves of surrogate pairs, as a provider may send them, have no encoding.
            plain = self._adapter.dump_python(value, mode="json")
            return json.dumps(plain, ensure_ascii=False).encode(errors="replace").decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """From the database."""
        return None if value is None else self._adapter.validate_json(value)
