"""Process that compiles kernels for tilewright.codegen.aot: a JSON line per job in, a JSON line (null, or the error's parts) out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tilewright.codegen.aot import write_entry
from tilewright.codegen.aot_kernel import compile_kernel
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Kernel


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the compiler prints must not look like a reply
    for line in sys.stdin:
        replies.write(json.dumps(_compile(json.loads(line))) + "\n")
        replies.flush()


def _compile(request: dict[str, Any]) -> tuple[str, str, str] | None:
    fields = request["kernel"]
    kernel = Kernel(**{**fields, "parameters": tuple((name, type_name) for name, type_name in fields["parameters"]), "binaries": {}, "tuned": None})
    try:
        compiled = compile_kernel(kernel, request["source"], request["arch"], tuple(request["modules"]))
        write_entry(Path(request["cache"]), request["key"], compiled)
    except CodegenError as error:
        return error.where, error.problem, error.remedy
    return None


if __name__ == "__main__":
    main()
