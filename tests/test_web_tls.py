"""TLS: real handshakes with certificates that openssl made, and their exchange while the server runs."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest

from claimscope.clienttls import client_context
from claimscope.clock import SystemClock
from claimscope.doctor.findings import Verdict
from claimscope.doctor.web import finding, web_facts
from claimscope.sim.cluster import SimulatedCluster
from claimscope.web import client
from claimscope.web.serving.guard import certificate_trouble, client_names
from claimscope.web.serving.limits import Limits
from claimscope.web.serving.source import ServingSource, read_serving
from claimscope.web.serving.tls import certificate_expiry
from claimscope.web.serving.webconfig import WebConfigError
from controller_process import Controller, claimscope, until_found
from serving_help import SECONDS, Served, get, raw, served, until
from tls_files import Authority, Pair

CLIENTS = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"


class Mounted:
    """A Secret as the kubelet mounts it: each file a link through ..data, which is exchanged at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._version = 0
        directory.mkdir()

    def put(self, **files: bytes | str) -> Path:
        """A new version with these files, with `_` for the dot; answers the web configuration's path."""
        self._version += 1
        content = self.directory / f"..version_{self._version}"
        content.mkdir()
        for name, text in files.items():
            (content / name.replace("_", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
            os.utime(content / name.replace("_", "."), (1, 1))
        (self.directory / "..data_tmp").symlink_to(content.name)
        (self.directory / "..data_tmp").rename(self.directory / "..data")
        for name in files:
            link = self.directory / name.replace("_", ".")
            if not link.is_symlink():
                link.symlink_to(f"..data/{link.name}")
        return self.directory / "web.yaml"


def config(more: str = "") -> str:
    return f"tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n{more}"


def files(authority: Authority, pair: Pair, more: str = "") -> dict[str, bytes | str]:
    return {
        "web_yaml": config(more), "tls_crt": pair.certificate.read_bytes(), "tls_key": pair.key.read_bytes(),
        "ca_crt": authority.pair.certificate.read_bytes(),
    }  # fmt: skip


def trusting(authority: Authority, mine: Pair | None = None) -> ssl.SSLContext:
    context = client_context(str(authority.pair.certificate))
    if mine is not None:
        context.load_cert_chain(mine.certificate, mine.key)
    return context


async def name_of(site: Served, context: ssl.SSLContext) -> str:
    """The common name of the certificate that a new connection meets."""
    async with raw(site.port, tls=context) as connection:
        certificate = connection.writer.get_extra_info("peercert")
    return str(certificate["subject"][-1][0][1])


async def test_https_and_its_metrics(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("first")))
    async with served(path) as site:
        assert site.running.url == f"https://127.0.0.1:{site.port}"
        assert await get(site, tls=trusting(authority)) == (200, "gpu_up 1\n")
        samples = {sample.family.removeprefix("claimscope_agent_"): sample.value for sample in site.counters.samples()}
        expiry = samples["web_certificate_expiry_timestamp_seconds"]
        now = datetime.datetime.now(datetime.UTC).timestamp()
        assert 86_400 < expiry - now <= 2 * 86_400
        assert samples["web_config_last_reload_successful"] == 1
        assert 0 <= now - samples["web_config_last_reload_success_timestamp_seconds"] < SECONDS


async def test_who_trusts_another_authority_or_speaks_plain_is_not_served(openssl: str, tmp_path: Path) -> None:
    authority, other = Authority(openssl, tmp_path), Authority(openssl, tmp_path, "other")
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("first")))
    async with served(path) as site:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(site, tls=trusting(other))
        async with raw(site.port) as plain:
            await plain.send(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"gpu_up" not in await plain.ended()
        assert (await get(site, tls=trusting(authority)))[0] == 200
        assert site.counters.cut["handshake"] == 2


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_are_answered(
    openssl: str, tmp_path: Path
) -> None:
    authority = Authority(openssl, tmp_path)
    mounted = Mounted(tmp_path / "web")
    path = mounted.put(**files(authority, authority.sign("first")))
    context = trusting(authority)
    async with served(path) as site, raw(site.port, tls=context) as old:
        assert site.source is not None
        await old.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await old.answer() == b"HTTP/1.1 200 OK"
        mounted.put(**files(authority, authority.sign("second")))
        site.source.look()
        assert await name_of(site, context) == "second"
        await old.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await old.answer() == b"HTTP/1.1 200 OK"
        assert await old.ended() == b""  # and then let go, so that nobody stays on the old one


async def test_a_certificate_without_its_key_keeps_the_old_one_until_the_key_comes(
    openssl: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(openssl, tmp_path)
    first, second = authority.sign("first"), authority.sign("second")
    web = tmp_path / "web"
    web.mkdir()
    (web / "web.yaml").write_text(config())
    (web / "tls.crt").write_bytes(first.certificate.read_bytes())
    (web / "tls.key").write_bytes(first.key.read_bytes())
    async with served(web / "web.yaml") as site:
        assert site.source is not None
        (web / "tls.crt").write_bytes(second.certificate.read_bytes())
        for _ in range(3):
            site.source.look()
        assert await name_of(site, trusting(authority)) == "first"
        assert dict(site.source.samples())["web_config_last_reload_successful"] == 0
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert f"key_file {web / 'tls.key'}: not the key of" in errors[0]
        assert "BEGIN" not in caplog.text
        (web / "tls.key").write_bytes(second.key.read_bytes())
        site.source.look()
        assert await name_of(site, trusting(authority)) == "second"
        assert dict(site.source.samples())["web_config_last_reload_successful"] == 1


async def test_tls_can_be_switched_on_while_the_server_runs(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    mounted = Mounted(tmp_path / "web")
    async with served(mounted.put(web_yaml="")) as site:
        assert (await get(site))[0] == 200
        mounted.put(**files(authority, authority.sign("first")))
        assert site.source is not None
        site.source.look()
        assert await name_of(site, trusting(authority)) == "first"


async def test_client_certificates_are_asked_for_and_probes_stay_open(openssl: str, tmp_path: Path) -> None:
    authority, other = Authority(openssl, tmp_path), Authority(openssl, tmp_path, "other")
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server"), CLIENTS))
    nobody, known = trusting(authority), trusting(authority, authority.sign("prometheus"))
    stranger = trusting(authority, other.sign("stranger"))
    async with served(path) as site:
        assert (await get(site, tls=known))[0] == 200
        assert await get(site, tls=nobody) == (
            401, "this needs a client certificate; present one of an authority in client_ca\n",
        )  # fmt: skip
        assert (await get(site, "/livez", tls=nobody))[0] == 200
        assert (await get(site, "/readyz", tls=nobody))[0] == 200
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await get(site, "/livez", tls=stranger)
        assert site.counters.refused == {"certificate": 1}


async def test_only_clients_of_allowed_names(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    mine = trusting(authority, authority.sign("prometheus"))  # IP:127.0.0.1, DNS:localhost
    mounted = Mounted(tmp_path / "web")
    path = mounted.put(
        **files(authority, authority.sign("server"), f"{CLIENTS}  client_allowed_sans: [prometheus.svc]\n")
    )
    async with served(path) as site:
        assert (await get(site, tls=mine))[0] == 403
        mounted.put(**files(authority, authority.sign("server2"), f"{CLIENTS}  client_allowed_sans: [127.0.0.1]\n"))
        assert site.source is not None
        site.source.look()
        assert (await get(site, tls=mine))[0] == 200


async def test_another_client_authority_holds_from_then_on(openssl: str, tmp_path: Path) -> None:
    authority, newer = Authority(openssl, tmp_path), Authority(openssl, tmp_path, "newer")
    server = authority.sign("server")
    mounted = Mounted(tmp_path / "web")
    path = mounted.put(**files(authority, server, CLIENTS))
    old, new = trusting(authority, authority.sign("old")), trusting(authority, newer.sign("new"))
    async with served(path) as site:
        assert (await get(site, tls=old))[0] == 200
        mounted.put(**{**files(authority, server, CLIENTS), "ca_crt": newer.pair.certificate.read_bytes()})
        assert site.source is not None
        site.source.look()
        assert (await get(site, tls=new))[0] == 200
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await get(site, tls=old)


@pytest.mark.parametrize(
    ("more", "version", "cipher"),
    [
        ("  min_version: TLS13\n", "TLSv1.3", None),
        ("  max_version: TLS12\n", "TLSv1.2", None),
        ("  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256]\n", "TLSv1.2",
         "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("  curve_preferences: [CurveP384]\n", "TLSv1.3", None),
    ],
)  # fmt: skip
async def test_versions_suites_and_curves(
    more: str, version: str, cipher: str | None, openssl: str, tmp_path: Path
) -> None:
    authority = Authority(openssl, tmp_path)
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server"), more))
    async with served(path) as site:
        async with raw(site.port, tls=trusting(authority)) as connection:
            found = connection.writer.get_extra_info("ssl_object")
            assert found.version() == version
            assert cipher is None or found.cipher()[0] == cipher
        if "min_version" in more:
            older = trusting(authority)
            older.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with raw(site.port, tls=older):
                    pass


async def test_certificate_and_key_in_the_file_itself(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    pair = authority.sign("inline")
    indented = [path.read_text().replace("\n", "\n    ") for path in (pair.certificate, pair.key)]
    path = tmp_path / "web.yaml"
    path.write_text(f"tls_server_config:\n  cert: |\n    {indented[0]}\n  key: |\n    {indented[1]}\n")
    async with served(path) as site:
        assert await name_of(site, trusting(authority)) == "inline"


def test_files_that_cannot_be_used(openssl: str, tmp_path: Path) -> None:
    authority, directory = Authority(openssl, tmp_path), tmp_path / "web"
    good = files(authority, authority.sign("server"), CLIENTS)
    encrypted = subprocess.run(
        [openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", "pass:a"],
        capture_output=True, check=True, timeout=20,
    ).stdout  # fmt: skip
    wrong: list[tuple[dict[str, bytes], str]] = [
        ({"tls_crt": b"hunter2"}, f"web.yaml: cert_file {directory}/tls.crt: no certificate in PEM"),
        ({"tls_crt": b"-----BEGIN CERTIFICATE-----\nhunter2A\n-----END CERTIFICATE-----\n"}, "no certificate in PEM"),
        ({"tls_key": b"hunter2"}, f"web.yaml: key_file {directory}/tls.key: not a key in PEM that can be used"),
        ({"tls_key": authority.pair.key.read_bytes()}, "not the key of"),
        ({"tls_key": encrypted}, "the key is encrypted"),
        ({"ca_crt": b"hunter2"}, "no certificates in PEM"),
        ({"ca_crt": b"\xff"}, "no certificates in PEM"),
        ({"tls_crt": b"x" * (2 << 20)}, "this is no PEM file"),
    ]
    mounted = Mounted(directory)
    for change, said in wrong:
        with pytest.raises(WebConfigError) as caught:
            ServingSource(mounted.put(**{**good, **change}), SystemClock())
        assert said in str(caught.value)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(WebConfigError, match="No such file or directory; a path is relative to"):
        read_serving(config().encode(), str(tmp_path / "elsewhere" / "web.yaml"))
    with pytest.raises(WebConfigError, match="name a file that can be read with --web-config-file"):
        ServingSource(tmp_path / "nowhere.yaml", SystemClock())


def test_when_a_certificate_ends(openssl: str, tmp_path: Path) -> None:
    """As openssl says it, also far off, where X.509 writes the year with four digits."""
    for days in (1, 30 * 365):
        made = subprocess.run(
            [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             str(days), "-subj", "/CN=a", "-keyout", str(tmp_path / "k")],
            capture_output=True, check=True, timeout=20,
        ).stdout.decode()  # fmt: skip
        said = subprocess.run(
            [openssl, "x509", "-noout", "-enddate"], input=made.encode(), capture_output=True, check=True, timeout=20
        ).stdout.decode()
        expected = ssl.cert_time_to_seconds(said.strip().removeprefix("notAfter="))
        assert certificate_expiry(ssl.PEM_cert_to_DER_cert(made)) == expected
    for broken in (b"", b"0", b"0\x82", b"0\x03\x30\x01\x00", b"\x31\x00", b"0\x84\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match=r"\w"):
            certificate_expiry(broken)


def test_names_as_go_writes_them() -> None:
    found = client_names(
        {"subjectAltName": (("DNS", "a.svc"), ("IP Address", "0:0:0:0:0:0:0:1"), ("IP Address", "<invalid>"),
                            ("URI", "spiffe://x/y"), ("email", "a@b"), ("DirName", "c"))}
    )  # fmt: skip
    assert found == {"a.svc", "::1", "spiffe://x/y", "a@b"}


def test_a_certificate_is_looked_at_only_where_one_is_required(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    path = Mounted(tmp_path / "web").put(
        **files(authority, authority.sign("a"), CLIENTS.replace("RequireAndVerify", "VerifyClientCertIfGiven #"))
    )
    tls = ServingSource(path, SystemClock()).now().config.tls
    assert tls is not None
    assert certificate_trouble(tls, None) is None


async def test_the_command_line_asks_a_controller_behind_tls(openssl: str, tmp_path: Path) -> None:
    authority, other = Authority(openssl, tmp_path), Authority(openssl, tmp_path, "other")
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server"), CLIENTS))
    mine = authority.sign("me")
    async with served(path) as site:
        known = client.tls_context(str(authority.pair.certificate), str(mine.certificate), str(mine.key))
        with pytest.raises(client.ClientError, match="answered 404 with something else"):
            await client.explanation(site.running.url, "a", "b", tls=known)
        nobody = client.tls_context(str(authority.pair.certificate))
        with pytest.raises(client.ClientError, match="this needs a client certificate"):
            await client.explanation(site.running.url, "a", "b", tls=nobody)
        with pytest.raises(client.ClientError, match=r"no controller answers at https://.*CERTIFICATE_VERIFY_FAILED"):
            await client.explanation(site.running.url, "a", "b", tls=client.tls_context(str(other.pair.certificate)))
    with pytest.raises(client.ClientError, match=r"--ca-file .*: No such file"):
        client.tls_context(str(tmp_path / "nothing"))
    with pytest.raises(client.ClientError, match=r"--cert-file .*: KEY_VALUES_MISMATCH"):
        client.tls_context(None, str(mine.certificate), str(other.pair.key))


async def test_half_handshakes_give_way_too(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server")))
    async with served(path, limits=Limits(connections=5)) as site, contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(raw(site.port, source="127.0.0.2"))
        assert (await get(site, tls=trusting(authority)))[0] == 200
        await until(lambda: site.counters.cut["evicted"] >= 45)
        assert site.counters.connections <= 5


def test_doctor_tells_how_the_server_is_guarded(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    path = str(Mounted(tmp_path / "web").put(**files(authority, authority.sign("server"), CLIENTS)))
    now = datetime.datetime.now(datetime.UTC)
    soon = (now + datetime.timedelta(days=2)).strftime("%Y-%m-%d")
    assert finding(web_facts(None, "off", 0.0)).line == "ok    web           plain HTTP, open to everybody"
    assert finding(web_facts(None, "kubernetes", 0.0)).line == "ok    web           plain HTTP, tokens of Kubernetes"
    early = finding(web_facts(path, "off", now.timestamp() - 30 * 86_400))
    assert early.line == f"ok    web           TLS, client certificates; certificate valid until {soon}"
    due = finding(web_facts(path, "off", now.timestamp()))
    assert (due.verdict, due.found) == (Verdict.WARN, f"TLS, client certificates; certificate expires {soon}")
    late = finding(web_facts(path, "off", now.timestamp() + 30 * 86_400))
    assert (late.verdict, late.found) == (Verdict.WARN, f"TLS, client certificates; certificate expired {soon}")
    wrong = finding(web_facts(str(tmp_path), "off", 0.0))
    assert (wrong.verdict, wrong.found) == (Verdict.FAIL, f"{tmp_path}: Is a directory")


async def test_half_a_handshake_is_ended(openssl: str, tmp_path: Path) -> None:
    authority = Authority(openssl, tmp_path)
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server")))
    async with served(path, limits=Limits(handshake_seconds=0.2)) as site, raw(site.port) as half:
        hello = ssl.MemoryBIO()
        wanted = trusting(authority).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            wanted.do_handshake()
        await half.send(hello.read())
        assert (await get(site, tls=trusting(authority)))[0] == 200
        await half.ended()
        assert site.counters.cut["handshake"] == 1


async def test_the_controller_is_guarded_by_its_file_and_explains_to_who_shows_a_certificate(
    openssl: str, tmp_path: Path
) -> None:
    authority = Authority(openssl, tmp_path)
    mine = authority.sign("me")
    path = Mounted(tmp_path / "web").put(**files(authority, authority.sign("server"), CLIENTS))
    async with (
        SimulatedCluster.open(clock=SystemClock()) as cluster,
        Controller(tmp_path, "--api-server-url", cluster.url, "--web-config-file", str(path)) as controller,
    ):
        assert controller.url.startswith("https://127.0.0.1:")
        trusted = ("--controller", controller.url, "--ca-file", str(authority.pair.certificate))
        shown = ("--cert-file", str(mine.certificate), "--key-file", str(mine.key))
        await controller.until_said("leading")
        refused = await claimscope("explain", "claim", "no/such", *trusted)
        assert refused[2] == (
            "claimscope: this needs a client certificate; present one of an authority in client_ca\n"
        )

        async def explained() -> str | None:
            errors = (await claimscope("explain", "claim", "no/such", *trusted, *shown))[2]
            return errors if "does not exist" in errors else None  # before: the cluster is still being read

        assert await until_found(explained, SECONDS, lambda: controller.log)
