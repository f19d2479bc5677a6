from __future__ import annotations

import json
import logging
import sys
from collections import OrderedDict
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.logging import REDACTED, configure_logging, get_logger, is_secret_key, redact

SECRET = "s3cr3t-v4lue"


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        get_logger("a.b").info("two\nlines", number=1, nan=float("nan"), odd={1: object})
    (event,) = lines(capsys)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "two\nlines",
        "level": "info",
        "logger": "a.b",
        "number": 1,
        "nan": "nan",
        "odd": {"1": "<class 'object'>"},
        "request_id": "r-1",
    }


def test_the_standard_library_logs_alike(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="json")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        logging.getLogger("alembic.runtime").warning("%s to %d", "up", 3)
    (event,) = lines(capsys)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "up to 3",
        "level": "warning",
        "logger": "alembic.runtime",
        "request_id": "r-1",
    }


@pytest.mark.parametrize("source", ["structlog", "stdlib"])
def test_tracebacks_are_part_of_the_event(capsys: pytest.CaptureFixture[str], source: str) -> None:
    configure_logging(log_format="json")
    logger: Any = get_logger("a") if source == "structlog" else logging.getLogger("a")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("it failed")
    (event,) = lines(capsys)
    assert event["level"] == "error"
    assert "Traceback" in event["exception"]
    assert "KeyError: 'gone'" in event["exception"]


@pytest.mark.parametrize("source", ["structlog", "stdlib"])
def test_levels(capsys: pytest.CaptureFixture[str], source: str) -> None:
    logger: Any = get_logger("a") if source == "structlog" else logging.getLogger("a")
    configure_logging(level="warning", log_format="json")
    logger.info("no")
    logger.warning("yes")
    configure_logging(level="debug", log_format="json")
    logger.debug("now")
    assert [event["event"] for event in lines(capsys)] == ["yes", "now"]


def test_auto_is_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("a").info("hello")
    assert lines(capsys)[0]["event"] == "hello"


def test_auto_is_for_people_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging()
    get_logger("a").info("hello", number=1)
    err = capsys.readouterr().err
    assert "hello" in err
    assert not err.startswith("{")


def test_console_lines_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="console")
    get_logger("a").info("hello\nforged", peer="x\n2026 [error] forged\x1b[2J")
    logging.getLogger("b").info("hello\x1b[2J\nforged")
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert "\x1b[2J" not in err
    assert "\\nforged" in err


def test_console_shows_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format="console")
    try:
        raise KeyError(SECRET)
    except KeyError:
        get_logger("a").exception("it failed", token=SECRET * 2)
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert SECRET * 2 not in err


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("source", ["structlog", "stdlib"])
def test_secrets_are_not_written(
    capsys: pytest.CaptureFixture[str], log_format: Any, source: str
) -> None:
    configure_logging(log_format=log_format)
    if source == "structlog":
        get_logger("a").info(
            f"connecting to postgresql://ada:{SECRET}@db/x",
            token=SECRET,
            metadata=(("authorization", f"Bearer {SECRET}"), ("x-api-key", SECRET), ("a", "b")),
            nested={"list": [OrderedDict(password=SECRET)], "Auth-Token": SECRET},
            header=f"authorization is bearer {SECRET}",
            error=ValueError(f"bad url https://:{SECRET}@host"),
        )
    else:
        logging.getLogger("a").info("using %s", f"https://ada:{SECRET}@host with Basic {SECRET}")
    try:
        raise ValueError(f"cannot connect to postgresql://ada:{SECRET}@db/x")
    except ValueError:
        get_logger("a").exception("failed")
    err = capsys.readouterr().err
    assert SECRET not in err
    assert REDACTED in err
    assert "@db/x" in err


@pytest.mark.parametrize(
    "key",
    ["authorization", "Authorization", "token", "auth_token", "x-api-key", "apiKey", "API_KEY",
     "password", "db_password", "client_secret", "secret", "Set-Cookie", "private_key"],
)  # fmt: skip
def test_secret_keys(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    ["tokens", "prompt_tokens", "page_token", "next_page_token", "tokenizer", "key", "author",
     "event", "request_id", "secretary"],
)  # fmt: skip
def test_keys_that_only_look_like_it(key: str) -> None:
    assert not is_secret_key(key)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), json_values)
def test_any_event_can_be_written(event: dict[str, Any], payload: Any) -> None:
    written = redact(None, "info", {**event, "password": payload, "deep": [{"token": payload}]})
    assert written["password"] == REDACTED
    assert written["deep"] == [{"token": REDACTED}]
    json.dumps({k: v for k, v in written.items() if not k.startswith("_")}, allow_nan=False)


def test_events_without_end_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "too deep" in str(redact(None, "info", {"a": endless}))


def test_a_broken_stderr_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, _text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

    configure_logging(log_format="json")
    monkeypatch.setattr(sys, "stderr", Broken())
    get_logger("a").info("hello")
