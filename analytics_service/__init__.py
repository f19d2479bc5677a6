"""A chat about training runs: with the model that the caller picks, and its cost in sight."""
