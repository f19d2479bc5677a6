"""Steering a training run: updates from their arrival to their outcome, whatever runs the loop.

Knows no training framework and loads no torch by itself.
"""
