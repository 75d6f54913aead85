"""Where does the policy of fencing come from, and what is done about a file that is wrong?"""

from __future__ import annotations

from pathlib import Path

from claimscope.taints.model import Mode
from claimscope.taints.policy import Policy, read_policy
from claimscope.watchedfile import WatchedFile


class PolicySource:
    """A policy file that is read again when it changes; a mode that it does not name is the configured one."""

    def __init__(self, path: Path | None, mode: Mode) -> None:
        self._mode = mode
        self._policy = Policy(mode=mode)
        self._now_wall = 0.0
        self._name = str(path)
        self._file = None if path is None else WatchedFile(path, self._decode, about="the taint policy")

    def read(self, now_wall: float) -> Policy:
        """The policy now. Raises ConfigError where the file is wrong."""
        self._now_wall = now_wall
        return self._take(None if self._file is None else self._file.read())

    def current(self, now_wall: float) -> Policy:
        """The policy now; of a file that is wrong the last good one, said once."""
        self._now_wall = now_wall
        return self._take(None if self._file is None else self._file.poll())

    def _take(self, changed: Policy | None) -> Policy:
        self._policy = self._policy if changed is None else changed
        return self._policy

    def _decode(self, content: bytes) -> Policy:
        return read_policy(content, self._name, self._now_wall, self._mode)
