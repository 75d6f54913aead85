"""How does the command line ask a running controller?"""

from __future__ import annotations

import ssl
from base64 import b64encode
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from claimscope.claims.explain import Explanation
from claimscope.clienttls import client_context

_SECONDS: Final = aiohttp.ClientTimeout(total=20)
_BYTES_MAX: Final = 4 << 20  # an explanation has some thousand


class ClientError(Exception):
    """The controller gave no answer that can be used: one line that says where, what and what to do."""


class _Refusal(msgspec.Struct, frozen=True):
    error: str


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def tls_context(ca_file: str | None, cert_file: str | None = None, key_file: str | None = None) -> ssl.SSLContext:
    """How a controller behind TLS is asked: whom to trust (None: the machine's authorities), and who we are.

    Raises ClientError.
    """
    try:
        context = client_context(ca_file)
    except OSError as error:
        raise ClientError(f"--ca-file {ca_file}: {_tls_reason(error)}; name a file of certificates in PEM") from error
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except OSError as error:
            raise ClientError(
                f"--cert-file {cert_file}: {_tls_reason(error)}; name a certificate and with --key-file its key, in PEM"
            ) from error
    return context


def _tls_reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "not PEM"


async def explanation(
    controller_url: str, namespace: str, name: str, token: str | None = None, *, tls: ssl.SSLContext | None = None,
    password_of: tuple[str, str] | None = None,
) -> Explanation:
    """What a controller explains of a claim; raises ClientError.

    `token` is one of the cluster, `password_of` a user and their password: one of the two, where it wants one.
    """
    if not _is_base_url(controller_url):
        raise ClientError(f"--controller: `{controller_url}` is not http://HOST:PORT")
    url = f"{controller_url.rstrip('/')}/api/v1/claims/{quote(namespace, safe='')}/{quote(name, safe='')}"
    try:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if password_of is not None:
            headers = {"Authorization": f"Basic {b64encode(':'.join(password_of).encode()).decode()}"}
        async with (
            aiohttp.ClientSession(timeout=_SECONDS) as session,
            session.get(url, headers=headers, allow_redirects=False, ssl=True if tls is None else tls) as response,
        ):
            status = response.status
            body = await response.content.read(_BYTES_MAX)
            while not response.content.at_eof() and len(body) < _BYTES_MAX:
                body += await response.content.read(_BYTES_MAX - len(body))
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise ClientError(f"no controller answers at {controller_url}: {reason}; check --controller") from error
    try:
        if status in (200, 404):  # of a name that no claim has there is something to say as well
            return msgspec.json.decode(body, type=Explanation)
        raise ClientError(msgspec.json.decode(body, type=_Refusal).error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(
            f"{url} answered {status} with something else than an explanation: {error}; is a claimscope controller of "
            "this version there?"
        ) from error
