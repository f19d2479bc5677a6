"""What importing and running costs a training process, each looked at in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer_agent


def child(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_grpc() -> None:
    loaded = child(
        "import sys, trainer_agent; dir(trainer_agent); "
        "print(*sorted({'torch', 'transformers', 'grpc', 'google.protobuf'} & set(sys.modules)))"
    )
    assert loaded == ""


RUN = """
import sys, threading
from pathlib import Path
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, delivery, set_change
from trainer_agent import attach
import trainer_agent.link

threads = threading.active_count()
script = LinkScript({3: [delivery(1, set_change(0.01))]})
trainer = plain_trainer(Path(sys.argv[1]))
attach(trainer, "job", link_factory=script)
trainer.train()
assert script.link.outcomes[0].HasField("applied")
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "grpc"))
assert threading.active_count() == threads, threading.enumerate()
"""


def test_running_the_callback_loads_no_grpc_and_starts_no_thread(tmp_path: Path) -> None:
    assert child(RUN, str(tmp_path)) == ""


def test_what_the_package_exports() -> None:
    from trainer_agent.attachment import attach
    from trainer_agent.callback import RuntimeParameterUpdateCallback
    from trainer_agent.parameters.user import Parameter

    assert trainer_agent.__all__ == [
        "GuardRails",
        "Parameter",
        "Protection",
        "RuntimeParameterUpdateCallback",
        "attach",
    ]
    assert trainer_agent.attach is attach
    assert trainer_agent.Parameter is Parameter
    assert trainer_agent.RuntimeParameterUpdateCallback is RuntimeParameterUpdateCallback
    assert set(trainer_agent.__all__) <= set(dir(trainer_agent))
    with pytest.raises(AttributeError, match="no attribute 'detach'"):
        _ = trainer_agent.detach
