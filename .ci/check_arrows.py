"""Holds the arrows between rooms: which room may import which. Exits 1 and names each import that breaks them."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "ir": ["tilewright.ir"],
    "frontend": ["tilewright.frontend", "tilewright.ir"],
    "passes": ["tilewright.passes", "tilewright.ir"],
    "codegen": ["tilewright.codegen", "tilewright.ir"],
    "runtime": ["tilewright.runtime", "tilewright.ir.manifest", "tilewright.ir.errors"],
}
TORCH_IN_IR = {"ir/reference.py", "ir/interpreter.py"}


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += (
                [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names] if node.level == 0 else [(node.lineno, "relative")]
            )
    return found


def problems(room: str) -> list[str]:
    found = []
    for file in sorted((ROOT / room).rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        text = file.read_text(encoding="utf-8")
        typing_only = {
            n.lineno
            for b in ast.walk(ast.parse(text))
            if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
            for n in ast.walk(b)
            if hasattr(n, "lineno")
        }
        for line, name in imported(ast.parse(text)):
            if name == "relative":
                found.append(f"{where}:{line}: relative import; write tilewright.{room}...")
            elif name.startswith("tilewright") and not any(
                name == allowed or name.startswith(allowed + ".") for allowed in MAY_IMPORT[room]
            ):
                found.append(f"{where}:{line}: {room} may not import {name}; it may import {', '.join(MAY_IMPORT[room])}")
            elif room == "ir" and name.split(".")[0] == "torch" and where not in TORCH_IN_IR and line not in typing_only:
                found.append(f"{where}:{line}: ir imports torch only in {', '.join(sorted(TORCH_IN_IR))}")
    return found


if __name__ == "__main__":
    every = [problem for room in MAY_IMPORT for problem in problems(room)]
    print("\n".join(every) if every else "arrows hold")
    sys.exit(bool(every))
