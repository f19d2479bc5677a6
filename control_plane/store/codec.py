"""Domain values as JSON text and back, without loss.

NaN and infinities are written as the bare words that Python's own `json` writes. What
is decoded equals what was encoded, except that UTC may be another object of the same
meaning.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter

MAX_REMEMBERED = 4_096
"""Values of one type that are kept beside their text."""


class Codec:
    """Encodes and decodes values of one type."""

    def __init__(self, of: Any) -> None:
        # A dataclass can not be given a configuration from outside, but takes over a union's.
        config = ConfigDict(ser_json_inf_nan="constants")
        self._adapter: TypeAdapter[Any] = TypeAdapter(of | None, config=config)
        # Not by the adapter, whose options take longer than most values.
        self._to_json = self._adapter.serializer.to_json

    def encode(self, value: Any) -> str:
        """The value as JSON text."""
        return self._to_json(value).decode()

    def decode(self, text: str) -> Any:
        """The value that the text was made of.

        Raises:
            pydantic.ValidationError: If the text is not of this type.
        """
        return self._adapter.validate_json(text)


class RememberingCodec(Codec):
    """A codec for values that are read and written back again and again, mostly unchanged.

    Remembers the text of a value and the value of a text, so the values must never be
    changed. To be used from any thread.
    """

    def __init__(self, of: Any) -> None:
        super().__init__(of)
        self._lock = threading.Lock()
        self._values: OrderedDict[str | None, Any] = OrderedDict()
        self.known: Callable[[str | None], Any] = self._values.get
        """The value of a text where it is remembered, else None."""
        # By identity, which lasts as long as the value is held above.
        self._texts: dict[int, str] = {}

    def encode(self, value: Any) -> str:
        """The value as JSON text."""
        text = self._texts.get(id(value))
        if text is None or self._values.get(text) is not value:
            text = super().encode(value)
            self._remember(text, value)
        return text

    def decode(self, text: str) -> Any:
        """The value that the text was made of."""
        value = self._values.get(text)
        if value is None:
            value = super().decode(text)
            self._remember(text, value)
        return value

    def _remember(self, text: str, value: Any) -> None:
        with self._lock:
            if text not in self._values:
                self._values[text] = value
                self._texts[id(value)] = text
            if len(self._values) > MAX_REMEMBERED:
                _, forgotten = self._values.popitem(last=False)
                self._texts.pop(id(forgotten), None)


codec = cache(Codec)
"""The codec of a type. Building one is costly, so each is built once."""

remembering = cache(RememberingCodec)
"""The remembering codec of a type, built once too."""
