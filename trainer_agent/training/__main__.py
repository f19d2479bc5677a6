"""``python -m trainer_agent.training``: what ``midcourse train`` runs."""

from __future__ import annotations

import sys

from trainer_agent.training.app import main
from trainer_agent.training.outputs import outlive_readers

if __name__ == "__main__":
    outlive_readers()
    sys.exit(main())
