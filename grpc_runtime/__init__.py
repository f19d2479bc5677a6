"""What every gRPC service of the project shares; it knows nothing of what they serve.

====================  =============================================================================
``errors``            :class:`~grpc_runtime.errors.StatusError`: an API error with reason, domain,
                      field violations and retry delay, packed into ``google.rpc.Status`` and back.
                      Free of server imports, so that clients use it too.
``options``           channel arguments that servers and clients have to agree on.
``client``            what the typed clients share: exceptions, retries, blocking and asynchronous
                      calls. Free of server imports too.
``paging``            page sizes and page tokens.
``interceptors``      one server interceptor: request id, principal, error translation, one log
                      event per call.
``auth``              who is calling: ``Principal``, ``Authenticator``, ``current_principal()``.
``listen``            addresses, and which of them a server may listen on.
``tls``               a server's certificate and key, from files.
``health``            ``grpc.health.v1`` that lets a draining server finish.
``reflection``        server reflection, ``v1`` and ``v1alpha``.
``server``            ``Service``: start, drain, stop; ``run()``.
``logging``           structured logs on stderr, secrets redacted.
``service_settings``  what every service can be set to.
``settings``          typed settings from flags, environment, TOML file and defaults.
``commands``          command-line options derived from a settings model.
``failpoints``        places where a test can have a process die; off in production.
``sql``               databases: SQLite in a file, or PostgreSQL, behind one interface.
====================  =============================================================================
"""
