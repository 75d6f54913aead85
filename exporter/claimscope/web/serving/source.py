"""What does the web configuration file say now, with the certificates that it names?

It is looked at every few seconds. What is new holds for new connections and for the next request; what cannot be used
changes nothing, is said once, and is tried again: a certificate whose key has not arrived yet comes right by itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from claimscope.clock import Clock
from claimscope.watchedfile import WatchedFile
from claimscope.web.serving.tls import make_server
from claimscope.web.serving.webconfig import WebConfig, WebConfigError, read_web_config
from claimscope.yamlfile import ConfigError

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What holds now."""

    config: WebConfig
    context: ssl.SSLContext | None  # None: no TLS
    expiry_unix_seconds: float | None


def serving_of(path: str | None, clock: Clock) -> ServingSource | None:
    """The file of a configuration; None where it names none. Raises WebConfigError."""
    return None if path is None else ServingSource(Path(path), clock)


def read_serving(content: bytes, name: str) -> Serving:
    """What a file and those that it names come to. Raises WebConfigError."""
    config = read_web_config(content, name)
    server = None if config.tls is None else make_server(config.tls, name)
    return Serving(
        config=config,
        context=None if server is None else server.context,
        expiry_unix_seconds=None if server is None else server.expiry_unix_seconds,
    )


class ServingSource:
    """The file, and what it said last that can be used."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Reads it. Raises WebConfigError: nothing is served on other terms than those asked for."""
        self._path, self._clock = path, clock
        self._now: Serving | None = None
        self._file = WatchedFile(path, self._decode, about="the web configuration", beside=_beside)
        try:
            read = self._file.read()
        except WebConfigError:
            raise
        except ConfigError as error:
            raise WebConfigError(f"{error}; name a file that can be read with --web-config-file") from error
        assert read is not None  # noqa: S101 - the first look finds something new
        self._take(read)

    def now(self) -> Serving:
        """What holds now."""
        assert self._now is not None  # noqa: S101 - it was read at the beginning
        return self._now

    def look(self) -> None:
        """Takes what is new."""
        read = self._file.poll()
        if read is not None:
            self._take(read)

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def samples(self) -> list[tuple[str, float]]:
        """How it is doing, as names and values of own families."""
        made = [
            ("web_config_last_reload_successful", float(self._file.up)),
            ("web_config_last_reload_success_timestamp_seconds", self._taken_unix_seconds),
        ]
        expiry = self.now().expiry_unix_seconds
        return made if expiry is None else [*made, ("web_certificate_expiry_timestamp_seconds", expiry)]

    def _take(self, read: Serving) -> None:
        if read.config.http2 and (self._now is None or not self._now.config.http2):
            _log.info("%s: http2 is not offered, HTTP/1.1 is", self._path)
        self._now, self._taken_unix_seconds = read, self._clock.wall_ns() / 1e9
        if read.expiry_unix_seconds is not None and read.expiry_unix_seconds <= self._taken_unix_seconds:
            _log.warning("%s: the certificate has expired; clients will refuse it", self._path)

    def _decode(self, content: bytes) -> Serving:
        return read_serving(content, str(self._path))


def _beside(read: Serving) -> Sequence[Path]:
    return () if read.config.tls is None else read.config.tls.paths
