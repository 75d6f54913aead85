"""Which SSLContext do a certificate, its key and the settings make, and until when is the certificate valid?

Everything is read once and checked here; where something is wrong, the error names the file and never its content.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from claimscope.web.serving.webconfig import ClientAuth, Pem, TlsSettings, WebConfigError
from claimscope.yamlfile import ConfigError, read_file

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18  # tags of DER


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """What connections are made with."""

    context: ssl.SSLContext
    expiry_unix_seconds: float  # of the server's own certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Material:
    where: str  # "web-config.yaml: cert_file /etc/tls/tls.crt"
    content: bytes = field(repr=False)


def make_server(settings: TlsSettings, name: str) -> TlsServer:
    """Reads what the settings name, and makes a context of it; `name` is the web configuration file's."""
    certificate, key = _read(settings.certificate, name), _read(settings.private_key, name)
    expiry = certificate_expiry(_first_certificate(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = settings.minimum, settings.maximum
    context.options |= ssl.OP_NO_RENEGOTIATION
    # A session that is resumed is one whose certificate was looked at before; scrapers stay connected instead.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    if not settings.server_chooses:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    _choose(context, settings, name)
    _load_pair(context, certificate, key)
    if settings.client_ca is not None:
        _load_authorities(context, _read(settings.client_ca, name))
        # A certificate is verified where there is one, and refused with the handshake where it is wrong. That there
        # must be one is looked at with the request: the kubelet has none, and its probes stay open.
        context.verify_mode = ssl.CERT_NONE if settings.client_auth is ClientAuth.NONE else ssl.CERT_OPTIONAL
    return TlsServer(context=context, expiry_unix_seconds=expiry)


def _read(pem: Pem, name: str) -> _Material:
    if pem.text is not None:
        return _Material(where=f"{name}: {pem.key}", content=pem.text.encode(errors="replace"))
    assert pem.path is not None  # noqa: S101 - one of the two is there
    where = f"{name}: {pem.key} {pem.path}"
    try:
        return _Material(where=where, content=read_file(pem.path, "PEM file"))
    except OSError as error:
        raise WebConfigError(f"{where}: {error.strerror}; a path is relative to the web configuration file") from error
    except ConfigError as error:
        raise WebConfigError(f"{name}: {pem.key} {error}") from error


def _choose(context: ssl.SSLContext, settings: TlsSettings, name: str) -> None:
    try:
        if settings.ciphers:
            context.set_ciphers(":".join(settings.ciphers))
        if settings.curve is not None:
            context.set_ecdh_curve(settings.curve)
    except (ssl.SSLError, ValueError) as error:
        raise WebConfigError(
            f"{name}: the OpenSSL of this machine offers none of cipher_suites or curve_preferences: leave them out"
        ) from error


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for Python's ssl, which takes keys from files only: memory, since the root file system is read-only."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _load_pair(context: ssl.SSLContext, certificate: _Material, key: _Material) -> None:
    if b"ENCRYPTED" in key.content:
        raise WebConfigError(f"{key.where}: the key is encrypted, and nobody is there to ask for its password")
    try:
        with _as_file(certificate.content) as certificate_path, _as_file(key.content) as key_path:
            context.load_cert_chain(certificate_path, key_path, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise WebConfigError(f"{key.where}: not the key of {certificate.where}; were both replaced?") from None
        raise WebConfigError(f"{key.where}: not a key in PEM that can be used ({error.reason or 'unknown'})") from None
    except OSError as error:
        raise WebConfigError(f"{key.where}: cannot be loaded: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, authorities: _Material) -> None:
    try:
        context.load_verify_locations(cadata=authorities.content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise WebConfigError(f"{authorities.where}: no certificates in PEM") from None
    if not any(context.cert_store_stats().values()):
        raise WebConfigError(f"{authorities.where}: no certificates in PEM")
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Go: what stands there is trusted, root or not


def _first_certificate(certificate: _Material) -> bytes:
    found = _CERTIFICATE.search(certificate.content)
    try:
        der = b"" if found is None else base64.b64decode(b"".join(found[1].split()), validate=True)
        if der:
            certificate_expiry(der)
            return der
    except (binascii.Error, ValueError):
        pass
    raise WebConfigError(f"{certificate.where}: no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----")


def certificate_expiry(der: bytes) -> float:
    """Unix time of a certificate's notAfter (RFC 5280, 4.1). Raises ValueError where it is none."""
    _, at, _ = _element(der, 0, _SEQUENCE)  # Certificate
    _, at, _ = _element(der, at, _SEQUENCE)  # TBSCertificate
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        _, _, end = _element(der, end)
    for _ in ("signature", "issuer"):
        _, _, end = _element(der, end, _SEQUENCE)
    _, at, _ = _element(der, end, _SEQUENCE)  # Validity
    _, _, at = _element(der, at)  # notBefore
    tag, at, end = _element(der, at)
    if tag not in (_UTC_TIME, _TIME):
        raise ValueError("no time")
    text = der[at:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int, wanted: int | None = None) -> tuple[int, int, int]:
    """Tag, beginning of the content and end of the element that begins at `at`."""
    if at + 2 > len(der):
        raise ValueError("cut off")
    tag, length, begin = der[at], der[at + 1], at + 2
    if length >= 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("a length that is not DER")
        length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    if begin + length > len(der) or (wanted is not None and tag != wanted):
        raise ValueError("not what is expected")
    return tag, begin, begin + length
