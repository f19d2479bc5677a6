"""How a trainer's data becomes optimizer steps: accumulation and batch sizes.

transformers plans an epoch before it begins: how many micro-batches make an update, how many
updates the epoch has, when the run ends. Changing a value in its arguments afterwards would step
the optimizer on part of a batch. So when a trainer is attached, before it trains, the methods that
plan are wrapped on this one object (``loop``), by rules that are pure functions (``chunking``).

Until something is changed the wrapped methods do what they always do.
"""

from trainer_agent.parameters.data.family import find
from trainer_agent.parameters.data.loop import prepare

__all__ = ["find", "prepare"]
