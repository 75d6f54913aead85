"""How does the controller ask a node's agent to let NVML go, and what does the agent answer?

Both stand as annotations in the agent's Lease. The controller asks first to be told how many processes use the GPUs
("watch"), then to let NVML go once none is left ("release"); taking the annotation away gives NVML back. Each names
the maintenance that it is about, so that an answer to an earlier one is not believed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from claimscope.taints.model import KEY_DOMAIN

log = logging.getLogger(__name__)

ASK: Final = f"{KEY_DOMAIN}/maintenance-ask"
ANSWER: Final = f"{KEY_DOMAIN}/maintenance-answer"
UNTOLD_SECONDS: Final = 60.0  # for so long processes cannot be counted before NVML is let go without a count

_BYTES_MAX: Final = 1024


class Ask(msgspec.Struct, frozen=True):
    """What the controller wants."""

    uid: str
    do: Literal["watch", "release"]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the agent says."""

    uid: str
    released: bool = False
    processes: int | None = None  # as last counted, before NVML was let go; None: it does not tell


def ask_text(ask: Ask | None) -> str | None:
    """The annotation; None: there is none."""
    return None if ask is None else f"{ask.do} {ask.uid}"


def read_ask(text: str) -> Ask | None:
    """What an annotation asks for; nothing where it cannot be read."""
    do, _, uid = text.partition(" ")
    if do == "watch" and uid:
        return Ask(uid=uid, do="watch")
    return Ask(uid=uid, do="release") if do == "release" and uid else None


def answer_text(answer: Answer) -> str:
    """The annotation of an answer."""
    return msgspec.json.encode(answer).decode()


def read_answer(text: str | None) -> Answer | None:
    """What an agent says; nothing where it cannot be read."""
    if not text or len(text) > _BYTES_MAX:
        return None
    try:
        return msgspec.json.decode(text, type=Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class Nvml(Protocol):
    """What is done with NVML; the supervisor of the sampler can."""

    def release(self) -> None:
        """Lets NVML go."""

    def acquire(self) -> None:
        """Takes NVML up again."""

    def count_processes(self, on: bool) -> None:
        """Has the processes on each device told, or no more."""


@dataclass(slots=True)
class Responder:
    """The agent's side: does what is asked, and says how far it is."""

    nvml: Nvml
    _ask: Ask | None = None
    _counted: int | None = None  # processes, the last time that they could be counted for this maintenance
    _uncounted_ns: int | None = None  # since when they cannot be
    _let_go: bool = False  # by us: what a person let go is not taken up again

    def hear(self, text: str) -> None:
        """Takes the annotation as it is now, "" for none."""
        ask = read_ask(text)
        if ask == self._ask:
            return
        log.info("maintenance: asked to %s", text or "go on as always")
        if self._let_go and (ask is None or ask.do != "release"):
            self._let_go = False
            self.nvml.acquire()
        self.nvml.count_processes(ask is not None)
        if ask is None or self._ask is None or ask.uid != self._ask.uid:
            self._counted = self._uncounted_ns = None
        self._ask = ask

    def begin(self, said: Answer | None = None) -> None:
        """NVML has not been taken up yet: it is not where `said`, what this agent answered last, is that it let it go.

        Otherwise processes may run that nobody has counted.
        """
        ask = self._ask
        if ask is not None and ask.do == "release" and said is not None and said.uid == ask.uid and said.released:
            self._counted = said.processes
            self._release()

    def look(self, *, processes: int | None, released: bool, now_ns: int) -> str | None:
        """Lets NVML go when it is time; answers the annotation, None while nothing is asked."""
        ask = self._ask
        if ask is None:
            return None
        if not released:
            self._count(processes, now_ns)
            if ask.do == "release" and not self._let_go and self._may_release(processes, now_ns):
                self._release()
        return answer_text(Answer(uid=ask.uid, released=released, processes=self._counted if released else processes))

    def _count(self, processes: int | None, now_ns: int) -> None:
        if processes is not None:
            self._counted, self._uncounted_ns = processes, None
        elif self._uncounted_ns is None:
            self._uncounted_ns = now_ns

    def _may_release(self, processes: int | None, now_ns: int) -> bool:
        """None is left; or none was ever seen, and for a while they cannot be counted."""
        if processes is not None or self._counted or self._uncounted_ns is None:
            return processes == 0
        return now_ns - self._uncounted_ns >= UNTOLD_SECONDS * 1e9

    def _release(self) -> None:
        log.info("maintenance: NVML is let go")
        self._let_go = True
        self.nvml.release()
