"""What every typed client of the project shares: errors, retries, addresses, calls.

==================  =============================================================================
``errors``          :class:`~grpc_runtime.client.errors.MidcourseError` and its children, one for
                    each gRPC status that a caller may want to tell apart.
``retry``           when a call is tried again: pure, shared by both kinds of client.
``target``          the service that a client calls: its name, where it is, channel options.
``credentials``     token, authorities and certificate that a client connects with.
``variables``         names of the environment variables that say what to connect with.
``trouble``         what is wrong where a connection fails over TLS.
``metadata``        what goes along with every call, such as credentials; never shown.
``call``            a call as a value, for a blocking and an asynchronous client alike.
``transport``       blocking calls: deadlines, retries, translated errors, pages.
``aio``             the same over ``grpc.aio``.
==================  =============================================================================

It needs grpcio, protobuf, googleapis-common-protos and grpcio-status, and nothing of a server.
"""
