"""Scorers: how toxic a text is, by an opinion that has a name, a version and a hash, and can be held against labels.

    words:FILE     whether a text has one of the words of a list: for decoding bans and tests, no measure of toxicity
    linear         bag of words and a linear model, inside the package alt-profanity-check
    minilm:FILE    logistic regression on MiniLM's sentence embeddings, trained on your labels by `train_scorer`
    hf:MODEL       a text classifier of transformers, a folder or an id of the hub; ``hf:MODEL#LABEL`` says which label is meant
    detoxify       the package detoxify, model "original" (`detoxify:NAME` for another of its models)

None stands in for another: what is not there is an error that says how to get it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    InputError,
    KeyMismatch,
    MissingExtra,
    NonFinite,
    UnknownName,
    UsageError,
    missing_extra,
    nearest,
    some,
)
from ..models.functional import require_torch
from ..weights import Checkpoint
from .words import read_words

SCORERS = ("words", "linear", "minilm", "hf", "detoxify")
TOXIC = ("toxic", "toxicity", "hate", "hateful", "hatespeech", "hate speech", "offensive", "abusive")
FACTS = "scorer"  # of a minilm file: what it was trained on, as bytes of JSON
PIECE = 32  # texts at a time


@dataclass(frozen=True, eq=False)
class Scorer:
    """Gives texts numbers from 0 (not toxic) to 1.

    Args:
        name: by which `scorer` opens it.
        version: of what judges.
        sha256: of its weights, or of whatever decides its scores.
        score: texts -> float32 ``[n]``.
        learnt: marks of the texts that it was trained on (`mark_of`), where they are known.
    Example:
        >>> shouting = Scorer("shouting", "1", "-", lambda texts: np.array([t.isupper() for t in texts], np.float32))
        >>> shouting(["HEY", "hey"]).tolist()
        [1.0, 0.0]
    """

    name: str
    version: str
    sha256: str
    score: Callable[[Sequence[str]], np.ndarray]
    learnt: frozenset[str] = frozenset()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The scores, checked; a text without a word has 0, whoever is asked.

        Raises:
            NonFinite: a score is NaN or infinite.
            InputError: the wrong number of scores, or one outside 0 to 1.
        """
        out = np.zeros(len(texts), np.float32)
        spoken = [i for i, t in enumerate(texts) if re.search(r"\w", t)]
        if spoken:
            found = np.asarray(self.score([texts[i] for i in spoken]), np.float32)
            if found.shape != (len(spoken),):
                raise InputError(f"the scorer {self.name} gave shape {list(found.shape)} for {len(spoken)} texts.")
            if not np.isfinite(found).all():
                raise NonFinite(f"the scorer {self.name} gave a score that is not finite.")
            if found.min() < -1e-6 or found.max() > 1 + 1e-6:
                raise InputError(
                    f"the scorer {self.name} gave scores from {found.min():g} to {found.max():g}; expected 0 to 1."
                )
            out[spoken] = found.clip(0, 1)
        return out


def mark_of(text: str) -> str:
    """What tells a text from others, whatever its case and spaces, and not what it says."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8", "replace")).hexdigest()[:12]


def scorer(name: str, *, download: bool = False, device: str | None = None) -> Scorer:
    """Open a scorer by name; this module's docstring lists them.

    Args:
        name: for example ``"linear"``, ``"minilm:mine.safetensors"``, ``"hf:unitary/toxic-bert#toxic"``.
        download: whether `hf` may fetch a model that is not a folder here.
        device: where `hf` and `minilm` run, else the CPU.
    Raises:
        UnknownName: none of that name; says the nearest.
        UsageError: a name that lacks its file or model.
        MissingExtra: the library is not installed.
        InputError: a file or model that cannot be used.
    """
    kind, colon, rest = name.partition(":")
    if kind not in SCORERS:
        raise UnknownName(f"no scorer {name!r}; there are {', '.join(SCORERS)}.{nearest(kind, SCORERS)}")
    if kind in ("words", "minilm", "hf") and not rest:
        what = {"words": "a file of words", "minilm": "a file that train_scorer wrote", "hf": "a folder or an id"}[kind]
        raise UsageError(f"scorer {name!r} needs {what}: {kind}:...")
    if kind == "linear" and colon:
        raise UsageError(f"scorer {name!r}: linear takes nothing after it.")
    if kind == "words":
        return word_scorer(Path(rest))
    if kind == "linear":
        return _linear()
    if kind == "minilm":
        return _minilm(Path(rest), device=device)
    if kind == "hf":
        model, _, label = rest.partition("#")
        return _classifier(name, model, label, download=download, device=device)
    return _detoxify(name, rest or "original", device=device)


def word_scorer(words: Sequence[str] | Path, *, name: str | None = None) -> Scorer:
    """1 for a text that has one of the words (or phrases, whatever their case), else 0. No measure of toxicity.

    Args:
        words: the list, or a file with one on each line.
    Raises:
        InputError: the file cannot be read, or no words.
    """
    listed = read_words(words) if isinstance(words, Path) else tuple(words)
    if not listed:
        raise InputError("a scorer of words needs at least one word.")
    parts = "|".join(r"\s+".join(map(re.escape, w.split())) for w in listed)
    pattern = re.compile(rf"(?<!\w)(?:{parts})(?!\w)", re.IGNORECASE)
    known = hashlib.sha256("\n".join(listed).encode()).hexdigest()
    shown = name or (f"words:{words.name}" if isinstance(words, Path) else "words")
    return Scorer(
        shown,
        f"{len(listed)} words",
        known,
        lambda texts: np.array([bool(pattern.search(t)) for t in texts], np.float32),
    )


def _linear() -> Scorer:
    place = importlib.util.find_spec("profanity_check")
    if importlib.util.find_spec("sklearn") is None:
        raise missing_extra("scikit-learn", "scorers", "the scorer 'linear'")
    if place is None or place.origin is None:
        raise missing_extra("alt-profanity-check", "scorers", "the scorer 'linear'")
    files = sorted(p for p in (Path(place.origin).parent / "data").iterdir() if p.is_file())
    with (
        _unheard()
    ):  # scikit-learn warns of a model of another version; `Agreement` is the measure of whether it still works
        found: Any = importlib.import_module("profanity_check")
    versions = f"alt-profanity-check {_version('alt-profanity-check')}, scikit-learn {_version('scikit-learn')}"
    return Scorer("linear", versions, _hash(files), lambda texts: found.predict_prob(list(texts)))


def _detoxify(name: str, model: str, *, device: str | None) -> Scorer:
    try:
        found: Any = importlib.import_module("detoxify")
    except ImportError:
        raise MissingExtra(
            "the scorer 'detoxify' needs the package detoxify, which is not installed. Run: pip install detoxify. Its model 'original' "
            "is also on the Hugging Face hub: hf:unitary/toxic-bert#toxic"
        ) from None
    inner = found.Detoxify(model, device=device or "cpu")
    known = Checkpoint.of(inner.model, label=name, copy=False).fingerprint()

    def score(texts: Sequence[str]) -> np.ndarray:
        pieces = [inner.predict(list(texts[i : i + PIECE]))["toxicity"] for i in range(0, len(texts), PIECE)]
        return np.concatenate([np.asarray(p, np.float32) for p in pieces])

    return Scorer(name, f"detoxify {_version('detoxify')}, {model}", known, score)


def _classifier(name: str, path: str, label: str, *, download: bool, device: str | None) -> Scorer:
    """A text classifier of transformers: the probability of the label that counts as toxic."""
    from ..models.hub import fetched, opening

    torch = require_torch("A text classifier")
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "hf", f"the scorer {name!r}") from None
    folder = fetched(path, download=download)
    with opening(folder, "a text classifier"):
        with torch.random.fork_rng(devices=[]):
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if absent := sorted(report["missing_keys"]):
        raise KeyMismatch(f"{folder} lacks {some(absent)}, so it is no text classifier: they would be random.")
    config: Any = model.config
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    index, turned = toxic_label(names, label, where=path)
    single = config.num_labels == 1
    several = config.problem_type == "multi_label_classification" or single
    longest = min(512, tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - 2)
    model.eval().to(device or "cpu")

    def score(texts: Sequence[str]) -> np.ndarray:
        out = []
        with torch.inference_mode():
            for i in range(0, len(texts), PIECE):
                given = tokenizer(
                    list(texts[i : i + PIECE]),
                    return_tensors="pt",
                    padding=len(texts) > 1,
                    truncation=True,
                    max_length=longest,
                ).to(model.device)
                logits = model(**given).logits.float()
                p = (logits.sigmoid() if several else logits.softmax(-1))[:, index]
                out.append((1 - p if turned else p).cpu().numpy())
        return np.concatenate(out)

    known = hashlib.sha256(
        f"{Checkpoint.of(model, label=name, copy=False).fingerprint()} {names} {index} {turned}".encode()
    ).hexdigest()
    said = f"transformers {transformers.__version__}, label {names[index]!r}{' turned over' if turned else ''}"
    return Scorer(name, said, known, score)


def toxic_label(names: Sequence[str], wanted: str = "", *, where: str = "the model") -> tuple[int, bool]:
    """Which of a classifier's labels counts as toxic, and whether its probability is to be turned over.

    Without `wanted` a label whose name says so is taken; of two labels, one that says it is not toxic (``nothate``) is turned
    over. Names such as ``LABEL_1`` say nothing: then the label has to be named.

    Raises:
        UnknownName: no label `wanted`.
        UsageError: no label's name says it, or several do.
    Example:
        >>> toxic_label(["neutral", "toxic"]), toxic_label(["nothate", "hate"]), toxic_label(["ok", "bad"], "bad")
        ((1, False), (1, False), (1, False))
    """
    folded = [n.casefold().replace("_", " ").replace("-", " ") for n in names]
    if wanted:
        if wanted not in names:
            raise UnknownName(f"{where} has no label {wanted!r}; it has {', '.join(names)}.{nearest(wanted, names)}")
        return names.index(wanted), False
    said = [i for i, n in enumerate(folded) if n in TOXIC]
    exact = [i for i in said if folded[i] in ("toxic", "toxicity")]
    if len(said) == 1 or len(exact) == 1:
        return (exact or said)[0], False
    harmless = [
        i for i, n in enumerate(folded) if n in ("not toxic", "nontoxic", "non toxic", "not hate", "nothate", "safe")
    ]
    if not said and len(names) == 2 and len(harmless) == 1:
        return harmless[0], True
    raise UsageError(
        f"{where} has the labels {', '.join(names)}, and {'several of them' if said else 'none of them'} may count as toxic. Name one: "
        f"hf:{where}#{names[-1]}"
    )


# ---- trained here -----------------------------------------------------------------------------------------------------


def train_scorer(
    texts: Sequence[str], labels: Sequence[int], path: str | Path, *, strength: float = 1.0, max_tokens: int = 48,
    device: str | None = None, overwrite: bool = False,
) -> Scorer:  # fmt: skip
    """Train the scorer ``minilm:path``: logistic regression on MiniLM's sentence embeddings; the encoder stays as it is.

    The file is safetensors: weights, and as JSON what encoder they belong to and what they were trained on: marks of the
    texts, by which they are kept out of measuring it, not the texts themselves.

    Args:
        texts, labels: 1 for toxic, 0 for not. Keep others to measure the scorer with.
        path: the file to write.
        strength: inverse of the ridge, scikit-learn's C.
        max_tokens: of each text that are read.
        overwrite: replace a file that is there.
    Raises:
        UsageError: labels other than 0 and 1, or only one of them.
        MissingExtra: scikit-learn or the MiniLM package is not installed.
    """
    marks = np.asarray(labels)
    if len(marks) != len(texts) or set(marks.tolist()) != {0, 1}:
        raise UsageError(
            f"a scorer learns from one label, 0 or 1, for each text, and from both; got {len(marks)} for {len(texts)}."
        )
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise missing_extra("scikit-learn", "scorers", "training a scorer") from None
    from ..models.hub import minilm

    module, base, _ = minilm(max_tokens=max_tokens)
    embedded = _embedded(texts, max_tokens=max_tokens, device=device, module=module)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(embedded, marks)
    facts = {
        "encoder": base.fingerprint(), "max_tokens": max_tokens, "strength": strength, "texts": len(texts), "toxic": int(marks.sum()),
        "data": hashlib.sha256(json.dumps([list(texts), marks.tolist()]).encode()).hexdigest(),
        "scikit-learn": _version("scikit-learn"), "learnt": sorted({mark_of(t) for t in texts}),
    }  # fmt: skip
    table = {
        FACTS: np.frombuffer(json.dumps(facts).encode(), np.uint8), "weight": fitted.coef_[0].astype(np.float32),
        "bias": fitted.intercept_.astype(np.float32),
    }  # fmt: skip
    Checkpoint.of(table, label="scorer").save(path, overwrite=overwrite)
    return _minilm(Path(path), device=device)


def _minilm(path: Path, *, device: str | None) -> Scorer:
    from ..models.hub import minilm

    file = Checkpoint.read(path)
    try:
        facts = json.loads(file.array(FACTS).tobytes())
        weight, bias = file.array("weight").astype(np.float32), file.array("bias").astype(np.float32)
        max_tokens, encoder = int(facts["max_tokens"]), str(facts["encoder"])
        said = f"trained on {facts['texts']} texts ({str(facts['data'])[:12]})"
        learnt = frozenset(map(str, facts.get("learnt", ())))
    except (KeyMismatch, UnknownName, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is no scorer: it has the tensors {some(file.names)}. Make one with train_scorer."
        ) from error
    module, base, _ = minilm(max_tokens=max_tokens)
    if base.fingerprint() != encoder:
        raise InputError(
            f"{path} was trained on the embeddings of another encoder than the MiniLM that is installed. Train it again."
        )

    def score(texts: Sequence[str]) -> np.ndarray:
        z = _embedded(texts, max_tokens=max_tokens, device=device, module=module) @ weight + bias[0]
        return 1 / (1 + np.exp(-z.clip(-60, 60)))

    return Scorer(f"minilm:{path.name}", f"MiniLM, {said}", _hash([path]), score, learnt)


def _embedded(texts: Sequence[str], *, max_tokens: int, device: str | None, module: Any) -> np.ndarray:
    """Unit embeddings, float32 ``[n, 384]``; texts of like length are read together."""
    from ..models.hub import minilm_folder, tokenizer

    torch = require_torch("Embedding texts")
    ids = tokenizer(minilm_folder(), max_tokens=max_tokens)(texts)
    where = torch.device(device or "cpu")
    module = module.to(where)
    order = (ids != 0).sum(1).argsort(stable=True)
    out = torch.zeros(len(texts), 384)
    with torch.inference_mode():
        for rows in order.split(PIECE):
            out[rows] = module(ids[rows].to(where)).cpu()
    return (out / out.norm(dim=1, keepdim=True)).numpy()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _hash(files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for f in files:
        found.update(f.read_bytes())
    return found.hexdigest()
