"""The files of an engine directory: what its manifest says of them, and their sha256, taken by threads while other work goes on.

Takes no torch, so that hashing starts before torch is imported, which takes longer. Knows no tensor and no device.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Manifest
from tilewright.runtime.progress import Advance, ignore

MOST_THREADS = 16
PIECE_BYTES = 32 << 20  # read and hashed at a time: long, as a thread needs the GIL between two, and an import gives it up seldom


class EngineFiles:
    """Raises EngineError at once for what is no engine of this version, or lacks files. Hashing goes on inside `with`, in threads that end there.

    With `verify`, `check` promises that a file has the hash that the manifest gives it, and was not written to, as far as its size and
    its time of change tell, between this object's making and the check: so what was read of it in between is what was hashed. Files are
    read by `read`, never mapped: one that is cut short meanwhile is an error, not a fault.
    """

    def __init__(self, directory: str | Path, *, verify: bool = True) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise EngineError(f"engine {directory}", "no such directory", f"build one with: tilewright build MODEL {directory}")
        self.manifest = Manifest.read(self.directory)
        self.weights = list(dict.fromkeys(weight.file for weight in self.manifest.weights))  # names of files
        self._states = check_names(self.manifest, self.directory)
        self._verify = verify
        self._digests: dict[str, Future[str]] = {}  # by name
        self._left: set[str] = set()  # names of files that are hashed elsewhere
        self._stopped = threading.Event()
        self._threads = ThreadPoolExecutor(count_threads(), thread_name_prefix="engine-files")

    def __enter__(self) -> EngineFiles:
        weights = sorted(self.weights, key=lambda name: -self._states[name].num_bytes)  # no long one is left for the end
        others = [name for name in self.manifest.files if name not in set(weights)]  # few bytes; wanted first
        if self._verify:
            self._digests = {name: self._threads.submit(self._hash, name) for name in [*others, *weights]}
        elif self.manifest.target != "cpu":  # there, tensors are the mapped files, and bytes are read when they are used
            for name in weights:
                self._threads.submit(read_ahead, self.directory / name)
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def leave(self, names: Iterable[str]) -> dict[str, str]:
        """Gives up the hashing of those files that have not been begun, for who reads them to do it on the way: their hashes, by name."""
        left = {name: self.manifest.files[name] for name in names if self._verify and self._digests[name].cancel()}
        self._left.update(left)
        return left

    def check(self, names: Iterable[str], advance: Advance = ignore) -> None:
        """Waits for the digests of these files, and helps. Raises EngineError for one that is not what the manifest says.

        Those that were left are not looked at.
        """
        for name in names:
            if self._verify and name not in self._left:
                check_hash(self.directory, name, self.manifest.files[name], self._finish(name))
                if read_state(self.directory, name) != self._states[name]:
                    problem = f"{name!r} was written to while it was loaded"
                    raise EngineError(f"engine {self.directory}", problem, "load it again when nothing writes there")
            advance(1)

    def _finish(self, name: str) -> str:
        if self._digests[name].cancel():  # it has not been begun
            self._digests[name] = Future()
            self._digests[name].set_result(self._hash(name))
        return self._digests[name].result()

    def _hash(self, name: str) -> str:
        try:
            return hash_file(self.directory / name, is_wanted=lambda: not self._stopped.is_set())
        except OSError as error:
            raise EngineError(f"engine {self.directory}", f"{name} cannot be read ({error})", "copy the directory again") from error


@dataclass(frozen=True, slots=True)
class FileState:
    """What the system says of a file, without its bytes. Another one under its name has another inode."""

    device: int
    inode: int
    num_bytes: int
    changed_ns: int  # when it was last written to


def read_state(directory: Path, name: str) -> FileState:
    try:
        found = (directory / name).stat()
    except OSError:
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise EngineError(f"engine {directory}", f"file {name!r} is missing", "copy the whole directory, or rebuild the engine")
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_names(manifest: Manifest, directory: Path) -> dict[str, FileState]:
    """Every file that the manifest names is there, inside the directory, and has a hash; code and weights come from no other."""
    binaries = [binary.file for kernel in manifest.all_kernels for binary in kernel.binaries.values()]
    for name in [*(kernel.file for kernel in manifest.all_kernels), *binaries, *(weight.file for weight in manifest.weights)]:
        if name not in manifest.files:
            raise EngineError(f"engine {directory}", f"manifest.json has no hash for {name!r}", "copy the directory again, or rebuild the engine")
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EngineError(f"engine {directory}", f"{name!r} lies outside it", "rebuild the engine")
    return {name: read_state(directory, name) for name in manifest.files}


def check_hash(directory: Path, name: str, expected: str, found: str) -> None:
    if found != expected:
        problem = f"{name!r} has sha256 {found[:12]}…, the manifest says {expected[:12]}…: it was changed or cut short"
        raise EngineError(f"engine {directory}", problem, "copy the directory again, or rebuild the engine")


def hash_file(path: Path, *, is_wanted: Callable[[], bool] = lambda: True) -> str:
    """sha256 in hexadecimal; of the part so far once it is not wanted any more."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = max(1, min(PIECE_BYTES, os.fstat(file.fileno()).st_size))
        with mmap.mmap(-1, size, access=mmap.ACCESS_COPY) as memory, memoryview(memory) as buffer:  # a bytearray is zeroed under the GIL
            while is_wanted() and (count := file.readinto(buffer)):
                digest.update(buffer[:count])
    return digest.hexdigest()


def read_ahead(path: Path) -> None:
    """Has the system begin to read the file."""
    if hasattr(os, "posix_fadvise"):
        try:
            with path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:  # whoever loads the file will say what is wrong with it
            return


def count_threads() -> int:
    """One for every other core that this process may use: two may share one's units, and the import, which is waited for, needs its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, max(1, cores // 2))
