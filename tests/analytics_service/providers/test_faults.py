from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers.base import Fault
from analytics_service.providers.faults import Endpoint, retry_after

NOW = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)
KEY = "a-key-of-no-known-form"
ENDPOINT = Endpoint("OpenAI", "OPENAI_API_KEY", KEY)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 08:00:30 -0000"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 09:00:30 +0100"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 07:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "odd", "retry-after": "3"}, 3.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        # vLLM
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 4096 tokens.",
                    "type": "BadRequestError",
                    "code": 400,
                }
            },
            Fault.CONTEXT_TOO_LONG,
        ),
        (
            404,
            {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}},
            Fault.MODEL_NOT_FOUND,
        ),
        # llama.cpp
        (
            400,
            {"error": {"code": 400, "type": "exceed_context_size_error", "message": "too much"}},
            Fault.CONTEXT_TOO_LONG,
        ),
        # xAI
        (
            400,
            {
                "code": "Client specified an invalid argument",
                "error": "This model's maximum prompt length is 131072 but the request has 200000",
            },
            Fault.CONTEXT_TOO_LONG,
        ),
        (400, {"code": "x", "error": "Incorrect API key provided: xai***key"}, Fault.REFUSED),
        # Ollama
        (404, {"error": "model 'x' not found"}, Fault.MODEL_NOT_FOUND),
        # Anthropic
        (
            400,
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "input length and `max_tokens` exceed context limit: 9 + 8 > 7",
                },
            },
            Fault.CONTEXT_TOO_LONG,
        ),
        (402, {"type": "error", "error": {"type": "billing_error"}}, Fault.REFUSED),
        # OpenAI
        (
            403,
            {"error": {"type": "invalid_request_error", "code": "unsupported_country_region"}},
            Fault.UNAUTHENTICATED,
        ),
        (
            400,
            {"error": {"type": "invalid_request_error", "code": "model_not_found"}},
            Fault.MODEL_NOT_FOUND,
        ),
        # anybody
        (408, None, Fault.TIMEOUT),
        (418, "I am a teapot", Fault.REFUSED),
        (429, "", Fault.RATE_LIMITED),
        (500, {"error": {"message": "model crashed: context length"}}, Fault.UNAVAILABLE),
        (599, [], Fault.UNAVAILABLE),
        (None, {"type": "timeout_error", "message": "too slow"}, Fault.TIMEOUT),
        (None, {"code": 502, "message": "Bad gateway"}, Fault.UNAVAILABLE),
        (None, {"message": "hm"}, Fault.STREAM_BROKEN),
        (None, {"type": "rate_limit_error", "message": "too many tokens"}, Fault.RATE_LIMITED),
        (None, {"type": "invalid_request_error", "message": "hm"}, Fault.REFUSED),
        (429, {"message": "too many tokens per minute"}, Fault.RATE_LIMITED),
    ],
)
def test_faults(status: int | None, body: object, fault: Fault) -> None:
    error = ENDPOINT.refusal(body, words="Failed", status=status)
    assert error.fault is fault
    # A status that is only told of in a stream says nothing of what was read and written before.
    assert error.is_unbilled is (status is not None)


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is wrong",
        f"Authorization: Bearer {KEY}",
        f"[{KEY}]",
    ],
)
def test_the_key_is_kept_out(text: str) -> None:
    assert KEY not in ENDPOINT.refusal(text, status=401).message
    assert KEY not in repr(ENDPOINT)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Incorrect API key provided: sk-proj-abc***wxyz. You can", "sk-proj"),
        ("Incorrect API key provided: my-othe****3456.", "my-othe"),
        ("key 'xai-Abcdefghijk1'", "Abcdef"),
        ("Authorization: Bearer abcdef123", "abcdef123"),
    ],
)
def test_other_keys_are_kept_out_too(text: str, secret: str) -> None:
    cleaned = ENDPOINT.clean(text)
    assert secret not in cleaned
    assert "[redacted]" in cleaned


def test_other_words_stay() -> None:
    said = "Unknown name 'key_of_something' in *input*; see sk_learn_docs"
    assert ENDPOINT.clean(said) == said


def test_words_are_one_bounded_line_without_control_characters() -> None:
    cleaned = ENDPOINT.clean("a\r\n  b\x1b[31m\tc" + "x" * 1_000_000)
    assert cleaned.startswith("a b\N{REPLACEMENT CHARACTER}[31m c")
    assert len(cleaned) == 500


@given(st.text())
def test_whatever_is_said_comes_out_printable(text: str) -> None:
    assert ENDPOINT.clean(text).isprintable()
