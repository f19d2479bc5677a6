"""What may go along with a call."""

from __future__ import annotations

import pytest

from grpc_runtime.client.metadata import checked_metadata


def test_what_grpc_takes_is_kept() -> None:
    pairs = (("authorization", "Bearer abc"), ("trace-bin", b"\x00\xff"), ("a.b_c-9", ""))
    assert checked_metadata(list(pairs)) == pairs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Authorization", "s3cret"),
        ("", "s3cret"),
        ("with space", "s3cret"),
        ("grpc-timeout", "s3cret"),
        ("authorization", "s3cret\n"),
        ("authorization", "s3crét"),
        ("authorization", b"s3cret"),
        ("token-bin", "s3cret"),
        ("authorization", 5),
    ],
)
def test_a_refusal_names_the_key_and_never_the_value(key: str, value: str | bytes) -> None:
    with pytest.raises(ValueError, match="metadata") as caught:
        checked_metadata([(key, value)])
    assert repr(key) in str(caught.value)
    assert "s3cr" not in str(caught.value)
