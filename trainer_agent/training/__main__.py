"""``python -m trainer_agent.training``: what ``midcourse train`` runs."""

from __future__ import annotations

import sys

from trainer_agent.training.app import main

if __name__ == "__main__":
    sys.exit(main())
