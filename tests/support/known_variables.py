"""The environment variables that something here reads."""

from __future__ import annotations

import functools
import re

from analytics_service.config import AnalyticsSettings
from control_plane.config import ServerSettings
from tests.support.processes import ROOT

NAME = re.compile(r"\bMIDCOURSE_[A-Z0-9_]*[A-Z0-9]\b")
_PACKAGES = ("analytics_service", "control_plane", "grpc_runtime", "trainer_agent")


@functools.cache
def known_variables() -> frozenset[str]:
    """Names of the settings' variables, and those that the code has in quotes."""
    names = {
        model.env_var(field)
        for model in (ServerSettings, AnalyticsSettings)
        for field in (*model.model_fields, "config")
    }
    for package in _PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            names |= set(re.findall(r'"(MIDCOURSE_[A-Z0-9_]+)"', path.read_text()))
    return frozenset(names)
