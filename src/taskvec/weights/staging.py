"""Building an output beside its target: a lock, a journal of what is safe on disk, one rename at the end.

::

    .NAME.taskvec/lock           held while a run writes NAME; names its process
    .NAME.taskvec/journal.json   what is being built, and how much of it is on disk for good
    .NAME.taskvec/out            the file or folder that will become NAME

Until the rename the target is as it was. A run that ends badly leaves the folder only if a later one can use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StorageError, plain
from ..files import replace_text

log = logging.getLogger("taskvec")
EXCHANGE, NOREPLACE = 2, 1  # flags of renameat2 (linux/fs.h)


@dataclass
class Staging:
    """An output under construction."""

    target: Path
    folder: Path
    plan: str | None  # equal plans, equal bytes; None: not to be continued
    done: int = 0  # blocks that are on disk for good, from the first on
    summaries: Mapping[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.json"

    def record(self, done: int) -> None:
        """Note that the first `done` blocks are on disk for good; whoever calls has synced them."""
        if self.plan is None:
            return
        table = {"plan": self.plan, "done": done, "inode": self.out.lstat().st_ino, "summaries": dict(self.summaries)}
        try:
            replace_text(self.journal, json.dumps({**table, "check": _check(table)}), what="the journal")
        except StorageError as error:  # of no interest to whoever asked for the target
            raise error.__cause__ or error from None
        self.done = done


def staging_folder(target: Path) -> Path:
    return target.absolute().parent / f".{target.name}.taskvec"


def held_bytes(target: Path) -> int:
    """Bytes on disk that an unfinished output of this name already occupies."""
    try:
        found = [p.stat() for p in staging_folder(target).rglob("*") if p.is_file()]
    except OSError:
        return 0
    return sum(s.st_blocks * 512 for s in found)


@contextlib.contextmanager
def staged(target: Path, *, folder: bool, plan: str | None, overwrite: bool) -> Iterator[Staging]:
    """Build an output: yields where; if the block ends well, syncs it and puts it in the target's place.

    Args:
        target: where the output will be.
        folder: whether it is a folder (else a file).
        plan: a digest of everything that decides the output's bytes. A staging folder of the same plan is continued.
        overwrite: replace an existing target.
    Raises:
        StorageError: another run writes this target, or the disk fails.
    """
    if target.is_symlink():
        target = target.resolve()
    place = staging_folder(target)
    made = [p for p in place.parents if not p.exists()]
    keep = placed = False
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, target):
            try:
                work = _begin(target, place, folder=folder, plan=plan)
                yield work
                _sync_all(work.out)
                with _unbroken():
                    put(work.out, target, overwrite=overwrite)
                    placed = True
                    _sync(target.absolute().parent)
            except BaseException as error:
                passing = isinstance(error, OSError) or not isinstance(error, Exception)
                keep = passing and not placed and (place / "journal.json").exists()
                if keep:
                    error.add_note(
                        f"What is finished is kept in {plain(place)}: the same command continues from there; to give up, remove it."
                    )
                raise
            finally:
                if not keep:
                    _clear(place)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        said = f"cannot write {plain(target)}: {error.strerror or error}. The target was not changed."
        if placed:
            said = f"{plain(target)} is complete and in its place, but the disk did not confirm it: {error.strerror or error}."
        failed = StorageError(said)
        for said in getattr(error, "__notes__", ()):
            failed.add_note(said)
        raise failed from error
    finally:
        for parent in made:  # those that hold nothing: the output did not come to be
            with contextlib.suppress(OSError):
                parent.rmdir()


def sweep(target: Path) -> None:
    """Clean up after a run that was killed while it put its output in place, or just after."""
    place = staging_folder(target)
    if not place.is_dir() or place.is_symlink():
        return
    with contextlib.suppress(OSError), _locked(place, target):
        if (place / "old").exists() and not target.exists():  # between two renames
            (place / "old").rename(target)
        if target.exists() and _journal(place, plan=None) is None:
            _clear(place)


def _begin(target: Path, place: Path, *, folder: bool, plan: str | None) -> Staging:
    found = None if plan is None else _journal(place, plan=plan)
    if found is not None and stat.S_ISDIR((place / "out").lstat().st_mode) == folder:
        log.info("%s: continues from what an earlier run finished.", target)
        return Staging(target, place, plan, found["done"], found["summaries"])
    if _journal(place, plan=None) is not None:
        log.info(
            "%s: what an earlier run finished is of another edit, or an input changed since; it begins anew.", target
        )
    work = Staging(target, place, plan)
    work.journal.unlink(missing_ok=True)  # a failure here ends the run: it must not speak of what comes next
    _clear(place)
    if folder:
        work.out.mkdir()
    return work


def _journal(place: Path, *, plan: str | None) -> dict[str, Any] | None:
    """The journal of a staging folder, if it can be trusted and is of this plan (None: of any).

    The inode tells an output under construction from an old one that was just exchanged for it.
    """
    try:
        table = json.loads((place / "journal.json").read_text(encoding="utf-8"))
        sound = table.pop("check") == _check(table) and table["inode"] == (place / "out").lstat().st_ino
        sound = sound and type(table["done"]) is int and table["done"] >= 0 and isinstance(table["summaries"], dict)
        if sound and (plan is None or table["plan"] == plan):
            return {"done": table["done"], "summaries": table["summaries"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _check(table: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _locked(place: Path, target: Path) -> Iterator[None]:
    """Hold the staging folder's lock, which the system drops when the process ends, however it ends.

    A folder that holds nothing but the lock is removed at the end.
    """
    fd = -1
    try:
        while fd < 0:
            fd = _try_lock(place, target)
        with contextlib.suppress(OSError):  # only for the message of another run
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if fd >= 0 and [p.name for p in place.iterdir()] == ["lock"]:
                (place / "lock").unlink()
            place.rmdir()  # if it is empty
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.close(fd)


def _try_lock(place: Path, target: Path) -> int:
    """The lock's descriptor; -1 if the folder vanished meanwhile, so that it is to be tried again."""
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    try:
        if place.is_symlink() or place.stat().st_uid != os.geteuid():
            raise StorageError(
                f"cannot write {plain(target)}: {plain(place)}, where it would be built, is a link or belongs to somebody "
                "else. Remove it."
            )
        fd = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # the run before us has just removed the folder
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if (place / "lock").stat().st_ino == os.fstat(fd).st_ino:  # else it was removed before we held it
                return fd
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            error = StorageError(
                f"cannot write {plain(target)}: it is in use by another run (process {owner}). Wait for it, or name another output."
            )
        os.close(fd)
        raise error from None
    os.close(fd)
    return -1


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    """Signals that would interrupt wait until the block is over (in the main thread; elsewhere none arrive)."""
    waiting: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda n, _: waiting.append(n))
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        log.info("interrupted when the output was already in place.")


def put(out: Path, target: Path, *, overwrite: bool) -> None:
    """Rename `out` to `target` in one step; an existing target changes places with it.

    Raises:
        StorageError: the target appeared meanwhile and is not to be replaced.
    """
    empty = target.is_dir() and not target.is_symlink() and out.is_dir() and not any(target.iterdir())
    if not (target.exists() or target.is_symlink()) or empty:
        if empty or not _renameat2(out, target, NOREPLACE):
            out.rename(target)
    elif not overwrite:
        raise StorageError(
            f"the output {plain(target)} appeared while it was computed; it is not replaced without --overwrite."
        )
    elif out.is_file() and target.is_file():
        out.replace(target)
    elif not _renameat2(out, target, EXCHANGE):  # a file system without it: two renames
        old = out.with_name("old")
        target.rename(old)
        try:
            out.rename(target)
        except BaseException:
            old.rename(target)
            raise


def _renameat2(a: Path, b: Path, flags: int) -> bool:
    """True if done; False if this system or file system cannot."""
    call = _libc_renameat2()
    if call is None:
        return False
    if call(-100, os.fsencode(a), -100, os.fsencode(b), flags) == 0:  # -100: AT_FDCWD
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        raise StorageError(
            f"the output {plain(b)} appeared while it was computed; it is not replaced without --overwrite."
        )
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(b))


@functools.cache
def _libc_renameat2() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an old C library
        return None


def _sync_all(out: Path) -> None:
    """Files first, then the folders that name them."""
    if out.is_dir():
        inside = sorted(out.rglob("*"))
        for file in (p for p in inside if p.is_file()):
            _sync(file)
        for folder in (p for p in inside if p.is_dir()):
            _sync(folder)
    _sync(out)
    _sync(out.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _clear(place: Path) -> None:
    """Remove all but the lock, which goes last: while it is there no other run comes in."""
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name == "lock":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
