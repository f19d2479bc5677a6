"""The table of schedulers in the documentation is what the cases give."""

from __future__ import annotations

import pytest

from tools.parameter_table import DOCUMENT, document, table


def test_the_table_is_what_the_cases_give() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(text, table()), "run python tools/parameter_table.py"


def test_a_document_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="where the table goes"):
        document("nothing", "table")
