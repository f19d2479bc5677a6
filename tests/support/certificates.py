"""A small authority, and files with what it has issued."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """A certificate with its chain, and its key."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(
        self,
        *names: str,
        file: str = "server",
        common_name: str | None = None,
        not_after: datetime | None = None,
    ) -> Files:
        """Writes a certificate for some names; over the older ones of that file."""
        made = self._ca.issue_cert(*names, common_name=common_name, not_after=not_after)
        files = Files(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        files.certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        files.key.write_bytes(made.private_key_pem.bytes())
        return files

    def server(self) -> Files:
        """Writes a certificate for this host."""
        return self.issue("localhost", "127.0.0.1")
