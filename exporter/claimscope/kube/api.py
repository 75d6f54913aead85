"""How does the API server get read: with which credentials, and how is a kind followed without a gap?

List and watch work on raw lines and decode only the fields that are read. Inside a cluster nothing but the service
account's files is needed; `--kubeconfig` borrows credentials from the package `kubernetes`, loaded only then.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import aiohttp
import msgspec

from claimscope.clock import Clock
from claimscope.kube.objects import ApiGroup, ApiResourceList, RawList, Status, Versioned, WatchLine

log = logging.getLogger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS: Final = 60.0  # kubelets rotate the file well before the token ends
KUBECONFIG_SECONDS: Final = 300.0
LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
BODY_LIMIT_BYTES: Final = 256 * 1024 * 1024
_FIRST_WAIT_SECONDS: Final = 0.5
_LONGEST_WAIT_SECONDS: Final = 30.0

T = TypeVar("T")
Params = Mapping[str, str]


class ApiReason(enum.Enum):
    """Why the API server gave nothing."""

    ABSENT = "absent"  # no API server is configured
    CONFIG = "config"  # credentials or kubeconfig cannot be used
    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"  # 401
    FORBIDDEN = "forbidden"  # 403
    NOT_FOUND = "not_found"  # 404
    GONE = "gone"  # 410
    RATE_LIMITED = "rate_limited"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    FAILED = "failed"


class ApiError(Exception):
    """A refused or failed request: `reason` for a counter's label, the text for a person."""

    def __init__(self, reason: ApiReason, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the API server is and what is shown to it."""

    base_url: str
    tls: ssl.SSLContext | None = None
    authorization: str | None = None  # value of the header


class AccessSource(Protocol):
    """What knows the API server and keeps credentials fresh."""

    async def access(self, *, renew: bool = False) -> Access:
        """The present access; `renew` after a 401. Raises ApiError."""


class InCluster:
    """The service account that every pod gets: host from the environment, CA and token from files."""

    def __init__(self, environ: Mapping[str, str], clock: Clock, directory: Path = SERVICE_ACCOUNT) -> None:
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise ApiError(
                ApiReason.ABSENT,
                "no API server: KUBERNETES_SERVICE_HOST is not set, so this is no pod; pass --kubeconfig to use one "
                "from outside (devices, pods and claims are known without it)",
            )
        self._base_url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._clock = clock
        self._ca_file = directory / "ca.crt"
        self._token_file = directory / "token"
        self._read_ns: int | None = None
        self._access: Access | None = None

    async def access(self, *, renew: bool = False) -> Access:
        """The access; the token's file is read again each minute, or at once after a 401."""
        now = self._clock.monotonic_ns()
        if self._access is None or self._read_ns is None or renew or now - self._read_ns >= TOKEN_SECONDS * 1e9:
            self._access = self._read()
            self._read_ns = now
        return self._access

    def _read(self) -> Access:
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
            tls = ssl.create_default_context(cafile=str(self._ca_file))
        except (OSError, ValueError) as error:
            raise ApiError(
                ApiReason.CONFIG,
                f"cannot use the service account in {self._token_file.parent}: {error}; set "
                "automountServiceAccountToken: true for the pod",
            ) from error
        return Access(base_url=self._base_url, tls=tls, authorization=f"Bearer {token}")


class Kubeconfig:
    """A kubeconfig file, read through the optional package `kubernetes` (exec plugins and OIDC included).

    It is read again every five minutes and after a 401: the package itself reads a token file only once.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._read_ns: int | None = None
        self._access: Access | None = None

    async def access(self, *, renew: bool = False) -> Access:
        """The access of the file's current context."""
        now = self._clock.monotonic_ns()
        if self._access is None or self._read_ns is None or renew or now - self._read_ns >= KUBECONFIG_SECONDS * 1e9:
            self._access = await self._read()
            self._read_ns = now
        return self._access

    async def _read(self) -> Access:
        try:
            import yaml
            from kubernetes.aio import config
            from kubernetes.aio.client.configuration import Configuration
        except ImportError as error:
            raise ApiError(
                ApiReason.CONFIG,
                "--kubeconfig needs the package kubernetes, which is not installed; install claimscope[kubeconfig]",
            ) from error
        found = Configuration()
        # The package raises TypeError, KeyError and AttributeError for files of an unexpected shape.
        try:
            with self._path.open("rb"):
                pass
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(self._path), client_configuration=found, persist_config=False
            )
            key = await found.get_api_key_with_prefix("BearerToken")
            tls = _tls_of(found) if found.host.startswith("https:") else None
        except (
            OSError,
            yaml.YAMLError,
            config.ConfigException,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
        ) as error:
            raise self._unusable(error) from error
        # A token file's trailing newline would be refused as a header.
        return Access(base_url=found.host.rstrip("/"), tls=tls, authorization=key.strip() if key else None)

    def _unusable(self, error: Exception) -> ApiError:
        return ApiError(
            ApiReason.CONFIG,
            f"cannot use kubeconfig {self._path}: {error}; check it with kubectl --kubeconfig {self._path} version",
        )


class ApiClient:
    """GET on the API server over kept connections. The session is made at the first request."""

    def __init__(self, source: AccessSource, timeout: float = 30.0) -> None:
        self._source = source
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._renew = False

    async def close(self) -> None:
        """Closes the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, params: Params | None = None) -> bytes:
        """The body of one answer. Raises ApiError."""
        body = bytearray()
        limits = aiohttp.ClientTimeout(total=self._timeout, sock_connect=10)
        async with aclosing(self._chunks(path, params or {}, limits)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise ApiError(ApiReason.MALFORMED, f"GET {path} answers more than {BODY_LIMIT_BYTES >> 20} MiB")
        return bytes(body)

    async def lines(self, path: str, params: Params, quiet_seconds: float) -> AsyncGenerator[bytes, None]:
        """The lines of a watch, as they come. Ends when the server ends it. Raises ApiError."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=quiet_seconds)
        rest = b""
        async with aclosing(self._chunks(path, params, limits)) as chunks:
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line.strip():
                        yield line
                if len(rest) > LINE_LIMIT_BYTES:
                    raise ApiError(
                        ApiReason.MALFORMED, f"a line of the watch on {path} exceeds {LINE_LIMIT_BYTES} bytes"
                    )
        if rest.strip():
            yield rest

    async def _chunks(self, path: str, params: Params, limits: aiohttp.ClientTimeout) -> AsyncGenerator[bytes, None]:
        access = await self._source.access(renew=self._renew)
        if self._session is None:
            # trust_env would send cluster traffic through a proxy of the environment.
            self._session = aiohttp.ClientSession(trust_env=False, read_bufsize=1 << 20)
        headers = {"Accept": "application/json", "User-Agent": "claimscope"}
        if access.authorization:
            headers["Authorization"] = access.authorization
        url = access.base_url + path
        try:
            async with self._session.get(
                url,
                params=dict(params),
                headers=headers,
                timeout=limits,
                ssl=access.tls if access.tls is not None else True,
                allow_redirects=False,
            ) as response:
                self._renew = response.status == 401
                if response.status != 200:
                    raise _refusal(url, response, await response.content.read(4096))
                async for chunk in response.content.iter_any():
                    yield chunk
        except TimeoutError as error:
            raise ApiError(
                ApiReason.TIMEOUT, f"{url} did not answer in time; check the network and the API server's load"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(
                ApiReason.UNREACHABLE,
                f"cannot read {url}: {error or type(error).__name__}; check the address, the network policy and the CA",
            ) from error


async def discover(api: ApiClient, group: str, versions: Sequence[str], plural: str) -> str:
    """The first of `versions` in which the server serves `plural`. Raises ApiError."""
    where = f"/apis/{group}"
    try:
        served = {entry.version for entry in _decode(await api.get(where), ApiGroup, where).versions or ()}
    except ApiError as error:
        if error.reason is not ApiReason.NOT_FOUND:
            raise
        served = set()
    for version in versions:
        if version in served:
            path = f"{where}/{version}"
            listed = _decode(await api.get(path), ApiResourceList, path).resources or ()
            if any(resource.name == plural for resource in listed):
                return version
    raise ApiError(
        ApiReason.NOT_FOUND,
        f"the API server serves {plural} in none of {', '.join(f'{group}/{version}' for version in versions)} (it has: "
        f"{', '.join(sorted(served)) or 'nothing of this group'}); Dynamic Resource Allocation "
        "needs Kubernetes 1.34, or its API enabled",
    )


class ListWatch(Generic[T]):
    """Follows one kind: list, watch from there, begin again where the server's memory ends.

    `on_sync` gets everything there is, after each list; `on_change` one object that changed (True) or went (False);
    `on_error` every failure, with the text that says what to do. What was known before a failure stands.
    """

    def __init__(
        self,
        api: ApiClient,
        path: str,
        kind: type[T],
        *,
        clock: Clock,
        on_sync: Callable[[list[T]], None],
        on_change: Callable[[T, bool], None],
        on_error: Callable[[ApiError], None],
        params: Params | None = None,
        watch_seconds: int = 300,
        first_wait_seconds: float = _FIRST_WAIT_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._path = path
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._clock = clock
        self._on_sync = on_sync
        self._on_change = on_change
        self._on_error = on_error
        self._params = dict(params or {})
        self._watch_seconds = watch_seconds
        self._first_wait = first_wait_seconds
        self._wait = first_wait_seconds
        self._jitter = jitter

    async def run(self) -> None:
        """Runs until it is cancelled."""
        version: str | None = None
        fresh = False  # the next list must not come from a cache that may be older than what was gone
        failed: ApiReason | None = None
        while True:
            began_ns = self._clock.monotonic_ns()
            try:
                if version is None:
                    version = await self._list(fresh=fresh)
                    if failed is not None:
                        log.info("%s is readable again", self._path)
                    failed = None
                version, heard = await self._watch(version)
                lasted = (self._clock.monotonic_ns() - began_ns) / 1e9
                if heard or lasted >= 1.0:
                    self._wait = self._first_wait
                else:
                    await self._back_off(None)  # a proxy that ends every watch at once must not make a busy loop
                fresh = False
            except ApiError as error:
                gone = error.reason is ApiReason.GONE
                if error.reason is not failed and not gone:
                    log.warning("cannot follow %s: %s", self._path, error)
                if not gone:
                    failed = error.reason
                self._on_error(error)
                relist_at_once = gone and not fresh
                version, fresh = None, gone
                if not relist_at_once:
                    await self._back_off(error.retry_after_seconds)

    async def _back_off(self, asked_seconds: float | None) -> None:
        pause = self._wait * (0.5 + self._jitter())
        self._wait = min(self._wait * 2, _LONGEST_WAIT_SECONDS)
        if asked_seconds is not None:
            pause = max(pause, min(asked_seconds, 2 * _LONGEST_WAIT_SECONDS))
        await asyncio.sleep(pause)

    async def _list(self, *, fresh: bool) -> str:
        # resourceVersion=0 is answered from the server's cache, unpaged; without it the list is read from etcd.
        params = self._params if fresh else {**self._params, "resourceVersion": "0"}
        listed = _decode(await self._api.get(self._path, params), RawList, self._path)
        self._on_sync([self._object(raw) for raw in listed.items or ()])
        return listed.metadata.resource_version

    async def _watch(self, version: str) -> tuple[str, bool]:
        """Follows until the server ends the watch: the version to go on from, and whether anything came."""
        params = {
            **self._params,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(self._watch_seconds),
        }
        heard = False
        async with aclosing(self._api.lines(self._path, params, self._watch_seconds + 30.0)) as lines:
            async for line in lines:
                event = _decode(line, WatchLine, self._path)
                if event.type == "ERROR":
                    status = _decode(event.object, Status, self._path)
                    reason = _reason(status.code)
                    raise ApiError(reason, f"the watch on {self._path} ended with {status.code}: {status.message}")
                changed = _decode(event.object, Versioned, self._path).metadata.resource_version
                if event.type != "BOOKMARK":
                    self._on_change(self._object(event.object), event.type != "DELETED")
                version = changed or version
                heard = True
                self._wait = self._first_wait
        return version, heard

    def _object(self, raw: msgspec.Raw) -> T:
        try:
            return self._decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(self._path, error) from error


def _decode(data: bytes | msgspec.Raw, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(where, error) from error


def decode(data: bytes, kind: type[T], where: str) -> T:
    """One object out of an answer's body. Raises ApiError."""
    return _decode(data, kind, where)


def _malformed(where: str, error: Exception) -> ApiError:
    return ApiError(
        ApiReason.MALFORMED,
        f"what came from {where} is not what the API server sends: {error}; check that the address is a Kubernetes API "
        "server's",
    )


def _reason(status: int) -> ApiReason:
    known = {
        401: ApiReason.UNAUTHORIZED,
        403: ApiReason.FORBIDDEN,
        404: ApiReason.NOT_FOUND,
        410: ApiReason.GONE,
        429: ApiReason.RATE_LIMITED,
        504: ApiReason.TIMEOUT,
    }
    return known.get(status, ApiReason.SERVER_ERROR if status >= 500 else ApiReason.FAILED)


_CURES: Final = {
    ApiReason.UNAUTHORIZED: "the token is not accepted: check the service account or the kubeconfig's user",
    ApiReason.FORBIDDEN: "grant the right in the ClusterRole (claimscope doctor lists what is needed)",
    ApiReason.NOT_FOUND: "this API is not served: check the Kubernetes version and --runtime-config",
    ApiReason.RATE_LIMITED: "the server asks to wait; it is asked again later",
    ApiReason.GONE: "the version is too old; the list is read again",
}


def _refusal(url: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    reason = _reason(response.status)
    try:
        message = msgspec.json.decode(body, type=Status).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = body[:200].decode("utf-8", "replace")
    cure = _CURES.get(reason, "look at the API server's log")
    after = response.headers.get("Retry-After", "")
    return ApiError(
        reason,
        f"{url} answered {response.status}: {' '.join(message.split())}; {cure}",
        float(after) if after.isascii() and after.isdigit() else None,
    )


class _Tls(Protocol):
    ssl_ca_cert: str | None
    cert_file: str | None
    key_file: str | None
    verify_ssl: bool


def _tls_of(found: _Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=found.ssl_ca_cert)
    if found.cert_file:
        context.load_cert_chain(found.cert_file, found.key_file)
    if not found.verify_ssl:  # insecure-skip-tls-verify in the file
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
