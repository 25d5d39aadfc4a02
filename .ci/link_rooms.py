"""Gives the type checker the package as it is installed: build/rooms/tilewright/ with the front door's files and a link for each room."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "rooms" / "tilewright"

TREE.mkdir(parents=True, exist_ok=True)
for room in ("ir", "frontend", "passes", "codegen", "runtime"):
    link = TREE / room
    if not link.is_symlink():
        link.symlink_to(ROOT / room)
for file in (ROOT / "tilewright").glob("*.py"):
    link = TREE / file.name
    if not link.is_symlink():
        link.symlink_to(file)
