"""Prints every row, or those named: `python -m tests.bench step-full-vs-l1`."""
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from crlsr.core import nearest


def rows() -> dict[str, Callable[[], str]]:
    "All rows: those of this folder's modules, by name."
    found: dict[str, Callable[[], str]] = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        found |= importlib.import_module(f"tests.bench.{path.stem}").ROWS
    return found


def main(names: list[str]) -> int:
    found = rows()
    for name in names or found:
        if name not in found:
            print(f"bench: no row '{name}'{nearest(name, found) or '; rows: ' + ', '.join(found)}", file=sys.stderr)
            return 2
        print(f"{name}: {found[name]()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
