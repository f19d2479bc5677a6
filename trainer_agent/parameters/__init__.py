"""What can be changed live in a training process: one module per family of parameters.

Importing this package imports no torch; the modules of the families do.
"""

from trainer_agent.parameters.base import (
    EVERY_GROUP,
    Applied,
    Boundary,
    BoundaryKind,
    GuardRails,
    Kind,
    LiveParameter,
    ParameterSpec,
    Reading,
    Refused,
)
from trainer_agent.parameters.changes import (
    Change,
    Coupling,
    Multiply,
    Operation,
    Ramp,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
    Value,
    operation_of,
)
from trainer_agent.parameters.transaction import (
    ChangeFailed,
    UndoError,
    apply_all,
    check_each,
    coupled_to,
)

__all__ = [
    "EVERY_GROUP",
    "Applied",
    "Boundary",
    "BoundaryKind",
    "Change",
    "ChangeFailed",
    "Coupling",
    "GuardRails",
    "Kind",
    "LiveParameter",
    "Multiply",
    "Operation",
    "ParameterSpec",
    "Ramp",
    "Reading",
    "Refused",
    "Release",
    "Schedule",
    "Set",
    "SetMode",
    "Shape",
    "UndoError",
    "Value",
    "apply_all",
    "check_each",
    "coupled_to",
    "operation_of",
]
