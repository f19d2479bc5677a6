"""The record of who changed what, from where, why, and of who was refused.

=============  ==================================================================================
``records``    what is recorded of a call, and how it is cut to size. Pure.
``log``        writes down calls that were refused, and lists what was written.
``convert``    the answer of a method that lists them.
``recording``  finds out what to record of the call that is being served.
=============  ==================================================================================

A service records a change in the transaction that makes it; ``grpc_runtime.sql.audit`` has a table.
"""
