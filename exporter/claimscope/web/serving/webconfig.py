"""What does a web configuration file of exporter-toolkit say, and at which line and column is it wrong?

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. The file holds keys and hashes,
so no error repeats a value of it: only its place, a misspelt key, and what could stand there instead.
"""

from __future__ import annotations

import difflib
import enum
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from claimscope.yamlfile import ConfigError, did_you_mean

BYTES_MAX: Final = 256 * 1024  # a bundle of a hundred certificates has 150 KiB
COST_MAX: Final = 14  # 0.7 s of CPU for each password, 16 times cost 10; cost 16 takes 3 s
INTERVAL_SECONDS_MAX: Final = 86_400.0
_TAG: Final = "tag:yaml.org,2002:"
_SHOWABLE: Final = re.compile(r"[A-Za-z][A-Za-z_-]{0,39}[0-9]?")  # as names of keys are, and keys and hashes are not
_ALIKE: Final = 0.75  # of difflib: one letter in four is wrong
_HASH: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_DURATION_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|μs|ms|s|m|h)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})

HEADERS: Final[Mapping[str, tuple[str, ...]]] = {  # and the values that each may have; none: any
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
VERSIONS: Final[Mapping[str, ssl.TLSVersion]] = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_OLD_VERSIONS: Final = ("TLS10", "TLS11")
CURVES: Final[Mapping[str, str]] = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1"}
_OTHER_CURVES: Final = ("X25519", "X25519MLKEM768")
# Go's names of https://pkg.go.dev/crypto/tls#CipherSuites and OpenSSL's; "" for those of TLS 1.3, which neither Go nor
# Python lets anybody choose.
CIPHERS: Final[Mapping[str, str]] = {
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}


class WebConfigError(ConfigError):
    """A web configuration file, or a file that it names, cannot be used: where, why, and what to write instead."""


class ClientAuth(enum.Enum):
    """What is asked of a client's certificate."""

    NONE = "NoClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


# Go's other modes look at no authority, which Python's ssl cannot do, and which keeps nobody out.
_UNVERIFIED: Final = ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Certificates or a key: in the file itself, or in another."""

    key: str  # of the web configuration file: "cert_file"
    text: str | None = field(default=None, repr=False)
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """tls_server_config."""

    certificate: Pem
    private_key: Pem
    client_ca: Pem | None = None
    client_auth: ClientAuth = ClientAuth.NONE
    client_allowed_sans: frozenset[str] = frozenset()
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()  # OpenSSL's names; none: OpenSSL's own choice
    curve: str | None = None
    server_chooses: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it names."""
        pems = (self.certificate, self.private_key, self.client_ca)
        return tuple(pem.path for pem in pems if pem is not None and pem.path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """rate_limit."""

    interval_seconds: float
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """A whole file."""

    tls: TlsSettings | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[bytes, bytes] = field(default_factory=dict, repr=False)  # bcrypt hashes
    rate_limit: RateLimit | None = None
    http2: bool = False  # asked for by name, and not offered


Entries = dict[str, tuple[yaml.ScalarNode, yaml.Node]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Reads nodes, and says where one is wrong."""

    name: str

    def error(self, node: yaml.Node, text: str) -> WebConfigError:
        return WebConfigError(f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {text}")

    def entries(self, node: yaml.Node, known: tuple[str, ...] = ()) -> Entries:
        """Keys and values; those without a value are left out. No `known`: any key."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "expected `key: value` lines")
        found: Entries = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "a key must be a word: put it into quotes")
            key = key_node.value
            if known and key not in known:
                shown = f"unknown key `{key}`" if _is_misspelt(key, known) else "unknown key"
                raise self.error(key_node, f"{shown}: {did_you_mean(key[:64], known)}")
            if key in seen:
                raise self.error(key_node, "this key stands here a second time: remove one")
            seen.add(key)
            if value_node.tag != _TAG + "null":
                found[key] = (key_node, value_node)
        return found

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "expected one text, found a list or `key: value` lines")
        return str(node.value)

    def flag(self, node: yaml.Node) -> bool:
        word = self.text(node).lower()
        if word not in _TRUE | _FALSE:
            raise self.error(node, "expected `true` or `false`")
        return word in _TRUE

    def items(self, node: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "expected a list, `- one` a line")
        for each in node.value:
            yield each, self.text(each)

    def choice(self, node: yaml.Node, known: tuple[str, ...]) -> str:
        word = self.text(node)
        if word not in known:
            raise self.error(node, f"unknown value: {did_you_mean(word[:64], known)}")
        return word


def _is_misspelt(key: str, known: tuple[str, ...]) -> bool:
    """Whether it is a known name with a mistake, and nothing that somebody may have put in the wrong place."""
    return _SHOWABLE.fullmatch(key) is not None and bool(difflib.get_close_matches(key, known, n=1, cutoff=_ALIKE))


def read_web_config(content: bytes, name: str) -> WebConfig:
    """What a file says; paths in it are relative to it. Raises WebConfigError."""
    root = _compose(content, name)
    if root is None or root.tag == _TAG + "null":
        return WebConfig()
    reader = _Reader(name=name)
    known = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
    found = reader.entries(root, known)
    nodes = {key: node for key, (_, node) in found.items()}
    headers, http2 = _http(reader, nodes.get("http_server_config"))
    return WebConfig(
        tls=_tls(reader, nodes.get("tls_server_config")),
        headers=headers,
        http2=http2,
        users=_users(reader, nodes.get("basic_auth_users")),
        rate_limit=_rate(reader, nodes.get("rate_limit")),
    )


def _compose(content: bytes, name: str) -> yaml.Node | None:
    """The file as a tree: nothing of it is ever made into objects."""
    if len(content) > BYTES_MAX:
        raise WebConfigError(f"{name}: more than {BYTES_MAX} bytes: this is no web configuration file")
    try:
        root: yaml.Node | None = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise WebConfigError(f"{name}: not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        problem = (error.problem or "").partition("'")[0].partition('"')[0].strip()  # what stands in quotes is theirs
        said = f": {problem}" if problem else ""
        raise WebConfigError(f"{at}: not YAML{said}; check quotes and indentation") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise WebConfigError(f"{name}: not YAML: a character or a nesting that it does not allow") from None
    return root


_TLS_KEYS: Final = (
    "cert", "key", "client_ca", "cert_file", "key_file", "client_ca_file", "client_auth_type", "client_allowed_sans",
    "min_version", "max_version", "cipher_suites", "curve_preferences", "prefer_server_cipher_suites",
)  # fmt: skip


def _tls(reader: _Reader, node: yaml.Node | None) -> TlsSettings | None:
    found = {} if node is None else reader.entries(node, _TLS_KEYS)
    if node is None or not found:
        return None
    certificate, key = _pem(reader, found, "cert"), _pem(reader, found, "key")
    for pem, word in ((certificate, "cert"), (key, "key")):
        if pem is None:
            raise reader.error(node, f"`{word}_file` is missing: TLS needs a certificate and its key")
    assert certificate is not None  # noqa: S101 - just looked at
    assert key is not None  # noqa: S101
    client_ca, auth, sans = _client(reader, found)
    minimum, maximum = (_version(reader, found, word) for word in ("min_version", "max_version"))
    if minimum is not None and maximum is not None and minimum > maximum:
        raise reader.error(found["min_version"][1], "min_version is above max_version: exchange them")
    minimum = ssl.TLSVersion.TLSv1_2 if minimum is None else minimum
    return TlsSettings(
        certificate=certificate,
        private_key=key,
        client_ca=client_ca,
        client_auth=auth,
        client_allowed_sans=sans,
        minimum=minimum,
        maximum=ssl.TLSVersion.TLSv1_3 if maximum is None else maximum,
        ciphers=_ciphers(reader, found, minimum),
        curve=_curve(reader, found),
        server_chooses="prefer_server_cipher_suites" not in found
        or reader.flag(found["prefer_server_cipher_suites"][1]),
    )


def _pem(reader: _Reader, found: Entries, word: str) -> Pem | None:
    inline, file = found.get(word), found.get(f"{word}_file")
    if inline is not None and file is not None:
        raise reader.error(file[0], f"`{word}` stands here as well: leave one of them out")
    if inline is not None:
        return Pem(key=word, text=reader.text(inline[1])) if reader.text(inline[1]) else None
    if file is None or not reader.text(file[1]):
        return None
    if not reader.text(file[1]).isprintable():
        raise reader.error(file[1], "a path has only printable characters")
    return Pem(key=f"{word}_file", path=Path(reader.name).parent / reader.text(file[1]))


def _client(reader: _Reader, found: Entries) -> tuple[Pem | None, ClientAuth, frozenset[str]]:
    client_ca = _pem(reader, found, "client_ca")
    auth = ClientAuth.NONE
    if "client_auth_type" in found and reader.text(found["client_auth_type"][1]):
        node = found["client_auth_type"][1]
        if reader.text(node) in _UNVERIFIED:
            raise reader.error(
                node, "this looks at no authority, so that anybody's certificate would do, and Python's ssl cannot ask "
                "for one without: use RequireAndVerifyClientCert"
            )
        auth = ClientAuth(reader.choice(node, tuple(each.value for each in ClientAuth)))
    if client_ca is not None and auth is ClientAuth.NONE:
        place = found.get("client_ca_file") or found["client_ca"]
        raise reader.error(place[0], "no client is asked for a certificate: add client_auth_type, "
                           "RequireAndVerifyClientCert")  # fmt: skip
    if client_ca is None and auth is not ClientAuth.NONE:
        raise reader.error(
            found["client_auth_type"][0],
            "`client_ca_file` is missing: without it a certificate of any public authority would do",
        )
    if "client_allowed_sans" not in found:
        return client_ca, auth, frozenset()
    key_node, node = found["client_allowed_sans"]
    sans = frozenset(text for _, text in reader.items(node))
    if auth is not ClientAuth.REQUIRE_AND_VERIFY:
        raise reader.error(key_node, "names of clients are looked at only with RequireAndVerifyClientCert: "
                           "add client_auth_type")  # fmt: skip
    if not sans:
        raise reader.error(key_node, "an empty list would let nobody in: name a client, or leave it out")
    return client_ca, auth, sans


def _version(reader: _Reader, found: Entries, word: str) -> ssl.TLSVersion | None:
    if word not in found:
        return None
    node = found[word][1]
    if reader.text(node) in _OLD_VERSIONS:
        raise reader.error(node, "TLS before 1.2 is not offered (RFC 8996): use TLS12 or TLS13")
    return VERSIONS[reader.choice(node, tuple(VERSIONS))]


def _ciphers(reader: _Reader, found: Entries, minimum: ssl.TLSVersion) -> tuple[str, ...]:
    if "cipher_suites" not in found:
        return ()
    key_node, node = found["cipher_suites"]
    chosen = [CIPHERS[reader.choice(each, tuple(CIPHERS))] for each, _ in reader.items(node)]
    older = tuple(name for name in chosen if name)
    if chosen and not older and minimum < ssl.TLSVersion.TLSv1_3:
        raise reader.error(key_node, "no suite of TLS 1.2 is left: add one, or set min_version to TLS13")
    return older


def _curve(reader: _Reader, found: Entries) -> str | None:
    if "curve_preferences" not in found:
        return None
    key_node, node = found["curve_preferences"]
    chosen = [reader.choice(each, (*CURVES, *_OTHER_CURVES)) for each, _ in reader.items(node)]
    if not chosen:
        return None
    if len(chosen) > 1 or chosen[0] not in CURVES:
        raise reader.error(
            key_node, f"Python's ssl takes one of {', '.join(CURVES)}, or OpenSSL's whole list, X25519 first: name "
            "one, or leave it out"
        )
    return CURVES[chosen[0]]


def _http(reader: _Reader, node: yaml.Node | None) -> tuple[dict[str, str], bool]:
    found = {} if node is None else reader.entries(node, ("http2", "headers"))
    http2 = "http2" in found and reader.flag(found["http2"][1])
    if "headers" not in found:
        return {}, http2
    headers: dict[str, str] = {}
    for key, (_, value) in reader.entries(found["headers"][1], tuple(HEADERS)).items():
        text = reader.text(value)
        if HEADERS[key] and text:
            reader.choice(value, HEADERS[key])
        if any(not 0x20 <= ord(char) < 0x7F for char in text):
            raise reader.error(value, "a header is one line of printable ASCII")
        if text:
            headers[key] = text
    return headers, http2


def _users(reader: _Reader, node: yaml.Node | None) -> dict[bytes, bytes]:
    users: dict[bytes, bytes] = {}
    for key, (key_node, value) in ({} if node is None else reader.entries(node)).items():
        if not key or ":" in key:
            raise reader.error(key_node, "a user's name is not empty and has no colon (RFC 7617)")
        fitting = _HASH.fullmatch(reader.text(value))
        if fitting is None:
            raise reader.error(value, "no bcrypt hash, which begins with $2y$, $2b$ or $2a$: make one with "
                               "`htpasswd -nBC 10 NAME`")  # fmt: skip
        if not 4 <= int(fitting[1]) <= COST_MAX:
            raise reader.error(value, f"the cost of this hash is not from 4 to {COST_MAX}: make one with "
                               "`htpasswd -nBC 10 NAME`")  # fmt: skip
        try:
            users[key.encode()] = reader.text(value).encode()
        except UnicodeEncodeError:
            raise reader.error(key_node, "a user's name is UTF-8 text") from None
    return users


def _rate(reader: _Reader, node: yaml.Node | None) -> RateLimit | None:
    found = {} if node is None else reader.entries(node, ("interval", "burst"))
    interval = _seconds(reader, found["interval"][1]) if "interval" in found else 0.0
    burst = 0
    if "burst" in found:
        text = reader.text(found["burst"][1])
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise reader.error(found["burst"][1], "expected a whole number from 0 to 999999999")
        burst = int(text)
    if interval == 0:
        return None
    if burst == 0:
        raise reader.error(found["interval"][0], "`burst` is missing or 0, which lets nothing through: write 1 or more")
    return RateLimit(interval_seconds=interval, burst=burst)


def _seconds(reader: _Reader, node: yaml.Node) -> float:
    """A duration as Go writes it: "1m30s"."""
    text = reader.text(node)
    if text == "0":
        return 0.0
    parts = list(_DURATION_PART.finditer(text)) if len(text) <= 64 else []
    if not parts or "".join(part[0] for part in parts) != text:
        raise reader.error(node, "expected a duration with its unit, such as 1s, 500ms or 1m30s")
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if seconds > INTERVAL_SECONDS_MAX:
        raise reader.error(node, "longer than a day, which lets nearly nothing through")
    return seconds
