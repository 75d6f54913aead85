"""Is the server the one that its authority says? Checked as Go's clients and curl do, on every version of Python."""

from __future__ import annotations

import ssl


def client_context(cafile: str | None = None) -> ssl.SSLContext:
    """Trusts the authorities of the file, or the system's.

    Python 3.13 added VERIFY_X509_STRICT to its default, which refuses authorities without key identifiers or key usage,
    as those of EKS clusters are (kubernetes-client/python 2394). Chain, name and dates are checked all the same.
    """
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
