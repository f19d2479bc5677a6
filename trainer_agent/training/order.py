"""What the launcher tells a training process: a file, as arguments do not survive torchrun well."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from trainer_agent.training.settings import Settings, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A run that is to be trained."""

    source: str
    """Name of the configuration file."""
    text: str
    """Its text, as it was when the run began: a restart must not find another one."""
    method: str | None = None
    """Method that the command line names."""
    assignments: list[str] = field(default_factory=list)
    """What ``--set`` lays over the file."""
    job: str | None = None
    """What ``--job`` gives."""
    control_plane: str | None = None
    """What ``--control-plane`` gives."""
    labels: dict[str, str] = field(default_factory=dict)
    """What ``--label`` gives."""
    resume: str = "never"
    """``auto``, ``never`` or the path of a checkpoint."""
    replay: str | None = None
    """What ``--replay`` gives."""
    nproc: int = 1
    """Training processes, one a rank."""
    progress: str | None = None
    """Pipe to report progress through; None: nobody listens."""
    stop_note: str | None = None
    """File in which the first of several ranks writes down where to stop."""

    def settings(self) -> Settings:
        """Return what the file and the command line say.

        Raises:
            ConfigurationError: They are not right.
        """
        return settings(self.text, self.source, method=self.method, assignments=self.assignments)

    def save(self, path: Path) -> None:
        """Write the order into a file."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Order:
        """Return the order that a file holds."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
