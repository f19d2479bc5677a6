"""Which values a parameter takes: of which type, and within which bounds. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trainer_agent.parameters.base import Kind, Refused

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Value

_NUMBERS: Final = frozenset({Kind.FLOAT, Kind.INT})
_KINDS: Final = {
    Kind.FLOAT: "a number",
    Kind.INT: "a whole number",
    Kind.BOOL: "true or false",
    Kind.STRING: "a text",
    Kind.ENUM: "one of its choices",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Type and bounds of one parameter, as ``ParameterSpec`` declares them."""

    name: str
    kind: Kind
    minimum: float | None = None
    minimum_exclusive: bool = False
    maximum: float | None = None
    maximum_exclusive: bool = False
    choices: tuple[str, ...] = ()

    def typed(self, value: Value) -> Value:
        """Return a value as one of the parameter's type.

        Raises:
            Refused: It is of another one.
        """
        match self.kind, value:
            case Kind.FLOAT, int() | float() if not isinstance(value, bool):
                with contextlib.suppress(OverflowError):
                    return float(value)
            case Kind.INT, int() | float() if not isinstance(value, bool) and value % 1 == 0:
                return int(value)
            case Kind.BOOL, bool():
                return value
            case Kind.STRING | Kind.ENUM, str():
                return value
            case _:
                pass
        raise Refused("INVALID_TYPE", f"{self.name} takes {_KINDS[self.kind]}, got {value!r}")

    def scaled(self, value: Value | None, factor: float) -> Value:
        """Return a value times a factor.

        Raises:
            Refused: There is no such value of the parameter's type.
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise Refused("INVALID_TYPE", f"a factor is a number, got {factor!r}")
        if isinstance(value, bool | str) or value is None or self.kind not in _NUMBERS:
            raise Refused(
                "UNSUPPORTED_OPERATION",
                f"{self.name} is {value!r}, which can not be multiplied; set it",
            )
        scaled = value * factor
        if self.kind is Kind.INT and math.isfinite(scaled) and scaled != int(scaled):
            raise Refused(
                "INVALID_VALUE",
                f"{self.name} is a whole number, and {value} × {factor:g} is {scaled:g}; choose "
                "another factor or set it",
            )
        return self.typed(scaled) if math.isfinite(scaled) else scaled

    def check(self, values: Iterable[Value]) -> None:
        """Say whether values are among the choices, or finite and within the bounds.

        Raises:
            Refused: One is not.
        """
        for value in values:
            if self.choices and value not in self.choices:
                allowed = ", ".join(self.choices)
            elif isinstance(value, bool | str) or (
                math.isfinite(value) and not self._below(value) and not self._above(value)
            ):
                continue
            else:
                allowed = self._range()
            raise Refused(
                "OUT_OF_BOUNDS", f"{self.name} would become {value!r}; allowed: {allowed}"
            )

    def _below(self, value: float) -> bool:
        return self.minimum is not None and (
            value < self.minimum or (self.minimum_exclusive and value == self.minimum)
        )

    def _above(self, value: float) -> bool:
        return self.maximum is not None and (
            value > self.maximum or (self.maximum_exclusive and value == self.maximum)
        )

    def _range(self) -> str:
        limits = []
        if self.minimum is not None:
            limits.append(
                f"{'above' if self.minimum_exclusive else 'at least'} {_short(self.minimum)}"
            )
        if self.maximum is not None:
            limits.append(
                f"{'below' if self.maximum_exclusive else 'at most'} {_short(self.maximum)}"
            )
        return " and ".join(limits) or "a finite number"


def _short(limit: float) -> str:
    """Return a number without needless digits, and without losing one."""
    return f"{limit:g}" if float(f"{limit:g}") == limit else repr(limit)
