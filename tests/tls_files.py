"""Certificates for tests, made by openssl: an authority, and certificates that it signed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """PEM files of one certificate."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, openssl: str, directory: Path, name: str = "ca") -> None:
        self._openssl = openssl
        self._directory = directory
        self.pair = self._new(name, "-addext", "basicConstraints=critical,CA:TRUE")

    def sign(self, name: str) -> Pair:
        """A certificate that this authority vouches for."""
        return self._new(
            name, "-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key),
            "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE",
        )  # fmt: skip

    def _new(self, name: str, *more: str) -> Pair:
        made = Pair(certificate=self._directory / f"{name}.pem", key=self._directory / f"{name}.key")
        subprocess.run(
            [self._openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(made.certificate), *more],
            check=True, capture_output=True, timeout=20,
        )  # fmt: skip
        return made
