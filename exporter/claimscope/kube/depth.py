"""How is JSON read that is nested deeper than a decoder goes?

Whoever may create a claim may nest its opaque parameters as deep as the API server allows (10,000 levels in Go's
encoding/json), and msgspec stops at Python's recursion limit with RecursionError, also in what nobody reads. One such
claim must not keep all others from being read.
"""

from __future__ import annotations

import re
from typing import Final

LEVELS: Final = 100  # what is read of any kind is nested some twelve levels deep
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def shallow(data: bytes) -> bytes:
    """The same JSON with null in place of everything that is deeper; what is no JSON stays none."""
    kept: list[bytes] = []
    depth, since = 0, 0
    for token in _TOKEN.finditer(data):
        char = data[token.start()]
        if char in b"[{":
            depth += 1
            if depth == LEVELS + 1:
                kept += (data[since : token.start()], b"null")
        elif char in b"]}":
            depth -= 1
            if depth == LEVELS:
                since = token.end()
            if depth < 0:
                break  # no JSON: the decoder says so
    if depth <= LEVELS:
        kept.append(data[since:])
    return b"".join(kept)
