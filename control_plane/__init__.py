"""The control plane: accepts updates for running training jobs and brings them there."""
