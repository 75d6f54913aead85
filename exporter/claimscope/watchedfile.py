"""What does a file say that changes while we run, and what holds while it cannot be used?

Looking costs one stat as long as nothing changes. It follows links: Kubernetes replaces a mounted ConfigMap or Secret
by exchanging the one link `..data`, so that a file is another one from one moment to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from claimscope.yamlfile import ConfigError, read_file

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
_Stamp = tuple[int, int, int]


def _stamps(paths: Sequence[Path]) -> tuple[_Stamp | None, ...]:
    found: list[_Stamp | None] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)  # reading it says why
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


class WatchedFile(Generic[Value]):
    """One file. One that cannot be used changes nothing, is said once, and is tried again at every look."""

    def __init__(
        self, path: Path, decode: Callable[[bytes], Value], *, about: str,
        beside: Callable[[Value], Sequence[Path]] = lambda _: (),
    ) -> None:
        """`decode` raises ConfigError; `about` is what the file is, for people: "the taint policy".

        `beside` names further files that a value was made of: where one of them changes, all is read again.
        """
        self._path = path
        self._decode = decode
        self._about = about
        self._beside = beside
        self._paths: tuple[Path, ...] = (path,)
        self._seen: tuple[_Stamp | None, ...] | None = None  # of the content that is in force
        self._trouble: str | None = None

    @property
    def up(self) -> bool:
        """What is in force is what the file said at the last look."""
        return self._trouble is None

    def read(self) -> Value | None:
        """The content, where it is another one than that in force. Raises ConfigError."""
        seen = _stamps(self._paths)
        if seen == self._seen:
            return None
        value = self._decode(self._content())
        paths = (self._path, *self._beside(value))
        if paths != self._paths:  # what stands beside is stamped before it is read, so that no change is missed
            seen = _stamps(paths)
            value = self._decode(self._content())
        self._paths, self._seen = paths, seen
        return value

    def _content(self) -> bytes:
        try:
            return read_file(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from error

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
