"""sha256 of input files, computed beside the main work and remembered while a file stays as it is.

Hashing costs about as much CPU as a whole edit. So a hash is kept in the user's cache folder (`XDG_CACHE_HOME`, else
``~/.cache``) together with what the system knows of the file: device, inode, size, times of change. Any write to the
file changes these. Only hashes are kept, under hashed names: no paths, no contents.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from ..errors import InputError, StorageError
from ..files import replace_text

CHUNK = 1 << 20
SETTLED = 2.0  # seconds since the last change: within them a second change could leave the same times


@contextlib.contextmanager
def hashing(files: Iterable[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """Begin hashing on a thread; call the result to wait for ``{file: sha256}``. Leaving early stops the thread."""
    stop = Event()
    pool = ThreadPoolExecutor(1)
    found: dict[Path, Future[str]] = {f: pool.submit(sha256, f, stop=stop) for f in dict.fromkeys(files)}
    try:
        yield lambda: {f: future.result() for f, future in found.items()}
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def sha256(path: Path, *, fresh: bool = False, stop: Event | None = None) -> str:
    """The sha256 of a file, from the cache if the file has not changed since.

    Args:
        fresh: read the file in any case.
        stop: when set, hashing is given up.
    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as f:
            before = _identity(f.fileno())
            note = _cache() / hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
            known = None if fresh else _recall(note, before)
            if known is not None:
                return known
            digest = hashlib.sha256()
            buffer = bytearray(CHUNK)
            view = memoryview(buffer)
            while n := f.readinto(buffer):
                digest.update(view[:n])
                if stop is not None and stop.is_set():
                    return ""
            if _identity(f.fileno()) != before:
                raise InputError(f"{path} was changed while it was read. Run again when nothing writes to it.")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    if time.time() - max(before[3], before[4]) / 1e9 > SETTLED:
        with contextlib.suppress(StorageError):  # a cache is a convenience
            replace_text(note, json.dumps({"file": before, "sha256": digest.hexdigest()}), what="a remembered hash")
    return digest.hexdigest()


def _identity(fd: int) -> list[int]:
    s = os.fstat(fd)
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
    folder = Path(home or "/nonexistent")
    return (folder if os.environ.get("XDG_CACHE_HOME") else folder / ".cache") / "taskvec" / "sha256"


def _recall(note: Path, identity: list[int]) -> str | None:
    try:
        table = json.loads(note.read_text(encoding="utf-8"))
        if table["file"] == identity and len(bytes.fromhex(table["sha256"])) == 32:
            return table["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
