from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers.surrogates import SurrogateJoiner


def halves(text: str) -> list[str]:
    """The text's UTF-16 units, as a server would send them that cuts between them."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [raw[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(raw), 2)]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_text_cut_anywhere_comes_out_as_it_was(text: str, data: st.DataObject) -> None:
    units = halves(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(units)), max_size=5)))
    joiner = SurrogateJoiner()
    told = [
        joiner.feed("".join(units[a:b]))
        for a, b in zip([0, *cuts], [*cuts, len(units)], strict=True)
    ]
    assert "".join([*told, joiner.rest()]) == text
    for part in told:
        part.encode()


@given(st.lists(st.text(st.characters(categories=["Cs", "Lu"]))))
def test_whatever_comes_can_be_encoded(deltas: list[str]) -> None:
    joiner = SurrogateJoiner()
    for part in [*map(joiner.feed, deltas), joiner.rest()]:
        part.encode()


def test_half_a_pair_is_replaced() -> None:
    joiner = SurrogateJoiner()
    assert joiner.feed("a\ude00") == "a\N{REPLACEMENT CHARACTER}"
    assert joiner.feed("b\ud83d") == "b"
    assert joiner.rest() == "\N{REPLACEMENT CHARACTER}"
    assert joiner.rest() == ""
