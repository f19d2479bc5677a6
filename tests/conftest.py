"""What holds for every test and for every process that a test starts."""

from __future__ import annotations

import os

# No test needs a model hub, and looking for one that is not there takes half a minute. To be said
# before the library that reads it is imported, which is when the first test of it is collected.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests run side by side, one process each: threads of torch's own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
