"""Does every alert of the demo fire when the demo says so, and which resolve? Plays the whole script at its own pace.

    python -m benchmarks.alerts_live

takes six minutes; a test plays the same script in one, and waits for less.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict

from claimscope import demo
from claimscope.sim import script

SECONDS = 360.0
_LINE = re.compile(r"^\+ *(\d+) s  (fires|resolved) +(.*)$")


def happened(lines: list[str]) -> dict[str, list[str]]:
    """What was said of each alert, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if (said := _LINE.match(line)) is not None:
            name, _, things = said[3].partition(": ")
            found[name].append(f"{said[2]} +{said[1]} s ({things})" if things else f"{said[2]} +{said[1]} s")
    return found


async def main() -> None:
    """Plays, and prints a line for each alert."""
    lines: list[str] = []
    await demo.run(profile="h100x8", scenario=None, seconds=SECONDS, say=lines.append)
    said = happened(lines)
    for act in script.SCRIPT:
        for name in act.alerts:
            print(f"+{act.at:3.0f} s  {name:30} {', '.join(said.get(name, ['never fired']))}")
    for name in sorted(said.keys() - {name for act in script.SCRIPT for name in act.alerts}):
        print(f"unasked  {name:30} {', '.join(said[name])}")


if __name__ == "__main__":
    asyncio.run(main())
