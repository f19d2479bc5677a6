"""Trains with TRL from a configuration file, under supervision: ``midcourse train``.

The launcher (``app``, ``supervisor``, ``display``) is light and stays alive beside the training
process; the training process (``worker``) loads torch and TRL. What both know of a run is in
``settings``, read from the file by ``document`` and ``conform``.
"""
