"""Models on the Hugging Face hub as sources: their headers are read at once, their values are fetched when they are needed.

All through huggingface_hub: its cache, token, endpoint (`HF_ENDPOINT`) and offline mode (`HF_HUB_OFFLINE`) are respected.
A revision is resolved to its commit first, and that commit is what recipes record.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..address import Address
from ..errors import InputError, NotACheckpoint, TaskvecError, missing_extra, nearest, some
from .safetensors import MAX_HEADER, Header, parse_header
from .source import Source, is_side_file, open_source

FIRST = 100_000  # bytes of a file asked for at first; most headers are shorter
THREADS = 8  # headers of shards asked for at a time
INDEX = ".safetensors.index.json"
LOG = logging.getLogger("taskvec")


@dataclass(frozen=True)
class Listing:
    """The files of one commit of a repository: name -> bytes."""

    address: Address  # with the commit as its revision
    sizes: Mapping[str, int]
    asked: str | None = None  # the revision that was asked for

    def inside(self) -> dict[str, str]:
        """Files of the folder that the address names (not of folders in it): name there -> name in the repository."""
        folder = f"{self.address.inside}/" if self.address.inside else ""
        found = {n.removeprefix(folder): n for n in self.sizes if n.startswith(folder)}
        return {n: whole for n, whole in found.items() if "/" not in n}


class HubSource(Source):
    """The safetensors files of a model on the hub, as one table of tensors.

    `fetch` brings them into the hub client's cache; reading values does so by itself, unless `ready` is False.
    """

    def __init__(self, listing: Listing, weights: list[str], label: str, *, fetch: bool):
        self.label, self.origin, self.ready = label, str(listing.address), fetch
        self._listing, self._weights = listing, weights
        with ThreadPoolExecutor(THREADS) as pool:
            headers = list(pool.map(lambda name: _header(listing, name), weights))
        self.metadata = headers[0].metadata if len(headers) == 1 else {}
        self.spec = {name: s for h in headers for name, s in h.spec.items()}
        if len(self.spec) < sum(len(h.spec) for h in headers):
            raise NotACheckpoint(f"{self.origin} has shards that hold a tensor twice.")
        self._local: Source | None = None
        self._described: Path | None = None

    @property
    def file_names(self) -> tuple[str, ...]:
        return tuple(name.rpartition("/")[2] for name in self._weights)

    @property
    def missing(self) -> int:
        return 0 if self._local is not None else sum(self._listing.sizes[n] for n in self._weights)

    def described(self) -> Path | None:
        where = self._listing.address.inside
        alone = where in self._listing.sizes  # a file that is named has no folder, here as on a disk
        if self.folder is None and self._described is None and not alone and (names := _beside(self._listing)):
            self._described = _snapshot(self._listing, names) / where
        return self.folder or self._described

    def fetch(self) -> None:
        if self._local is not None:
            return
        local = open_source(_fetched(self._listing, self._weights), self.label)
        if local.spec != self.spec:
            raise InputError(f"{self.origin}: the files that were fetched are not those whose headers were read.")
        self.files, self.folder, self.ready = local.files, local.folder, True
        self._local = local  # last: other threads read from it as soon as it is there

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._local is None:
            self.fetch()
        assert self._local is not None
        return self._local.read(name, start, stop)


def open_remote(address: Address, label: str | None = None, *, fetch: bool = True) -> Source:
    """Open a model on the hub. Reads the headers of its safetensors files; adapters and GGUF files are fetched.

    Args:
        address: where.
        label: what it is called.
        fetch: whether values may be fetched when they are asked for; else only headers are to be looked at.
    Raises:
        MissingExtra: huggingface_hub is not installed.
        InputError: it is not there, needs a token, or cannot be reached and is not in the cache.
        NotACheckpoint: it holds no safetensors files, or damaged ones.
    """
    label = label or address.name
    listing = _listed(address)
    if isinstance(listing, Path):  # what the cache has, where the hub cannot be asked
        source = open_source(listing / address.inside, label)
        source.origin = str(replace(address, revision=listing.name))
        return source
    here = listing.inside()
    if address.inside in listing.sizes:
        weights = [address.inside]
    elif address.inside and not here and not _part(listing):
        known = sorted({n.partition("/")[0] for n in listing.sizes})
        raise InputError(
            f"{listing.address} does not exist.{nearest(address.inside, known)} There are {some(known, 8)}."
        )
    elif "adapter_config.json" in here or _part(listing):
        weights = []  # an adapter is small
    else:
        weights = _weights(listing, here)
    if weights and weights[0].endswith(".safetensors") and not _cached(listing, weights):
        return HubSource(listing, weights, label, fetch=fetch)
    source = open_source(_fetched(listing, weights), label)
    source.origin = str(listing.address)
    return source


def local(address: Address, *, weights: bool = True) -> Path:
    """The folder in the cache with a model's weights, config and tokenizer, or without the weights; fetched. Of an address of a
    file that file, with what lies beside it."""
    listing = _listed(address)
    if isinstance(listing, Path):
        return listing / address.inside
    here = listing.inside()
    if weights and address.inside in listing.sizes:
        return _fetched(listing, [address.inside])
    if not weights or "adapter_config.json" in here or _part(listing):
        return _snapshot(listing, _beside(listing)) / address.inside
    return _fetched(listing, _weights(listing, here))


def _part(listing: Listing) -> bool:
    """Whether the address names a part of an adapter (its factors, its whole tensors), which is no folder."""
    folder, _, part = listing.address.inside.rpartition("/")
    config = f"{folder}/adapter_config.json" if folder else "adapter_config.json"
    return part in ("factors", "modules_to_save") and config in listing.sizes


def _weights(listing: Listing, here: Mapping[str, str]) -> list[str]:
    """The safetensors files of the folder, chosen as `open_source` would."""
    where = listing.address
    indexes = [n for n in here if n.endswith(INDEX)]
    files = [n for n in here if n.endswith(".safetensors")]
    if len(indexes) > 1:
        raise NotACheckpoint(f"{where} has {len(indexes)} indexes ({some(indexes)}), expected one.")
    if indexes:
        shards = _shards(listing, here[indexes[0]])
        absent = [s for s in shards if s not in here]
        if absent:
            raise NotACheckpoint(f"{where}: {some(absent)}, named by {indexes[0]}, is missing.")
        return [here[s] for s in shards]
    if "model.safetensors" in here:
        return [here["model.safetensors"]]
    if len(files) == 1:
        return [here[files[0]]]
    if files:
        raise NotACheckpoint(f"{where} has {len(files)} *.safetensors files and no index ({some(files)}). Name one.")
    folders = {n.rpartition("/")[0] for n in listing.sizes if n.endswith((".safetensors", ".gguf"))}
    gguf = [n for n in here if n.endswith(".gguf")]
    pickles = [n for n in here if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    said = f"Its files are {some(here, 8)}."
    if gguf:
        said = f"It has {some(gguf)}; name the file that is meant: {where}/{gguf[0]}."
    elif pickles:
        said = (
            f"It has {some(pickles)}, and pickles are not fetched unless they are named. See whether another revision has "
            f"safetensors (refs/pr/1 often does), or name the file: {where}/{pickles[0]}."
        )
    elif folders - {where.inside}:
        said = f"Its folders {some(sorted(folders), 8)} do; name one: {where}/{min(folders)}."
    raise NotACheckpoint(f"{where} holds no safetensors files. {said}")


def _shards(listing: Listing, index: str) -> list[str]:
    path = _snapshot(listing, [index]) / index
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        assert names and all(isinstance(n, str) for n in names)
        return sorted(names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AssertionError) as error:
        raise NotACheckpoint(
            f"{listing.address}: {index} is not an index of shards ({type(error).__name__})."
        ) from None


def _header(listing: Listing, name: str) -> Header:
    """The header of a safetensors file, by asking for its first bytes alone."""
    label, size = f"{replace(listing.address, inside=name)}", listing.sizes[name]
    first = _bytes(listing, name, 0, min(FIRST, size))
    if len(first) < 8:
        raise NotACheckpoint(f"{label} is not a safetensors file: only {len(first)} bytes long.")
    (length,) = struct.unpack("<Q", first[:8])
    if length > min(MAX_HEADER, size - 8):
        raise NotACheckpoint(
            f"{label} is not a sound safetensors file: it announces a header of {length:,} bytes, the file has {size:,}."
        )
    if 8 + length > len(first):
        first += _bytes(listing, name, len(first), 8 + length)
    return parse_header(first[8 : 8 + length], size, label)


def _bytes(listing: Listing, name: str, start: int, stop: int) -> bytes:
    """A range of a file; of a server that knows no ranges no more is read than that."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(listing.address.repo, name, revision=listing.address.revision)
    asked = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with in_words(listing.address), get_session().stream("GET", url, headers=asked) as answer:
        hf_raise_for_status(answer)
        skip, got = (0 if answer.status_code == 206 else start), b""
        for piece in answer.iter_bytes():
            got += piece
            if len(got) >= skip + stop - start:
                break
    got = got[skip : skip + stop - start]
    if len(got) < stop - start:
        raise InputError(
            f"{listing.address}: the hub sent {len(got):,} bytes of {name} instead of {stop - start:,}. Try again."
        )
    return got


def _listed(address: Address) -> Listing | Path:
    """The files of the commit that the address means now; where the hub cannot be asked, its folder in the cache."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"reading {address}") from None
    try:
        with in_words(address):
            info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise InputError(f"{address}: the hub named no commit for it, but {info.sha!r}.")
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        return Listing(replace(address, revision=info.sha), sizes, address.revision)
    except Unreachable as error:
        try:  # any snapshot: what an edit needs of it is looked at when it is opened
            found = snapshot_download(
                address.repo, revision=address.revision, local_files_only=True, allow_patterns=[""]
            )
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise InputError(f"{error} It is not in the cache either.") from None
        folder = Path(found)
        place = folder / address.inside
        shards = [f.name for f in place.glob("*-of-*.safetensors")]
        if not place.exists() or (shards and not any(place.glob(f"*{INDEX}"))):
            raise InputError(f"{error} The cache holds only other parts of it.") from None
        if folder.name != address.revision:
            LOG.info("%s The commit %s in the cache is used.", error, folder.name)
        return folder


def _fetched(listing: Listing, weights: Iterable[str]) -> Path:
    """Weights, config and tokenizer in the cache: the path that `open_source` takes."""
    names = [*weights, *_beside(listing)]
    if not _cached(listing, names):
        LOG.info("fetching %s (%s)", listing.address, _size(sum(listing.sizes[n] for n in names)))
    return _snapshot(listing, names) / listing.address.inside


def _cached(listing: Listing, names: Iterable[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    where = listing.address
    return all(isinstance(try_to_load_from_cache(where.repo, n, revision=where.revision), str) for n in names)


def _beside(listing: Listing) -> list[str]:
    """What lies beside the weights and is small: config, tokenizer, index; adapters whole."""
    folder = listing.address.inside
    if folder in listing.sizes or _part(listing):
        folder = folder.rpartition("/")[0]
    before = f"{folder}/" if folder else ""
    here = [n for n in listing.sizes if n.startswith(before)]
    known = (f"{before}taskvec.json",)  # with which it can be verified
    return [
        n
        for n in here
        if n in known or is_side_file(n.removeprefix(before)) or n.endswith(INDEX) or "/adapter_" in f"/{n}"
    ]


def _snapshot(listing: Listing, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """The client's bar, on a terminal only."""

        def __init__(self, *args: Any, **kwargs: Any):
            kwargs["disable"] = bool(kwargs.get("disable")) or not sys.stderr.isatty()
            super().__init__(*args, **kwargs)

    exact = [re.sub(r"([\[*?])", r"[\1]", n) for n in names]
    if not exact:
        raise NotACheckpoint(f"{listing.address} holds no weights.")
    where = listing.address
    with in_words(where):
        # By the name that was asked for, which the cache then knows offline too; it can have moved on meanwhile.
        for revision in dict.fromkeys((listing.asked, where.revision)):
            found = Path(snapshot_download(where.repo, revision=revision, allow_patterns=exact, tqdm_class=Bar))
            if found.name == where.revision:
                return found
    raise InputError(f"{where}: the hub gave another commit than it was asked for.")


class Unreachable(InputError):
    """The hub cannot be asked: offline mode, or no connection."""


@contextmanager
def in_words(address: Address) -> Iterator[None]:
    """The client's errors as ours."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"hf://{address.repo}"
    login = "Log in with `hf auth login`, or set HF_TOKEN."
    try:
        yield
    except TaskvecError:
        raise
    except GatedRepoError:
        raise InputError(
            f"{place} is gated: accept its conditions at {constants.ENDPOINT}/{address.repo}, with the account of your token. "
            + login
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{place} does not exist on {constants.ENDPOINT}, or it is private and your token does not open it. {login}"
        ) from None
    except RevisionNotFoundError:
        raise InputError(
            f"{place} has no revision {address.revision!r}: no branch, tag or commit of that name."
        ) from None
    except OfflineModeIsEnabled:
        raise Unreachable(f"{address} is on the hub, and HF_HUB_OFFLINE forbids asking it.") from None
    except LocalEntryNotFoundError as error:
        raise Unreachable(f"cannot reach {constants.ENDPOINT} for {address} ({_cause(error)}).") from None
    except (DisabledRepoError, HfHubHTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(f"{constants.ENDPOINT} refuses access to {place} ({status}). {login}") from None
        said = str(error).strip().splitlines()
        kind = Unreachable if isinstance(status, int) and status >= 500 else InputError
        raise kind(
            f"{constants.ENDPOINT} answered {status} about {place}: {said[0] if said else 'no reason'}."
        ) from None
    except HFValidationError as error:
        raise InputError(f"{address} is no name of a repository: {error}") from None
    except Exception as error:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(
            ("httpx", "httpcore")
        ):
            raise Unreachable(
                f"cannot reach {constants.ENDPOINT} for {address} ({type(error).__name__}: {error})."
            ) from None
        raise


def _cause(error: BaseException) -> str:
    inner = error.__cause__ or error.__context__
    return type(inner).__name__ if inner is not None else "no connection"


def _size(n: int) -> str:
    from .text import size_text  # which sees this module's users

    return size_text(n)
