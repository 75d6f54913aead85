"""What a web configuration file says, and how it is refused where it says something else."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claimscope.web.serving.webconfig import (
    CIPHERS,
    ClientAuth,
    RateLimit,
    WebConfig,
    WebConfigError,
    read_web_config,
)

HASH = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
TLS = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n"


def read(text: str) -> WebConfig:
    return read_web_config(text.encode(), "/etc/claimscope/web/web-config.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "tls_server_config:\n", "tls_server_config: {}\nrate_limit:\n"])
def test_a_file_that_says_nothing_asks_for_nothing(text: str) -> None:
    assert read(text) == WebConfig()


def test_everything_at_once() -> None:
    """The toolkit's own example, with each key."""
    found = read(
        f"""\
tls_server_config:
  cert_file: tls.crt
  key_file: /keys/tls.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ../ca/ca.crt
  client_allowed_sans: [prometheus.monitoring.svc, 10.0.0.7]
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    - TLS_AES_128_GCM_SHA256
  curve_preferences: [CurveP256]
  prefer_server_cipher_suites: no
http_server_config:
  http2: true
  headers:
    X-Frame-Options: deny
    Strict-Transport-Security: max-age=31536000
    X-XSS-Protection: ""
basic_auth_users:
  alice: {HASH}
rate_limit:
  interval: 1m30s
  burst: 20
"""
    )
    tls = found.tls
    assert tls is not None
    assert tls.paths == (
        Path("/etc/claimscope/web/tls.crt"), Path("/keys/tls.key"), Path("/etc/claimscope/web/../ca/ca.crt"),
    )  # fmt: skip
    assert (tls.client_auth, tls.client_allowed_sans) == (
        ClientAuth.REQUIRE_AND_VERIFY, frozenset({"prometheus.monitoring.svc", "10.0.0.7"}),
    )  # fmt: skip
    assert (tls.minimum, tls.maximum) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert (tls.ciphers, tls.curve, tls.server_chooses) == (("ECDHE-RSA-AES128-GCM-SHA256",), "prime256v1", False)
    assert found.headers == {"X-Frame-Options": "deny", "Strict-Transport-Security": "max-age=31536000"}
    assert (dict(found.users), found.http2) == ({b"alice": HASH.encode()}, True)
    assert found.rate_limit == RateLimit(interval_seconds=90.0, burst=20)


def test_every_cipher_is_one_that_openssl_knows() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in filter(None, CIPHERS.values()):
        context.set_ciphers(name)
        assert name in {each["name"] for each in context.get_ciphers()}


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("tls_server_confg:\n  cert_file: a\n", ":1:1",
         "unknown key `tls_server_confg`: did you mean `tls_server_config`?"),
        (TLS + "  min_versoin: TLS12\n", ":4:3", "unknown key `min_versoin`: did you mean `min_version`?"),
        ("http_server_config:\n  headers:\n    X-Powered-By: us\n", ":3:5", "unknown key: known are"),
        ("hunter-secret: 1\n", ":1:1", "unknown key: known are `tls_server_config`"),
        ("tls_server_config:\n  key-hunter-secret: 1\n", ":2:3", "unknown key: known are `cert`"),
        ("http_server_config:\n  headers:\n    X-Frame-Options: allow\n", ":3:22", "`deny`, `sameorigin`"),
        ('http_server_config:\n  headers:\n    X-XSS-Protection: "0\\r\\nSet-Cookie: a"\n', ":3:23", "one line"),
        ("http_server_config:\n  http2: perhaps\n", ":2:10", "`true` or `false`"),
        ("tls_server_config:\n  cert_file: tls.crt\n", ":2:3", "`key_file` is missing"),
        ("tls_server_config:\n  min_version: TLS12\n", ":2:3", "`cert_file` is missing"),
        (TLS + "  cert: |\n    PEM\n", ":2:3", "`cert` stands here as well"),
        (TLS + "  key_file: other\n", ":4:3", "a second time"),
        *(
            (f'tls_server_config:\n  cert_file: "a{odd}"\n  key_file: b\n', ":2:14", "printable")
            for odd in ("\\0", "\\ud800", "\\e")
        ),
        (TLS + "  min_version: TLS10\n", ":4:16", "RFC 8996"),
        (TLS + "  max_version: SSL30\n", ":4:16", "unknown value: known are `TLS12`, `TLS13`"),
        (TLS + "  min_version: TLS13\n  max_version: TLS12\n", ":4:16", "above max_version"),
        (TLS + "  client_auth_type: RequireAnyClientCert\n", ":4:21", "anybody's certificate would do"),
        (TLS + "  client_auth_type: RequestClientCert\n", ":4:21", "use RequireAndVerifyClientCert"),
        (TLS + "  client_auth_type: RequireAndVerify\n", ":4:21", "did you mean `RequireAndVerifyClientCert`?"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert\n", ":4:3", "`client_ca_file` is missing"),
        (TLS + "  client_ca_file: ca.crt\n", ":4:3", "no client is asked for a certificate"),
        (TLS + "  client_allowed_sans: [a]\n", ":4:3", "only with RequireAndVerifyClientCert"),
        (TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca\n  client_allowed_sans: []\n",
         ":6:3", "would let nobody in"),
        (TLS + "  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", ":4:19", "unknown value: did you mean `TLS_"),
        (TLS + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", ":4:3", "no suite of TLS 1.2 is left"),
        (TLS + "  curve_preferences: [X25519, CurveP256]\n", ":4:3", "OpenSSL's whole list"),
        (TLS + "  curve_preferences: CurveP256\n", ":4:22", "expected a list"),
        ("basic_auth_users:\n  alice: hunter2\n", ":2:10", "no bcrypt hash"),
        ("basic_auth_users:\n  alice: 12345\n", ":2:10", "no bcrypt hash"),
        (f"basic_auth_users:\n  alice: {HASH.replace('$10$', '$15$')}\n", ":2:10", "not from 4 to 14"),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", ":2:3", "no colon"),
        ("basic_auth_users: [alice]\n", ":1:19", "expected `key: value` lines"),
        ("rate_limit:\n  interval: 1s\n", ":2:3", "`burst` is missing"),
        ("rate_limit:\n  interval: 1\n  burst: 1\n", ":2:13", "with its unit"),
        ("rate_limit:\n  interval: 1s\n  burst: -1\n", ":3:10", "whole number"),
        ("rate_limit:\n  interval: 48h\n  burst: 1\n", ":2:13", "longer than a day"),
        ("- a\n", ":1:1", "expected `key: value` lines"),
        ("a: [\n", ":2:1", "not YAML"),
        ("basic_auth_users:\n  alice: *hunter2\n", ":2:10", "not YAML: found undefined alias; check quotes"),
        ("basic_auth_users:\n  alice: !!timestamp hunter2\n", ":2:10", "no bcrypt hash"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_cure_and_without_its_value(text: str, where: str, said: str) -> None:
    with pytest.raises(WebConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith(f"/etc/claimscope/web/web-config.yaml{where}: ")
    assert said in message
    for secret in ("hunter2", "hunter-secret", "12345", HASH[7:], "Set-Cookie"):
        assert secret not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"a: \x00\n", "not YAML"),
        (b"[" * 1500, "not YAML"),
        (b"#" * 300_000, "more than 262144 bytes"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_file_of_settings(content: bytes, said: str) -> None:
    with pytest.raises(WebConfigError, match=said):
        read_web_config(content, "web.yaml")


SECRET = "s3cr3tS3CR3T0123456789"
_WORDS = st.sampled_from(
    ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit", "cert", "key", "cert_file",
     "key_file", "client_ca", "client_auth_type", "client_allowed_sans", "min_version", "cipher_suites",
     "curve_preferences", "headers", "http2", "interval", "burst", "RequireAndVerifyClientCert", "TLS13", "CurveP256",
     "1s", "true", "0", "null", "~", "<<", "!!int", "!!binary", "&a", "*a", "2001-01-01", "1e999", "\u2028", "nosniff",
     "X-Frame-Options"]
)  # fmt: skip
_VALUES = st.one_of(
    st.just(SECRET), st.just(f"!!int {SECRET}"), st.just(f"*{SECRET}"), st.just(f"'{SECRET}"), st.just(f'"\\{SECRET}"'),
    st.just(f"%{SECRET}"), st.just(f"!{SECRET} x"), st.just(f"|{SECRET}"), st.just(f"$2y$10${SECRET}"), _WORDS,
)  # fmt: skip
_KEYS = st.one_of(_WORDS, st.just(f"$2y$10${SECRET}"), st.text(max_size=5))


def shown_of(content: bytes) -> str:
    """What a log could show of a file: what it says, or why it is refused."""
    try:
        return repr(replace(read_web_config(content, "web.yaml"), tls=None, headers={}))  # no secrets, and shown
    except WebConfigError as error:
        return str(error)


def _trees(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    mapping = st.lists(st.tuples(_KEYS, of), max_size=4).map(
        lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    )
    return st.one_of(mapping, st.lists(of, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"))


@settings(max_examples=300)
@given(text=st.recursive(_VALUES, _trees, max_leaves=12))
def test_any_file_is_either_a_configuration_or_refused_without_its_secrets(text: str) -> None:
    """A secret may stand anywhere but for a name of a key, which is shown."""
    assert SECRET not in shown_of(text.encode(errors="replace"))


@settings(max_examples=300)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_either_a_configuration_or_refused(content: bytes) -> None:
    assert shown_of(content).startswith(("web.yaml", "WebConfig("))
