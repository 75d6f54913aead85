"""The process that evaluates CEL: `python -m claimscope.cel.worker`, started by claimscope.cel.process.

Reads frames from standard input and answers each on standard output until the input ends. It holds nothing but
compiled expressions, so that it may be killed at any time.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import BinaryIO, Final

import msgspec

from claimscope.cel.evaluator import Answer, Evaluator
from claimscope.cel.process import LENGTH, Question

_LONGEST_BATCH_SECONDS: Final = 30  # whoever asked has given up long before, or is dead
_LARGEST_BYTES: Final = 2 << 30


def main() -> None:
    """Answers until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    resource.setrlimit(resource.RLIMIT_AS, (_LARGEST_BYTES, _LARGEST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(Evaluator(), sys.stdin.buffer, sys.stdout.buffer)


def serve(evaluator: Evaluator, requests: BinaryIO, answers: BinaryIO) -> None:
    """Says that it is ready, then answers every frame of `requests` on `answers`."""
    _write(answers, Answer())
    while len(header := requests.read(LENGTH.size)) == LENGTH.size:
        body = requests.read(LENGTH.unpack(header)[0])
        question = msgspec.json.decode(body, type=Question)
        signal.alarm(_LONGEST_BATCH_SECONDS)  # unhandled, it ends the process even inside native code
        answer = evaluator.evaluate(question.expression, question.devices)
        signal.alarm(0)
        _write(answers, answer)


def _write(answers: BinaryIO, answer: Answer) -> None:
    body = msgspec.json.encode(answer)
    answers.write(LENGTH.pack(len(body)) + body)
    answers.flush()


if __name__ == "__main__":
    main()
