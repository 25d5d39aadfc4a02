"""Python processes that start warm: forked from one that has imported torch and transformers, and nothing of ours.

`warm_python()` stands where sys.executable stands in the command of a program. What differs from a cold start: PYTHONHASHSEED and switches
that torch reads at import are those of the tests; a test of either, or of what gets imported, starts sys.executable.
"""

import atexit
import contextlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from functools import cache
from pathlib import Path

IMPORTED = ("torch", "torch.export", "torch._decomp", "transformers", "transformers.modeling_utils", "transformers.models.llama.modeling_llama")
CLIENT = """#!{python} -IS
import array, json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    server.sendmsg([len(request).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    server.sendall(request)
    code = int(server.recv(16) or b"1")
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@cache
def warm_python() -> str:
    """A program that takes `-m MODULE`, `-c CODE` or a file, and arguments, as Python does; made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="tilewright-python-"))
    address, client = str(folder / "server"), folder / "python"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdin and server.stdout
    atexit.register(stop, server, folder)
    assert server.stdout.readline() == b"ready\n"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    return str(client)


def stop(server: subprocess.Popen, folder: Path) -> None:
    server.stdin.close()  # it ends when its input does, also where this process is killed
    server.wait()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def serve(address: str) -> None:
    for name in IMPORTED:
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> None:
    """In a child of the server: starts the program, waits for it, and tells how it ended."""
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    text = b""
    while len(text) < int.from_bytes(head, "big"):
        text += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        connection.close()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        os._exit(run(*json.loads(text)))
    connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def run(words: list[str], cwd: str, environment: dict[str, str]) -> int:
    os.chdir(cwd)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    first = [] if environment.get("PYTHONSAFEPATH") else [cwd if words[0] in ("-m", "-c") else str(Path(words[0]).resolve().parent)]
    sys.path[:] = [*first, *paths, *(path for path in sys.path if path != str(Path(__file__).parent))]
    os.environ.clear()
    os.environ.update(environment)
    code = run_as_main(words)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_as_main(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
