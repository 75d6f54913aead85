"""What does the web configuration file say, and how long is its certificate valid?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from claimscope.doctor.findings import Finding, Verdict, ok
from claimscope.web.serving.source import Serving, read_serving
from claimscope.web.serving.webconfig import ClientAuth
from claimscope.yamlfile import ConfigError, read_file

_SOON_SECONDS: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFacts:
    """How the web server would be guarded."""

    path: str | None = None  # of the file; None: there is none
    serving: Serving | None = None
    error: str | None = None
    now_unix_seconds: float = 0.0
    authorization: str = "off"


def web_facts(path: str | None, authorization: str, now_unix_seconds: float) -> WebFacts:
    """Reads the file and what it names, as the server would."""
    if path is None:
        return WebFacts(authorization=authorization)
    try:
        serving = read_serving(read_file(Path(path)), path)
    except OSError as error:
        return WebFacts(path=path, error=f"{path}: {error.strerror}", authorization=authorization)
    except ConfigError as error:
        return WebFacts(path=path, error=str(error), authorization=authorization)
    return WebFacts(path=path, serving=serving, now_unix_seconds=now_unix_seconds, authorization=authorization)


def finding(facts: WebFacts) -> Finding:
    """The row of the web server's guards."""
    if facts.error is not None:
        cure = "correct it; nothing starts with a web configuration file that cannot be used"
        return Finding(name="web", verdict=Verdict.FAIL, found=facts.error, cure=cure)
    how = ", ".join(_guards(facts))
    expiry = None if facts.serving is None else facts.serving.expiry_unix_seconds
    if expiry is not None and expiry <= facts.now_unix_seconds:
        cure = "renew it; a running server takes the new one by itself"
        return Finding(name="web", verdict=Verdict.WARN, found=f"{how}; certificate expired {_date(expiry)}", cure=cure)
    if expiry is not None and expiry <= facts.now_unix_seconds + _SOON_SECONDS:
        cure = "renew it; a running server takes the new one by itself"
        return Finding(name="web", verdict=Verdict.WARN, found=f"{how}; certificate expires {_date(expiry)}", cure=cure)
    return ok("web", how if expiry is None else f"{how}; certificate valid until {_date(expiry)}")


def _guards(facts: WebFacts) -> list[str]:
    config = None if facts.serving is None else facts.serving.config
    made = ["plain HTTP" if config is None or config.tls is None else "TLS"]
    if config is not None and config.tls is not None:
        match config.tls.client_auth:
            case ClientAuth.REQUIRE_AND_VERIFY:
                made.append("client certificates")
            case ClientAuth.VERIFY_IF_GIVEN:
                made.append("client certificates where given")
            case ClientAuth.NONE:
                pass
    if config is not None and config.users:
        made.append(f"passwords of {len(config.users)} users")
    if facts.authorization == "kubernetes":
        made.append("tokens of Kubernetes")
    return made if len(made) > 1 else [*made, "open to everybody"]


def _date(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d")
