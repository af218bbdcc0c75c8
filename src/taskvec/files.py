"""Small text files, written whole or not at all; whether a file is there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from .errors import StorageError


def exists(path: Path) -> bool:
    """As `Path.exists`, and False for a name that no file system takes (too long, or with a zero byte)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def replace_text(path: str | Path, text: str, *, what: str) -> Path:
    """Write, flush to disk and rename, so that a reader sees the old file or the whole new one. Parents are made.

    Args:
        path: the file.
        text: its content, UTF-8.
        what: what the file is, for the error: "the report".
    Raises:
        StorageError: disk or permissions; the old file is untouched.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        finally:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write {what} {path}: {error.strerror}. Choose another path, or make room or permission there."
        ) from error
    return path


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """While this lasts, other processes that ask for the same path wait. A small lock file stays beside it.

    Raises:
        StorageError: the folder cannot be written.
    """
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(
            f"cannot lock {path}: {error.strerror}. Choose another path, or get permission there."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
