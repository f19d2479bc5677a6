"""Audit records in a table, out of the API's messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from urllib.parse import unquote

from rich.text import Text

from control_plane.cli import format as fmt
from control_plane.cli import printable
from control_plane.cli.fitting import FittingTable
from midcourse.control.v1 import access_pb2

_COLUMNS = ("TIME", "WHO", "FROM", "METHOD", "ABOUT", "WHAT", "WHY", "OUTCOME")


def records(of: Iterable[access_pb2.AuditRecord]) -> FittingTable:
    """Returns the table of records."""
    table = FittingTable(
        *_COLUMNS,
        wrap={"WHO": 12, "ABOUT": 14, "WHAT": 20, "WHY": 12, "OUTCOME": 12},
        leave_out=("FROM", "METHOD", "WHY"),
        say_so=True,
    )
    for record in of:
        table.add_row(
            _time(record),
            record.principal or "nobody known",
            _host(record.peer) or fmt.UNKNOWN,
            record.method.rpartition("/")[2] or fmt.UNKNOWN,
            record.resource or fmt.UNKNOWN,
            record.summary or fmt.UNKNOWN,
            record.reason or fmt.UNKNOWN,
            _outcome(record),
        )
    return table


def _time(record: access_pb2.AuditRecord) -> str:
    """Returns the time here, as the records may be of long ago."""
    return record.time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _host(peer: str) -> str:
    """Returns the other end without its kind and its port, which differs with every connection."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")  # gRPC quotes the brackets


def _outcome(record: access_pb2.AuditRecord) -> Text:
    if record.code == "OK":
        return Text("ok")
    return Text(printable.line(record.error_reason or record.code), style="red")
