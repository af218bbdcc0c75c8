"""Publishing an output: checked, then uploaded to the Hugging Face hub in one commit."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..address import Address, is_address, parse_address
from ..errors import CheckFailed, InputError, StorageError, UsageError, missing_extra, some
from ..verify import unsound
from ..weights.remote import in_words
from ..weights.text import size_text

WEIGHTS = re.compile(r"(open_clip_)?model.*\.safetensors(\.index\.json)?")  # of a model at the top of a repository


@dataclass(frozen=True)
class Push:
    """What is uploaded where; `url` and `commit` once it is."""

    repo: str
    revision: str | None
    files: Mapping[str, int]  # name -> bytes
    url: str | None = None
    commit: str | None = None

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes}

    def __str__(self) -> str:
        much = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}, {size_text(self.bytes)}"
        if self.url is not None:
            return f"{self.url}: {much}, commit {self.commit}\nread it as hf://{self.repo}@{self.commit}"
        width = max(map(len, self.files))
        lines = [f"  {name:<{width}}  {size_text(n):>10}" for name, n in self.files.items()]
        branch = f" (branch {self.revision})" if self.revision else ""
        return "\n".join([f"{much} would go to {self.repo}{branch}:", *lines])


def planned(path: str | Path, repo: str, *, revision: str | None = None, force: bool = False) -> Push:
    """What `push` would upload, without asking the hub.

    Raises:
        CheckFailed: the output is incomplete, or not as it was written (unless `force`).
        UsageError: no name of a repository.  InputError: nothing is there.
    """
    path, address = Path(path), _address(repo)
    if address.inside or (revision and address.revision):
        raise UsageError(f"push goes to the top of a repository: expected org/name, got {repo}.")
    files = _files(path)
    problems = [] if force else unsound(path)
    if problems:
        raise CheckFailed(
            f"{path} is not pushed: {'; '.join(p.rstrip('.') for p in problems)}. Make it again, or push it as it is with --force "
            "(force=True)."
        )
    return Push(address.repo, revision or address.revision, files)


def push(
    path: str | Path, repo: str, *, private: bool = False, revision: str | None = None, message: str | None = None,
    overwrite: bool = False, force: bool = False,
) -> Push:  # fmt: skip
    """Upload an output of taskvec, a folder or a vector's file, to a model repository of the hub, which is made if needed.

    Through huggingface_hub: its token, endpoint and Xet storage. All files go up in one commit.

    Args:
        path: what `edit` or `diff` wrote.
        repo: ``org/name``.
        private: make a new repository private.
        revision: a branch, made if needed; else the main one.
        message: of the commit.
        overwrite: remove other weights that the repository holds beside these (shards of an earlier push).
        force: push what fails the check.
    Raises:
        CheckFailed: the output is incomplete, or not as it was written.
        StorageError: the repository holds other weights.
        InputError: the hub refuses or cannot be reached.
        MissingExtra: huggingface_hub is not installed.
    """
    plan = planned(path, repo, revision=revision, force=force)
    try:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"pushing to {repo}") from None
    path, api = Path(path), HfApi()
    with in_words(Address(plan.repo, plan.revision)), _bars():
        try:
            there = [s.rfilename for s in api.model_info(plan.repo, revision=plan.revision).siblings or ()]
        except (RepositoryNotFoundError, RevisionNotFoundError):
            there = []
        stale = [n for n in there if WEIGHTS.fullmatch(n) and n not in plan.files] if path.is_dir() else []
        if stale and not overwrite:
            raise StorageError(
                f"hf://{plan.repo} holds other weights ({some(stale)}), and which are meant would be unclear. Remove them in the "
                "same commit with --overwrite (overwrite=True), or push to another branch."
            )
        api.create_repo(plan.repo, private=private or None, exist_ok=True)
        if plan.revision is not None and plan.revision != "main":
            api.create_branch(plan.repo, branch=plan.revision, exist_ok=True)
        place = path if path.is_dir() else path.parent
        operations = [CommitOperationAdd(n, str(place / n)) for n in plan.files]
        done = api.create_commit(
            plan.repo,
            [*operations, *(CommitOperationDelete(n) for n in stale)],
            commit_message=message or f"Upload {path.name} with taskvec",
            revision=plan.revision,
        )
    branch = f"/tree/{plan.revision}" if plan.revision else ""
    return Push(plan.repo, plan.revision, plan.files, f"{api.endpoint}/{plan.repo}{branch}", done.oid)


def _address(repo: str) -> Address:
    try:
        return parse_address(repo if is_address(repo) else f"hf://{repo}")
    except UsageError:
        raise UsageError(f"{repo!r} is no name of a repository: expected org/name.") from None


def _files(path: Path) -> dict[str, int]:
    """The files of an output: hidden ones, and what links lead out of it, are left out."""
    if path.is_file() and path.suffix == ".safetensors":
        return {path.name: path.stat().st_size}
    if not path.is_dir():
        raise InputError(f"{path} is no output to push: expected a folder, or a .safetensors file.")
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(p.startswith(".") for p in name.parts) and not file.name.endswith(".tmp"):
            if path.resolve() not in file.resolve().parents:
                raise InputError(f"{file} is a link that leaves the folder; replace it by what it stands for.")
            found[name.as_posix()] = file.stat().st_size
    if not found:
        raise InputError(f"{path} is empty.")
    return found


@contextmanager
def _bars() -> Iterator[None]:
    """The client's progress bars on a terminal only."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()
