"""Is this container's part alive? For Docker and Compose; Kubernetes asks /livez itself.

A container runs the agent or the controller, so it is alive where one of the default ports answers 200. Whoever
listens elsewhere, or speaks TLS, names the addresses as arguments.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import urllib.request

DEFAULTS = ("http://127.0.0.1:19400/livez", "http://127.0.0.1:19401/livez")
SECONDS = 3.0


def problem(address: str) -> str | None:
    """Why this address does not answer as it should; None if it does."""
    # The certificate is of the name that scrapers use, which is not this loopback address.
    unverified = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(address, timeout=SECONDS, context=unverified):
            return None
    except (OSError, http.client.HTTPException) as error:
        return f"{address}: {error}"


def main(addresses: tuple[str, ...]) -> int:
    """0 if one of them is alive."""
    problems = [found for address in addresses if (found := problem(address)) is not None]
    if len(problems) < len(addresses):
        return 0
    print("\n".join(problems), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:]) or DEFAULTS))
