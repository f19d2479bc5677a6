"""The bounded queue of frames."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.link.outbox import Keep, Outbox
from trainer_agent.link.thinning import thinned_out


def drain(outbox: Outbox, at_most: int = 1 << 30) -> bytes:
    sent = b""
    while outbox:
        piece = outbox.first()[:at_most]
        sent += bytes(piece)
        outbox.advance(len(piece))
    return sent


@given(frames=st.lists(st.binary(min_size=1, max_size=50)), at_most=st.integers(1, 60))
def test_what_fits_comes_out_unchanged_however_little_the_socket_takes(
    frames: list[bytes], at_most: int
) -> None:
    outbox = Outbox(1 << 20)
    for each in frames:
        outbox.append(each, keep=Keep.IF_ROOM)
    assert outbox.size_bytes == sum(map(len, frames))
    assert drain(outbox, at_most) == b"".join(frames)
    assert (outbox.size_bytes, outbox.dropped) == (0, 0)


@given(
    kinds=st.lists(st.sampled_from([Keep.IF_ROOM, Keep.IF_ROOM, Keep.ALWAYS]), max_size=300),
    sent=st.integers(0, 7),
)
def test_only_droppable_frames_go_and_the_rest_stays_in_order(kinds: list[Keep], sent: int) -> None:
    outbox = Outbox(20 * 8)
    frames = [index.to_bytes(8, "big") for index in range(len(kinds))]
    for index, (each, keep) in enumerate(zip(frames, kinds, strict=True)):
        outbox.append(each, keep=keep, steps=1, sent=sent if index == 0 else 0)
    droppable = sum(keep is Keep.IF_ROOM for keep in kinds)
    assert outbox.size_bytes <= 20 * 8 + 8 * (len(kinds) - droppable) + 8
    kept = len(outbox)
    assert kept + outbox.dropped == len(kinds)
    stream = (frames[0][:sent] if frames else b"") + drain(outbox)
    got = [int.from_bytes(stream[i : i + 8], "big") for i in range(0, len(stream), 8)]
    assert got == sorted(got)
    assert {i for i, keep in enumerate(kinds) if keep is Keep.ALWAYS} <= set(got)


def test_a_long_wait_thins_the_middle_and_keeps_beginning_and_end() -> None:
    outbox = Outbox(100 * 8)
    for index in range(10_000):
        outbox.append(index.to_bytes(8, "big"), keep=Keep.IF_ROOM, steps=3)
    stream = drain(outbox)
    got = [int.from_bytes(stream[i : i + 8], "big") for i in range(0, len(stream), 8)]
    assert got[:10] == list(range(10))
    assert got[-10:] == list(range(9_990, 10_000))
    assert 50 <= len(got) <= 100
    assert outbox.dropped == 3 * (10_000 - len(got))  # steps, not messages


def test_a_new_stream_sends_a_broken_frame_again_and_leaves_out_what_the_hello_tells() -> None:
    outbox = Outbox(1000)
    outbox.append(b"step", keep=Keep.IF_ROOM, sent=2)
    outbox.append(b"outcome", keep=Keep.UNTIL_HELLO)
    outbox.append(b"fault", keep=Keep.ALWAYS)
    outbox.begin_stream()
    assert outbox.size_bytes == len(b"stepfault")
    assert drain(outbox) == b"stepfault"


@given(candidates=st.lists(st.integers(0, 10_000), unique=True, min_size=1).map(sorted))
def test_thinning_makes_progress_and_spares_the_ends(candidates: list[int]) -> None:
    going = thinned_out(candidates)
    assert going
    assert going <= set(candidates)
    margin = len(candidates) // 4
    assert not going & set(candidates[:margin])
    assert not going & set(candidates[len(candidates) - margin :])
