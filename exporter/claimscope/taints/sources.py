"""Where does the policy of fencing come from, and what is done about a file that is wrong?"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import yaml

from claimscope.config import ConfigError
from claimscope.taints.model import Mode
from claimscope.taints.policy import Policy, read_policy

log = logging.getLogger(__name__)


class PolicySource:
    """A policy file that is read again when it changes; a mode that it does not name is the configured one."""

    def __init__(self, path: Path | None, mode: Mode) -> None:
        self._path = path
        self._mode = mode
        self._seen: tuple[int, int, int] | None = None
        self._policy = Policy(mode=mode)
        self._trouble = ""

    def read(self, now_wall: float) -> Policy:
        """The policy now. Raises ConfigError where the file is wrong; what was good before is then in `current`."""
        if self._path is None:
            return self._policy
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return self._policy
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"taint policy {self._path}: {reason}") from error
        policy = read_policy(text, str(self._path), now_wall)
        named = yaml.safe_load(text) or {}
        self._policy = policy if "mode" in named else msgspec.structs.replace(policy, mode=self._mode)
        self._seen = seen
        return self._policy

    def current(self, now_wall: float) -> Policy:
        """The policy now; of a file that is wrong the last good one, said once."""
        try:
            policy = self.read(now_wall)
        except ConfigError as error:
            if str(error) != self._trouble:
                log.error("the taint policy is not taken, the one before stays: %s", error)
            self._trouble = str(error)
            return self._policy
        if self._trouble:
            log.info("the taint policy %s is taken again", self._path)
        self._trouble = ""
        return policy
