"""Gives the type checker the package as it is installed: build/rooms/tilewright/ with a link for each room and each file of the front door."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "rooms" / "tilewright"

TREE.mkdir(parents=True, exist_ok=True)
wanted = [ROOT / room for room in ("ir", "frontend", "passes", "codegen", "runtime", "tilewright/inspect")] + list((ROOT / "tilewright").glob("*.py"))
for link in TREE.iterdir():  # of files that are gone, or of a checkout that has moved
    if not link.exists() or link.resolve() not in wanted:
        link.unlink()
for place in wanted:
    link = TREE / place.name
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(place, TREE))
