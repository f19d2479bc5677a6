"""Actions, for :meth:`control_plane.client.Client.update_parameters`.

>>> from control_plane import actions, changes
>>> calm = changes.multiply("learning_rate", 0.1)
>>> plane.update_parameters("my-run", [calm], action=actions.roll_back())  # doctest: +SKIP
"""

from __future__ import annotations

from midcourse.control.v1 import update_pb2


def pause() -> update_pb2.Action:
    """Holds training at a step boundary until it is resumed."""
    return update_pb2.Action(pause=update_pb2.PauseAction())


def resume() -> update_pb2.Action:
    """Goes on after a pause; does nothing where training is not paused."""
    return update_pb2.Action(resume=update_pb2.ResumeAction())


def save_checkpoint() -> update_pb2.Action:
    """Saves a checkpoint at the boundary."""
    return update_pb2.Action(save_checkpoint=update_pb2.SaveCheckpointAction())


def evaluate() -> update_pb2.Action:
    """Evaluates at the boundary."""
    return update_pb2.Action(evaluate=update_pb2.EvaluateAction())


def stop() -> update_pb2.Action:
    """Saves and ends training in good order."""
    return update_pb2.Action(stop=update_pb2.StopAction())


def roll_back(checkpoint: str = "") -> update_pb2.Action:
    """Goes back to a checkpoint, by its path on the training host; empty: the newest."""
    return update_pb2.Action(roll_back=update_pb2.RollBackAction(checkpoint=checkpoint))
