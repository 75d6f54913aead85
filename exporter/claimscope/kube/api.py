"""How does the API server get read: and written: with which credentials, and what do its refusals mean?

Bodies stay bytes: who asks decodes only the fields that are read. Inside a cluster nothing but the service account's
files is needed; `--kubeconfig` borrows credentials from the package `kubernetes`, loaded only then.
"""

from __future__ import annotations

import enum
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import aiohttp
import msgspec

from claimscope.clienttls import client_context
from claimscope.clock import Clock
from claimscope.kube.depth import shallow
from claimscope.kube.objects import RESOURCE_GROUP, ApiGroup, ApiResourceList, Status, VersionInfo

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS: Final = 60.0  # kubelets rotate the file well before the token ends
KUBECONFIG_SECONDS: Final = 300.0
LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
BODY_LIMIT_BYTES: Final = 256 * 1024 * 1024

# Content types of what is sent. Server-side apply takes JSON under the name of YAML, and nothing else.
JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY: Final = "application/apply-patch+yaml"  # with the parameters fieldManager and, to take over fields, force=true

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
    CONFLICT = "conflict"  # 409: it exists already, or somebody else wrote it since it was read
    GONE = "gone"  # 410
    INVALID = "invalid"  # 422
    RATE_LIMITED = "rate_limited"  # 429
    SERVER_ERROR = "server_error"  # 5xx
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    FAILED = "failed"


# Those that happen sooner or later everywhere: their counters start at zero, so that the first one is an increase.
COMMON_REASONS: Final = (
    ApiReason.UNREACHABLE,
    ApiReason.FORBIDDEN,
    ApiReason.GONE,
    ApiReason.RATE_LIMITED,
    ApiReason.SERVER_ERROR,
    ApiReason.MALFORMED,
    ApiReason.TIMEOUT,
)


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


class OpenAccess:
    """An API server that asks for no credentials: a simulated one, or `kubectl proxy`, on this machine."""

    def __init__(self, base_url: str) -> None:
        self._access = Access(base_url=base_url.rstrip("/"))

    async def access(self, *, renew: bool = False) -> Access:
        """Where it is."""
        return self._access


class InCluster:
    """The service account that every pod gets: host from the environment, CA and token from files."""

    def __init__(self, environ: Mapping[str, str], clock: Clock, directory: Path = SERVICE_ACCOUNT) -> None:
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
        if not host or not port:
            raise ApiError(
                ApiReason.ABSENT,
                "no API server: KUBERNETES_SERVICE_HOST is not set, so this is no pod; pass --kubeconfig to use one "
                "from outside",
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
            tls = client_context(str(self._ca_file))
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


def access_source(
    kubeconfig: str | None, api_server_url: str | None, environ: Mapping[str, str], clock: Clock
) -> AccessSource:
    """The way to the API server that the settings name, else the pod's own. Raises ApiError where there is none."""
    if api_server_url is not None:
        return OpenAccess(api_server_url)
    if kubeconfig is not None:
        return Kubeconfig(Path(kubeconfig), clock)
    return InCluster(environ, clock)


class ApiClient:
    """Requests to the API server over kept connections. The HTTP session is made at the first request."""

    def __init__(
        self, source: AccessSource, timeout: float = 30.0, *, body_limit_bytes: int = BODY_LIMIT_BYTES
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._body_limit_bytes = body_limit_bytes  # of an answer, decompressed; watches have a limit of each line
        self._session: aiohttp.ClientSession | None = None
        self._renew = False

    async def close(self) -> None:
        """Closes the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, params: Params | None = None) -> bytes:
        """The body of one answer. Raises ApiError."""
        return await self.send("GET", path, params=params)

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = JSON,
        params: Params | None = None,
    ) -> bytes:
        """The body of the answer to one request; a `body` that is not bytes yet is encoded as JSON. Raises ApiError."""
        limits = aiohttp.ClientTimeout(total=self._timeout, sock_connect=10)
        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        answer = bytearray()
        async with self._open(method, path, params or {}, limits, data, content_type) as response:
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > self._body_limit_bytes:
                    raise ApiError(
                        ApiReason.MALFORMED,
                        f"{method} {path} answers more than {self._body_limit_bytes >> 20} MiB; check that the address "
                        "is a Kubernetes API server's",
                    )
        return bytes(answer)

    async def lines(self, path: str, params: Params, quiet_seconds: float) -> AsyncGenerator[bytes, None]:
        """The lines of a watch, as they come. Ends when the server ends it. Raises ApiError."""
        async with aclosing(self.batches(path, params, quiet_seconds)) as batches:
            async for batch in batches:
                for line in batch:
                    yield line

    async def batches(self, path: str, params: Params, quiet_seconds: float) -> AsyncGenerator[list[bytes], None]:
        """The lines of a watch, those that arrived together at a time; first none, once the server accepts the watch.

        Silence of more than `quiet_seconds` is an error. Raises ApiError.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=quiet_seconds)
        begun: list[bytes] = []  # the line that is not whole yet
        size = 0
        async with self._open("GET", path, params, limits) as response:
            yield []
            async for chunk in response.content.iter_any():
                begun.append(chunk)
                size += len(chunk)
                if b"\n" in chunk:
                    *whole, rest = b"".join(begun).split(b"\n")
                    begun, size = [rest], len(rest)
                    yield [line for line in whole if line.strip()]
                if size > LINE_LIMIT_BYTES:
                    raise ApiError(
                        ApiReason.MALFORMED, f"a line of the watch on {path} exceeds {LINE_LIMIT_BYTES} bytes"
                    )
        last = b"".join(begun)
        if last.strip():
            yield [last]

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        params: Params,
        limits: aiohttp.ClientTimeout,
        data: bytes | None = None,
        content_type: str = JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        access = await self._source.access(renew=self._renew)
        if self._session is None:
            # trust_env would send cluster traffic through a proxy of the environment. Each watch keeps a connection
            # for good: with aiohttp's limit of 100, requests of a busy process would wait for one that never ends.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False, read_bufsize=1 << 20)
        headers = {"Accept": JSON, "User-Agent": "claimscope"}
        if access.authorization:
            headers["Authorization"] = access.authorization
        if data is not None:
            headers["Content-Type"] = content_type
        url = access.base_url + path
        try:
            async with self._session.request(
                method,
                url,
                params=dict(params),
                data=data,
                headers=headers,
                timeout=limits,
                ssl=access.tls if access.tls is not None else True,
                allow_redirects=False,
            ) as response:
                self._renew = response.status == 401
                if response.status not in (200, 201, 202):
                    raise _refusal(url, response, await response.content.read(4096))
                yield response
        except TimeoutError as error:
            raise ApiError(
                ApiReason.TIMEOUT, f"{url} did not answer in time; check the network and the API server's load"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(
                ApiReason.UNREACHABLE,
                f"cannot {'read' if method == 'GET' else method} {url}: {error or type(error).__name__}; check the "
                "address, the network policy and the CA",
            ) from error


async def server_version(api: ApiClient) -> VersionInfo:
    """Which Kubernetes the API server is. Raises ApiError."""
    return decode(await api.get("/version"), VersionInfo, "/version")


async def discover(api: ApiClient, group: str, versions: Sequence[str], plural: str) -> str:
    """The first of `versions` in which the server serves `plural`; "", the core group, always does. Raises ApiError."""
    if not group:
        return versions[0]
    where = f"/apis/{group}"
    try:
        served = {entry.version for entry in decode(await api.get(where), ApiGroup, where).versions or ()}
    except ApiError as error:
        if error.reason is not ApiReason.NOT_FOUND:
            raise
        served = set()
    for version in versions:
        if version in served:
            path = f"{where}/{version}"
            listed = decode(await api.get(path), ApiResourceList, path).resources or ()
            if any(resource.name == plural for resource in listed):
                return version
    cure = "; Dynamic Resource Allocation needs Kubernetes 1.34, or its API enabled" if group == RESOURCE_GROUP else ""
    raise ApiError(
        ApiReason.NOT_FOUND,
        f"the API server serves {plural} in none of {', '.join(f'{group}/{version}' for version in versions)} (it has: "
        f"{', '.join(sorted(served)) or 'nothing of this group'}){cure}",
    )


def decode(data: bytes | msgspec.Raw, kind: type[T], where: str) -> T:
    """One object out of an answer's body. Raises ApiError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        data = shallow(bytes(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(where, error) from error
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(where, error) from error


def malformed(where: str, error: Exception) -> ApiError:
    """What to raise for bytes that no API server sends."""
    return ApiError(
        ApiReason.MALFORMED,
        f"what came from {where} is not what the API server sends: {error}; check that the address is a Kubernetes API "
        "server's",
    )


def reason_of(status: int) -> ApiReason:
    """The reason behind an HTTP status, or behind the code of a Status."""
    known = {
        401: ApiReason.UNAUTHORIZED,
        403: ApiReason.FORBIDDEN,
        404: ApiReason.NOT_FOUND,
        409: ApiReason.CONFLICT,
        410: ApiReason.GONE,
        422: ApiReason.INVALID,
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
    ApiReason.CONFLICT: "somebody else wrote it first; it is read again",
    ApiReason.INVALID: "the server does not take this object: check that its Kubernetes version is a supported one",
}


def _refusal(url: str, response: aiohttp.ClientResponse, body: bytes) -> ApiError:
    reason = reason_of(response.status)
    try:
        message = msgspec.json.decode(body, type=Status).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
    context = client_context(found.ssl_ca_cert)
    if found.cert_file:
        context.load_cert_chain(found.cert_file, found.key_file)
    if not found.verify_ssl:  # insecure-skip-tls-verify in the file
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
