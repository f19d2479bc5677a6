"""All fuzzers."""

from __future__ import annotations

from tests.fuzz.exploring import Fuzzer
from tests.fuzz.link_agent import AgentSideFuzzer
from tests.fuzz.link_trainer import TrainerSideFuzzer
from tests.fuzz.public import CallFuzzer, SocketFuzzer
from tests.fuzz.session_agent import ServerFuzzer
from tests.fuzz.session_server import AgentFuzzer

FUZZERS: tuple[type[Fuzzer], ...] = (
    AgentFuzzer,
    ServerFuzzer,
    AgentSideFuzzer,
    TrainerSideFuzzer,
    CallFuzzer,
    SocketFuzzer,
)
