"""The options that say what to connect with; they stand before the verb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with the token to show. (env MIDCOURSE_TOKEN_FILE, or MIDCOURSE_TOKEN itself)",
    ),
]
TlsCaOption = Annotated[
    str | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        help="Connect over TLS and believe servers of this authority, a PEM file, or of the public"
        " ones: system. (env MIDCOURSE_TLS_CA)",
    ),
]
ClientCertOption = Annotated[
    Path | None,
    typer.Option(
        "--client-cert",
        metavar="FILE",
        help="PEM file with a certificate of your own. (env MIDCOURSE_CLIENT_CERT)",
    ),
]
ClientKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--client-key",
        metavar="FILE",
        help="PEM file with that certificate's key. (env MIDCOURSE_CLIENT_KEY)",
    ),
]


def connect_with(
    token_file: Path | None, tls_ca: str | None, client_cert: Path | None, client_key: Path | None
) -> None:
    """Has every client of this process, and of those that it starts, use what was given.

    It becomes part of the environment, where all of them look: there may be a launcher between
    this process and the one that connects, in another directory.
    """
    given = {
        "MIDCOURSE_TOKEN_FILE": token_file,
        "MIDCOURSE_TLS_CA": None if tls_ca in (None, "system") else Path(str(tls_ca)),
        "MIDCOURSE_CLIENT_CERT": client_cert,
        "MIDCOURSE_CLIENT_KEY": client_key,
    }
    for variable, path in given.items():
        if path is not None:
            os.environ[variable] = str(path.expanduser().absolute())
    if tls_ca == "system":
        os.environ["MIDCOURSE_TLS_CA"] = tls_ca
    if token_file is not None:
        os.environ.pop("MIDCOURSE_TOKEN", None)  # what is said here comes first
