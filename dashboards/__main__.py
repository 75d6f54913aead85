"""Writes the boards: `python -m dashboards` their JSON and page, `python -m dashboards preview` their pictures."""

from __future__ import annotations

import sys

from dashboards.catalogue import BOARDS
from dashboards.page import PAGE, text
from dashboards.write import write_json


def main() -> None:
    """Reads the one argument there is."""
    match sys.argv[1:]:
        case []:
            write_json(BOARDS)
            PAGE.write_text(text(BOARDS), encoding="utf-8")
        case ["preview", *uids]:
            from dashboards.preview import preview  # needs claimscope itself, and a browser

            preview([board for board in BOARDS if not uids or board.uid in uids])
        case _:
            sys.exit("usage: python -m dashboards [preview [UID...]]")


if __name__ == "__main__":
    main()
