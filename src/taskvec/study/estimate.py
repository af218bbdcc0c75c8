"""How long a study will take: from cells of the same kind that are there, else from timing its model on random inputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.texts import Tokens
from . import fairness
from .cells import Cell, Store, ordered
from .language import language_base, passages
from .plan import plan
from .running import CELLS, chosen
from .spec import Study
from .work import HELD, Bench

if TYPE_CHECKING:
    import torch

# A step of each regime, in steps of standard fine-tuning (docs/training.md), and of each pre-training.
REGIME = {
    "standard": 1.0, "tangent": 1.65, "linear-only": 0.75, "linear-only-biases": 0.75, "bias-attention": 0.75, "mlp-only": 0.9,
    "lora": 0.7, "linearised-lora": 1.15,
}  # fmt: skip
PRETRAINING = {"supervised": 1.2, "masked": 0.7, "self-distilled": 3.5, "contrastive": 2.5}


@dataclass(frozen=True)
class Estimate:
    """A cell, whether it is there, and its seconds: measured if it is there, else expected."""

    label: str
    kind: str
    key: str
    done: bool
    seconds: float


def estimate(
    study: Study, out: str | Path, *, root: str | Path | None = None, only: Sequence[str] = (), device: str | None = None,
    download: bool = False, memory: int = HELD,
) -> list[Estimate]:  # fmt: skip
    """Every cell of a study in the order of the work. Opens the data sets, so that missing ones are found now."""
    store = Store(Path(out) / CELLS)
    place = Path(root) if root is not None else None
    cells = ordered(chosen(plan(study, place, only), only))
    bench = Bench(store, place, download, device, memory)
    clock = _Clock(bench)
    known: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        if store.done(cell):
            known.setdefault(_alike(cell), []).append(store.seconds(cell))
    found = []
    for cell in cells:
        done = store.done(cell)
        like = known.get(_alike(cell))
        seconds = store.seconds(cell) if done else sum(like) / len(like) if like else clock.expected(cell)
        found.append(Estimate(cell.label, cell.kind, cell.key, done, round(seconds, 2)))
    return found


def _alike(cell: Cell) -> tuple[Any, ...]:
    """Cells that take about as long as each other."""
    facts = cell.facts
    where = facts.get("where", {})
    base = cell if cell.kind == "base" else cell.needs.get("base")
    sizes = (
        [base.facts.get(n) for n in ("read", "width", "depth", "pretrain" if cell.kind == "base" else "patch")]
        if base
        else []
    )
    return (
        cell.kind, *sizes, facts.get("regime"), facts.get("steps"), facts.get("batch"), where.get("regime"), where.get("target"),
        len(facts.get("tasks", ())), str(facts.get("who")), str((cell.needs.get("start") or cell).facts.get("people")),
    )  # fmt: skip


class _Clock:
    """Seconds per sample of each base's model, timed once."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.timed: dict[Any, tuple[float, float]] = {}

    def expected(self, cell: Cell) -> float:
        facts = cell.facts
        if cell.kind == "rate":
            return 0.0
        if cell.kind in ("language", "tune", "toxicity"):
            return self.language(cell)
        if cell.kind in ("start", "subgroup", "fairness"):
            return fairness.expected(self.bench, cell)
        if cell.kind == "words":
            return self.words(cell)
        if cell.kind == "given" or (cell.kind == "base" and not facts.get("pretrain")):
            return 0.5
        ahead, step = self.speed(cell if cell.kind == "base" else cell.needs["base"])
        if cell.kind == "base":
            return facts["steps"] * facts["batch"] * step * PRETRAINING[facts["pretrain"]]
        if cell.kind == "modelled":  # the vocabulary's logits take about as long as a layer or two
            return facts["steps"] * facts["batch"] * 1.5 * step * REGIME[facts["regime"]]
        sizes = [self.sizes(f, cell) for f in facts["tasks"]]
        train, validation, test = (sum(s[i] for s in sizes) for i in range(3))
        if cell.kind == "head":
            return 1.0 + train * ahead
        if cell.kind == "fit":
            samples = facts["steps"] * facts["batch"] * facts["accumulate"]
            return samples * step * REGIME[facts["regime"]] + 2 * validation * ahead
        options, n = facts["options"], len(sizes)
        points = options["coefficients"]["points"] if "coefficients" in options else 1
        linear = (
            facts["forward"] == "linearised"
            or "tangent" in facts["where"]["regime"]
            or "linearised" in facts["where"]["regime"]
        )
        per_grid = 2.5 if linear else points
        if cell.kind == "addition":
            subsets = {"none": 0, "pairs": math.comb(n, 2) * 2 / n, "all": (2**n - n - 1) / 2}[options["subsets"]]
            own = 3 * n * points * (2.5 if linear else 1) if options["per_task"] else 0
            ensemble = n if "ensemble" in options["baselines"] else 0
            return ahead * (validation * (per_grid * (2 + subsets) + own) + test * (5 + subsets + ensemble))
        if cell.kind == "few-shot":
            samples = options["spec"]["steps"] * options["spec"]["batch"] * sum(k > 0 for k in options["shots"])
            # Three starts; the target is the last of the cells.
            return (
                3 * (samples * step + sizes[-1][2] * ahead * len(options["shots"])) + 5 * sizes[-1][1] * ahead * points
            )
        if cell.kind == "skills":
            others = n - 1 + sum(r.startswith("text ") for r in cell.needs)
            return ahead * (validation * (1 if linear else points) * (others + 1) + 4 * test)
        if cell.kind in ("negation", "analogy"):
            return ahead * (validation * per_grid * (3 + len(options.get("ratios", (1.0,)))) + test * 5)
        if cell.kind == "disentanglement":
            return ahead * validation * ((n - 1) * 2.5 if linear else (n - 1) * points**2)
        return ahead * validation * (8 if cell.kind == "geometry" else 4)

    def words(self, cell: Cell) -> float:
        """Seconds for a head over the vocabulary: logits of 128 tokens at a time, and of the encoder on all texts."""
        facts = cell.facts
        texts = sum(len(passages(f, self.bench.root)) for f in facts["texts"])
        return facts["steps"] * 0.3 + texts * facts["copies"] * self.speed(cell.needs["base"])[0]

    def language(self, cell: Cell) -> float:
        """Seconds of a language model's cell: by the tokens that go through it, three times as much for those trained on."""
        facts = cell.facts
        if cell.kind == "language":
            return 1.0
        token = self.token(cell.needs["base"])
        if cell.kind == "tune":
            return 3 * facts["steps"] * facts["batch"] * facts["accumulate"] * facts["window"] * token
        options = facts["options"]
        if options["unprompted"]:
            validation, test = options["unprompted"]
        else:
            validation = test = len(passages(facts["texts"]["prompts"], self.bench.root)) / 2
        read = sum(len(t.split()) for t in passages(facts["texts"]["control"], self.bench.root).texts) / 2 * 1.5
        tuned = 1 + len({"toxic", "ascent"} & set(cell.needs)) + 2 * ("clean" in cell.needs)  # clean text has two rows
        points = tuned * options["coefficients"]["points"]
        rows = 2 + tuned + bool(options["banned"])
        written = points * validation * options["validation_samples"] + rows * test * options["samples"]
        return token * (written * options["tokens"] + (points + rows) * read)

    def token(self, base: Cell) -> float:
        """Seconds for a token of a language model, in a batch of sixteen short rows."""
        key = base.facts["read"]
        if key not in self.timed:
            import torch

            if not Path(key).exists():
                return 0.01  # on the hub: it may not be here yet
            model = language_base(Path(key), self.bench.device)
            ids = torch.zeros(16, 8, dtype=torch.int64, device=next(model.module.parameters()).device)
            with torch.inference_mode():
                model.module(input_ids=ids)
                began = time.perf_counter()
                model.module(input_ids=ids)
            self.timed[key] = ((time.perf_counter() - began) / ids.numel(), 0.0)
        return self.timed[key][0]

    def sizes(self, facts: Mapping[str, Any], cell: Cell) -> tuple[int, int, int]:
        task = self.bench.task(facts, self.prepare(cell.needs["base"]))
        return len(task.train), len(task.validation), len(task.test)

    def prepare(self, base: Cell) -> Any:
        from ..models.preprocess import Preprocess

        if base.facts.get("read"):
            return self.bench.base(base).prepare
        return Preprocess(base.facts["image"]["size"], base.facts["image"]["channels"])

    def speed(self, base: Cell) -> tuple[float, float]:
        """Seconds for one sample: forward, and a standard training step."""
        key = (
            (base.facts["read"], base.facts.get("tokens"))
            if base.facts.get("read")
            else tuple(str(base.facts[n]) for n in ("image", "patch", "width", "depth"))
        )
        if key not in self.timed:
            self.timed[key] = _timed(self.module(base), self.prepare(base))
        return self.timed[key]

    def module(self, base: Cell) -> torch.nn.Module:
        import torch

        from ..models.vit import small_vit

        facts = base.facts
        if facts.get("read"):
            return self.bench.base(base).module
        model = small_vit(
            image=facts["image"]["size"], channels=facts["image"]["channels"], patch=facts["patch"], width=facts["width"],
            depth=facts["depth"], heads=facts["attention_heads"], generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return model.to(self.bench.device) if self.bench.device else model


def _timed(module: torch.nn.Module, prepare: Any) -> tuple[float, float]:
    import torch

    device = next(module.parameters()).device
    if isinstance(prepare, Tokens):  # half of what a text may have
        x = torch.ones(16, max(1, prepare.most // 2), dtype=torch.int64, device=device)
    else:
        x = torch.zeros(16, prepare.channels, prepare.size, prepare.size, device=device)

    def once(run: Callable[[], Any]) -> float:
        run()
        began, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - began < 0.3:
            run()
            count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count / len(x)

    with torch.no_grad():
        ahead = once(lambda: module(x))
    trained = [p for p in module.parameters() if p.is_floating_point()]

    def step() -> None:
        with torch.enable_grad():
            torch.autograd.grad(module(x).square().sum(), [p.requires_grad_() for p in trained], allow_unused=True)

    return ahead, once(step)
