"""What is wrong where a connection fails over TLS, and what to do: gRPC's own words say neither."""

from __future__ import annotations

from typing import Final

from grpc_runtime.client.variables import CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE

_CUT: Final = ("Socket closed", "Connection reset", "Broken pipe", "recvmsg:")


def connection_trouble(details: str, *, secure: bool) -> str:
    """Returns what is likely wrong, in words that follow "nobody answers"; empty: nothing to add.

    Args:
        details: gRPC's own words, of an error with status UNAVAILABLE.
        secure: Whether this side speaks TLS.
    """
    return tls_trouble(details) or _cut_trouble(details, secure=secure)


def tls_trouble(details: str) -> str:
    """Returns why the two sides can not agree, where somebody did answer; empty: it is not that.

    Args:
        details: As for :func:`connection_trouble`.
    """
    if "WRONG_VERSION_NUMBER" in details:
        return (
            f"who listens there speaks no TLS, and this side does: unset {CA_VARIABLE} and"
            f" {CERT_VARIABLE}, or have the server use TLS"
        )
    if "Hostname Verification" in details:
        return (
            "the server's certificate is not for this host name: connect by a name that is in it,"
            " or have one made that has this name"
        )
    if "CERTIFICATE_VERIFY_FAILED" in details:
        if "expired" in details:
            return "the server's certificate has expired: it needs a new one"
        return (
            f"the server's certificate is of an authority that is not believed here: {CA_VARIABLE}"
            " has to name a PEM file with that authority"
        )
    return ""


def _cut_trouble(details: str, *, secure: bool) -> str:
    if any(sign in details for sign in _CUT):
        if secure:
            return (
                "the connection was cut; if the server wants a client certificate, give one that it"
                f" believes with {CERT_VARIABLE} and {KEY_VARIABLE}"
            )
        return (
            "the connection was cut; if the server uses TLS, say whom to believe with"
            f" {CA_VARIABLE}, a PEM file with its authority"
        )
    return ""
