"""Addresses of models on the Hugging Face hub: ``hf://org/name``, ``hf://org/name@revision``, ``hf://org/name/folder``.

A path that goes through `pathlib` loses a slash (``hf:/org/name``); both forms are one address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from .errors import UsageError

FORM = re.compile(
    r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/+(?P<inside>[^@]*?))?/*"
)
KINDS = ("datasets", "spaces", "buckets", "models")  # the first word of the hub's other addresses


@dataclass(frozen=True)
class Address:
    """A repository, a revision of it (None: its main branch), and a folder or file in it ("": its top).

    Example:
        >>> parse_address("hf://org/name@v1.0/sub")
        Address(repo='org/name', revision='v1.0', inside='sub')
        >>> str(parse_address(Path("hf://org/name")))
        'hf://org/name'
    """

    repo: str
    revision: str | None = None
    inside: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages and recipes."""
        last = self.inside.rpartition("/")[2] or self.repo.rpartition("/")[2]
        return re.sub(r"\.(safetensors|gguf)$", "", last)

    def __str__(self) -> str:
        special = self.revision is not None and self.revision.startswith("refs/")
        at = "" if self.revision is None else f"@{self.revision if special else quote(self.revision, safe='')}"
        return f"hf://{self.repo}{at}" + (f"/{self.inside}" if self.inside else "")


def is_address(path: str | Path) -> bool:
    return str(path).startswith("hf:/")


def parse_address(path: str | Path) -> Address:
    """The address that a text spells.

    Raises:
        UsageError: it is none.
    """
    found = FORM.fullmatch(str(path))
    parts = found["inside"].split("/") if found and found["inside"] else []
    if found is None or found["repo"].split("/")[0] in KINDS or any(p in ("", ".", "..") for p in parts):
        raise UsageError(
            f"{path} is not an address of a model: expected hf://org/name, with @revision (a branch, tag or commit) and "
            "/folder where they are needed."
        )
    revision = found["revision"]
    return Address(found["repo"], None if revision is None else unquote(revision), "/".join(parts))


def label_of(path: str | Path) -> str:
    """What a file, folder or model is called unless told otherwise."""
    return parse_address(path).name if is_address(path) else Path(path).stem or str(path)
