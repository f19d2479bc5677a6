"""The rules: jobs, updates, parameters, selectors, sessions.

Pure: no I/O, no clock, no protobuf, no SQL. Whatever time it is, the caller says.
"""
