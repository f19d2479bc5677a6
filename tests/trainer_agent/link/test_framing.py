"""The length-prefixed stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.link.framing import HEADER_BYTES, FrameDecoder, FramingError, frame


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=20),
    cuts=st.lists(st.integers(min_value=1, max_value=97), min_size=1, max_size=50),
)
def test_messages_come_out_whole_and_in_order_however_the_stream_is_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    decoder = FrameDecoder()
    received: list[bytes] = []
    position, turn = 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        received += decoder.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert received == payloads


@given(payload=st.binary(min_size=1, max_size=200), data=st.data())
def test_a_truncated_message_is_kept_and_not_given_out(payload: bytes, data: st.DataObject) -> None:
    whole = frame(payload)
    cut = data.draw(st.integers(min_value=0, max_value=len(whole) - 1))
    decoder = FrameDecoder()
    assert decoder.feed(whole[:cut]) == []
    assert decoder.feed(whole[cut:]) == [payload]


@given(excess=st.integers(min_value=1, max_value=2**32 - 1 - 64))
def test_an_announced_message_above_the_limit_is_refused_before_it_arrives(excess: int) -> None:
    decoder = FrameDecoder(max_bytes=64)
    with pytest.raises(FramingError, match=f"{64 + excess} bytes: at most 64 bytes"):
        decoder.feed((64 + excess).to_bytes(HEADER_BYTES, "big"))


def test_a_message_at_the_limit_passes_and_one_above_is_not_sent() -> None:
    decoder = FrameDecoder(max_bytes=64)
    assert decoder.feed(frame(b"x" * 64, max_bytes=64)) == [b"x" * 64]
    with pytest.raises(FramingError, match="65 bytes is too large: at most 64"):
        frame(b"x" * 65, max_bytes=64)
