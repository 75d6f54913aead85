"""What does a file say that changes while we run, and what holds while it cannot be used?

Looking costs one stat as long as nothing changes. It follows links: Kubernetes replaces a mounted ConfigMap or Secret
by exchanging the one link `..data`, so that a file is another one from one moment to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from claimscope.yamlfile import ConfigError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class WatchedFile(Generic[Value]):
    """One file. One that cannot be used changes nothing, is said once, and is tried again at every look."""

    def __init__(self, path: Path, decode: Callable[[bytes], Value], *, about: str) -> None:
        """`decode` raises ConfigError; `about` is what the file is, for people: "the taint policy"."""
        self._path = path
        self._decode = decode
        self._about = about
        self._seen: tuple[int, int, int] | None = None  # of the content that is in force
        self._trouble: str | None = None

    @property
    def up(self) -> bool:
        """What is in force is what the file said at the last look."""
        return self._trouble is None

    def read(self) -> Value | None:
        """The content, where it is another one than that in force. Raises ConfigError."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return None
            content = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from error
        value = self._decode(content)
        self._seen = seen
        return value

    def poll(self) -> Value | None:
        """The same; where it cannot be used, that is logged instead."""
        try:
            value = self.read()
        except ConfigError as error:
            if str(error) != self._trouble:
                logger.error("%s is not taken, what was in force before stays: %s", self._about, error)
            self._trouble = str(error)
            return None
        if value is not None:
            logger.info("%s is in force as %s says", self._about, self._path)
        elif self._trouble is not None:
            logger.info("%s can be read again: %s", self._about, self._path)
        self._trouble = None
        return value
