"""The history of the tables: each file in `versions` is one revision.

What it did is not changed any more. A new one gets the next number, and names the one
before it as `down_revision`.
"""
