"""The overview of a study: one table for each question, a line for each base and regime, mean and spread over seeds.

Results say where they belong in ``provenance.settings["study"]`` (base, regime, protocol, seed, perhaps target or distance).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..results import Row
from .story import Section
from .tables import Cell, Table
from .words import NONE, clean, count

Where = Mapping[str, Any]
Key = tuple[str, str]  # base, regime
Numbers = dict[Key, dict[int, dict[str, float]]]  # key -> seed -> measure -> value


@dataclass(frozen=True)
class Claim:
    """An ordering that a paper found.

    Args:
        said: in words.
        source: where it was found, with its numbers.
        measure: which number is compared.
        high, low: regimes, the first expected above the second; for `across`, bases.
        across: compare bases within each regime instead.
        equal: whether equal values agree with it.
    """

    said: str
    source: str
    measure: str
    high: str
    low: str
    across: bool = False
    equal: bool = False


# Numbers of the papers that are quoted from memory in later work, not checked in the paper itself, are marked ~.
CLAIMS = (
    Claim("single tasks: tangent at or below standard", "arXiv:2305.12827", "single", "standard", "tangent", equal=True),
    Claim("sum: tangent above standard", "arXiv:2305.12827, CLIP ViT-B/32: ~76.5 against ~71.4", "sum", "tangent", "standard"),
    Claim("sum: linear-only at or above tangent", "arXiv:2407.07089", "sum", "linear-only", "tangent", equal=True),
    Claim("normalised: post-hoc above standard", "arXiv:2305.12827, CLIP ViT-B/32: ~81.9 against ~76.5", "normalised", "post-hoc", "standard"),
    Claim("sum: post-hoc below standard", "arXiv:2305.12827, CLIP ViT-B/32: ~57.1 against ~71.4", "sum", "standard", "post-hoc"),
    Claim("ξ: tangent below standard", "arXiv:2305.12827", "xi", "standard", "tangent"),
    Claim("ξ: linear-only below standard", "arXiv:2407.07089", "xi", "standard", "linear-only"),
    Claim("ξ: pre-trained below random", "arXiv:2305.12827", "xi", "random", "", across=True),
    Claim("negation, target: tangent below standard", "arXiv:2305.12827, CLIP ViT-B/32: ~10.9 against 24.0", "target", "standard", "tangent"),
)  # fmt: skip


TRYOUT = "This is a try-out, with few updates and samples: it shows that all parts run, its numbers mean nothing."


def belongs(result: Any) -> Where | None:
    """Where in a study a result belongs; None for one of its own."""
    where = result.provenance.settings.get("study") if hasattr(result, "provenance") else None
    return where if isinstance(where, Mapping) and {"base", "regime", "protocol", "seed"} <= set(where) else None


def overview(results: Sequence[Any]) -> list[tuple[str, Section, list[tuple[Where, Any]]]]:
    """Sections over all results of each study, each with its kind and the results it tells; empty if none belongs to one."""
    studies: dict[tuple[str, bool], list[tuple[Where, Any]]] = {}  # a try-out is never averaged with the study
    for r in results:
        if where := belongs(r):
            studies.setdefault((str(where.get("name", "")), bool(where.get("tryout"))), []).append((where, r))
    out = []
    for (name, tryout), placed in studies.items():
        told = _one(placed)
        if tryout:
            name += ", try-out"
            told = [(kind, replace(s, sentences=(TRYOUT, *s.sentences)), which) for kind, s, which in told]
        if len(studies) > 1:
            told = [
                (kind, replace(s, title=f"{clean(name)}: {s.title[0].lower()}{s.title[1:]}"), which)
                for kind, s, which in told
            ]
        out += told
    return out


def _one(placed: list[tuple[Where, Any]]) -> list[tuple[str, Section, list[tuple[Where, Any]]]]:
    """The sections of one study."""
    from .toxicity import whole  # it tells with what this module has

    out = []
    for kind, tell in (("addition", _addition), ("negation", _negation), ("analogy", _analogy),
                       ("disentanglement", _disentanglement), ("geometry", _geometry), ("locality", _locality), ("few-shot", _few_shot),
                       ("toxicity", whole)):  # fmt: skip
        mine = [(w, r) for w, r in placed if w["protocol"] == kind]
        if mine:
            out.append((kind, tell(mine), mine))
    claims = _claims(measured(placed))
    return [*out, ("orderings", claims, [])] if claims else out


def measured(placed: Iterable[tuple[Where, Any]]) -> Numbers:
    """The numbers that claims compare."""
    out: Numbers = {}
    negations: dict[tuple[Key, int], list[Row]] = {}
    for where, result in placed:
        key, seed = (str(where["base"]), str(where["regime"])), int(where["seed"])
        here = out.setdefault(key, {}).setdefault(seed, {})
        if result.kind == "addition":
            here["base"] = result.row("base").mean.value
            here["single"] = result.row("fine-tuned").mean.value
            here["sum"] = result.row("task arithmetic").mean.value
            here["normalised"] = result.row("task arithmetic").mean_normalised
        elif result.kind == "disentanglement" and result.distance == "prediction":
            here["xi"] = statistics.mean(result.mean(p) for p in result.pairs)
        elif result.kind == "negation":
            rows = negations.setdefault((key, seed), [])
            rows.append(result.row("task arithmetic"))
            here["target"] = statistics.mean(r.scores[t].value for r in rows for t in list(r.scores)[:1])
    return out


def _claims(numbers: Numbers) -> Section | None:
    """Does each ordering of the papers hold here? Differences seed by seed."""
    rows = []
    for claim in CLAIMS:
        for name, pairs in _pairs(claim, numbers):
            gaps = [a - b for a, b in pairs]
            held = sum(g > 0 or (claim.equal and g == 0) for g in gaps)
            scale = 1 if claim.measure in ("xi", "normalised") else 100
            rows.append(
                (
                    Cell(clean(claim.said), (claim.source,)),
                    Cell(clean(name)),
                    Cell(spread([scale * g for g in gaps], digits=3 if scale == 1 else 1, signed=True)),
                    Cell(f"{held} of {len(gaps)}"),
                    Cell("yes" if held == len(gaps) else "no" if held == 0 else "in part"),
                )
            )
    if not rows:
        return None
    held = sum(r[-1].text == "yes" for r in rows)
    return Section(
        title="Do the papers’ orderings hold here?",
        question="Which findings of the papers does this study show, seed by seed?",
        equation="difference = larger expected − smaller expected",
        figure=f"{held} of {len(rows)}",
        figure_label="orderings that hold in every seed",
        verdict="",
        sentences=(
            f"Of {count(len(rows), 'ordering')} {held} hold in every seed of this study.",
            "A difference that holds in every one of a few seeds may still be chance: with three seeds an ordering without any effect "
            "holds in all of them one time in eight.",
        ),
        tables=(Table("Orderings", ("finding", "where", "difference", "seeds in which it holds", "holds"), tuple(rows)),),
        notes=(
            "The papers fine-tune CLIP models on eight image tasks; with other models and data than these an ordering may differ for that "
            "alone. Where a paper’s numbers are marked ~ they were taken from later work.",
        ),
    )  # fmt: skip


def _pairs(claim: Claim, numbers: Numbers) -> list[tuple[str, list[tuple[float, float]]]]:
    """(where, values of the two sides in the seeds that have both)."""
    found = []
    bases, regimes = (list(dict.fromkeys(k[i] for k in numbers)) for i in (0, 1))
    sides: list[tuple[str, Key, Key]] = []
    if claim.across:
        others = [b for b in bases if b != claim.high]
        sides = [(f"{b}, {r}", (claim.high, r), (b, r)) for b in others for r in regimes]
    else:
        sides = [(b, (b, claim.high), (b, claim.low)) for b in bases]
    for name, high, low in sides:
        a, b = numbers.get(high, {}), numbers.get(low, {})
        pairs = [
            (a[s][claim.measure], b[s][claim.measure])
            for s in sorted(set(a) & set(b))
            if claim.measure in a[s] and claim.measure in b[s]
        ]
        if pairs:
            found.append((name, pairs))
    return found


def spread(values: Sequence[float], *, digits: int = 1, signed: bool = False) -> str:
    """Mean and standard deviation over seeds; the value itself for one seed.

    Example:
        >>> spread([80.0, 82.0]), spread([80.0])
        ('81.0 ± 1.4', '80.0')
    """
    if not values:
        return NONE
    sign = "+" if signed else ""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


REGIMES = ("standard", "post-hoc", "tangent", "linear-only")  # as papers list them; others follow by name


def by_key(placed: Sequence[tuple[Where, Any]]) -> dict[Key, list[tuple[Where, Any]]]:
    """Results by base and regime: bases as they come, regimes as papers list them."""
    out: dict[Key, list[tuple[Where, Any]]] = {}
    for where, result in placed:
        out.setdefault((str(where["base"]), str(where["regime"])), []).append((where, result))
    bases = list(dict.fromkeys(base for base, _ in out))
    rank = {r: i for i, r in enumerate(REGIMES)}
    return {k: out[k] for k in sorted(out, key=lambda k: (bases.index(k[0]), rank.get(k[1], len(rank)), k[1]))}


def _seeds(found: Sequence[tuple[Where, Any]]) -> str:
    seeds = sorted({int(w["seed"]) for w, _ in found})
    return ", ".join(map(str, seeds))


def _share(
    rows: Sequence[Row | None], measure: Callable[[Row], float | None] = lambda r: r.mean.value, scale: float = 100
) -> Cell:
    """A number of a row over seeds; with one seed, its interval."""
    there = [r for r in rows if r is not None]
    values = [v for r in there if (v := measure(r)) is not None]
    if not values:
        return Cell(NONE)
    text = spread([scale * v for v in values], digits=1 if scale == 100 else 3)
    if len(there) == 1 and scale == 100:
        m = there[0].mean
        return Cell(text, (f"[{100 * m.low:.1f}, {100 * m.high:.1f}]",))
    return Cell(text)


def _row(result: Any, name: str) -> Row | None:
    return next((r for r in result.rows if r.name == name), None)


def _named(name: str, results: Sequence[Any]) -> Cell:
    return _share([_row(r, name) for r in results])


def _table(
    caption: str, placed: Sequence[tuple[Where, Any]], columns: Mapping[str, Callable[[Sequence[Any]], Cell]]
) -> Table:
    """A line for each base and regime; columns that are empty everywhere are left out."""
    lines = []
    for (base, regime), found in by_key(placed).items():
        results = [r for _, r in found]
        lines.append(
            (Cell(clean(base)), Cell(clean(regime)), Cell(_seeds(found)), *(f(results) for f in columns.values()))
        )
    kept = [i for i in range(len(columns) + 3) if i < 3 or any(line[i].text != NONE for line in lines)]
    heads = ("base", "regime", "seeds", *columns)
    return Table(caption, tuple(heads[i] for i in kept), tuple(tuple(line[i] for i in kept) for line in lines))


def _rates(results: Sequence[Any]) -> Cell:
    rates = sorted({float(r.provenance.settings["lr"]) for r in results if "lr" in r.provenance.settings})
    return Cell(", ".join(f"{x:g}" for x in rates) or NONE)


def _addition(placed: Sequence[tuple[Where, Any]]) -> Section:
    tasks = placed[0][1].tasks

    def column(
        name: str, measure: Callable[[Row], float | None] = lambda r: r.mean.value, scale: float = 100
    ) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: _share([_row(r, name) for r in results], measure, scale)

    columns = {
        "base": column("base"),
        "single tasks": column("fine-tuned"),
        "sum": column("task arithmetic"),
        "sum, normalised": column("task arithmetic", lambda r: r.mean_normalised, 1),
        "coefficient": column("task arithmetic", lambda r: r.coefficient, 1),
        "one coefficient each": column("one coefficient each"),
        "random vector": column("random vector"),
        "joint training": column("joint training"),
        "ensemble of logits": column("ensemble of logits"),
        "rate": _rates,
    }
    tables = [_table(f"Mean test accuracy over {count(len(tasks), 'task')}, %", placed, columns)]
    tables.append(
        _table(
            "Test accuracy of the sum by task, %, and of the model of that task alone",
            placed,
            {clean(t): functools.partial(_by_task, t) for t in tasks},
        )
    )
    sizes = sorted({len(row.scores) for _, r in placed for row in r.subsets})
    if sizes:
        by_size = {f"{n} tasks": functools.partial(_subsets, n) for n in sizes}
        tables.append(_table("Sums of some of the tasks: mean normalised accuracy", placed, by_size))
    best = max(
        by_key(placed).items(), key=lambda kv: statistics.mean(r.row("task arithmetic").mean.value for _, r in kv[1])
    )
    said = [
        f"The sum of {len(tasks)} task vectors scores highest in {_words(best[0])}: "
        f"{spread([100 * r.row('task arithmetic').mean.value for _, r in best[1]])} % on the mean over tasks, where the base has "
        f"{spread([100 * r.row('base').mean.value for _, r in best[1]])} % and each task's own model "
        f"{spread([100 * r.row('fine-tuned').mean.value for _, r in best[1]])} %.{_picked(len(by_key(placed)))}",
        f"{HEADS.get(str(placed[0][0].get('heads')), HEADS['probed'])} ± is the standard deviation over seeds.",
    ]
    return Section(
        title="Addition, over all regimes",
        question="Does one model, edited by a sum of task vectors, do all the tasks?",
        equation="θ = θ₀ + α Σₜ τₜ",
        figure=spread([100 * r.row("task arithmetic").mean.value for _, r in best[1]]),
        figure_label=f"% mean test accuracy of the sum, {_highest(len(by_key(placed)))}{_words(best[0])}",
        verdict="",
        sentences=tuple(said),
        tables=tuple(tables),
        notes=(),
    )


HEADS = {
    "probed": "Heads are probed on the base and frozen: the column ‘base’ is the linear probe.",
    "zero-shot": "Heads are made of class names and frozen: the column ‘base’ is zero-shot.",
    "joint": "Heads were trained with their task’s model: the column ‘base’ has the base’s features under these heads.",
}


def _picked(lines: int) -> str:
    """What is to be said of a line that is told because its number is the best."""
    if lines == 1:
        return ""
    return f" That is the best of {lines} lines by these same test scores, so it flatters a little; to choose one, use validation data."


def _highest(lines: int) -> str:
    return "" if lines == 1 else f"best of {lines} lines: "


def _words(key: Key) -> str:
    return f"{clean(key[0])}, {clean(key[1])}"


def _by_task(task: str, results: Sequence[Any]) -> Cell:
    summed, alone = ([100 * r.row(n).scores[task].value for r in results] for n in ("task arithmetic", "fine-tuned"))
    return Cell(spread(summed), (f"alone {spread(alone)}",))


def _subsets(size: int, results: Sequence[Any]) -> Cell:
    """Over seeds: the mean over the subsets of one size."""
    means = []
    for r in results:
        found = [
            row.mean_normalised for row in r.subsets if len(row.scores) == size and row.mean_normalised is not None
        ]
        means += [statistics.mean(found)] if found else []
    return Cell(spread(means, digits=3))


def _negation(placed: Sequence[tuple[Where, Any]]) -> Section:
    def column(name: str, role: str) -> Callable[[Sequence[Any]], Cell]:
        def cell(results: Sequence[Any]) -> Cell:
            by_seed: dict[int, list[float]] = {}
            for r in results:
                if row := _row(r, name):
                    by_seed.setdefault(int(r.provenance.settings["study"]["seed"]), []).append(
                        row.scores[getattr(r, role)].value
                    )
            return Cell(spread([100 * statistics.mean(v) for v in by_seed.values()]))

        return cell

    columns = {
        f"{name}: {role}": column(name, role)
        for name in ("base", "fine-tuned", "task arithmetic", "gradient ascent", "random vector")
        for role in ("target", "control")
    }
    targets = list(dict.fromkeys(str(w.get("target", "")) for w, _ in placed))
    first = by_key(placed)
    best = min(
        first.items(), key=lambda kv: statistics.mean(r.row("task arithmetic").scores[r.target].value for _, r in kv[1])
    )
    before, after = ([100 * r.row(n).scores[r.target].value for _, r in best[1]] for n in ("base", "task arithmetic"))
    rows = []
    for target in targets:
        for (base, regime), found in by_key([(w, r) for w, r in placed if w.get("target") == target]).items():
            edited = [r.row("task arithmetic") for _, r in found]
            start = [r.row("base") for _, r in found]
            control = found[0][1].control
            rows.append((
                Cell(clean(target)), Cell(clean(base)), Cell(clean(regime)),
                *(Cell(spread([100 * row.scores[t].value for row in which])) for t in (target, control) for which in (start, edited)),
                Cell(spread([row.coefficient for row in edited], digits=2)),
            ))  # fmt: skip
    heads = (
        "target",
        "base",
        "regime",
        "target before",
        "target after",
        "control before",
        "control after",
        "coefficient",
    )
    return Section(
        title="Negation, over all targets and regimes",
        question="Does subtracting a task vector make the model forget that task and nothing else?",
        equation="θ = θ₀ − α τ",
        figure=f"{statistics.mean(after):.1f}",
        figure_label=f"% mean test accuracy on the targets after, {_highest(len(first))}{_words(best[0])}",
        verdict="",
        sentences=(
            f"Over {count(len(targets), 'target')}, the target "
            + (f"falls furthest in {_words(best[0])}: from" if statistics.mean(after) < statistics.mean(before) else "falls nowhere:")
            + f" {statistics.mean(before):.1f} % to {statistics.mean(after):.1f} % on the mean, with the control kept at "
            f"{100 * placed[0][1].control_share:g} % of the base's on "
            f"validation data.{_picked(len(first))} Mean over targets; ± is the standard deviation over seeds.",
        ),
        tables=(
            _table("Mean test accuracy over targets, %", placed, columns),
            Table("By target, %", heads, tuple(rows)),
        ),
        notes=(
            "Beside it, CLIP ViT-B/32 over eight targets with ImageNet as control (arXiv:2212.04089): base 48.3 / 63.4, negative task "
            "vector 24.0 / 60.9, gradient ascent 2.7 / 0.3, random vector 45.7 / 61.5.",
        ),
    )  # fmt: skip


def _analogy(placed: Sequence[tuple[Where, Any]]) -> Section:
    names = ("base", "source", "random vector", "analogy", "target-tuned")
    columns = {n: functools.partial(_named, n) for n in names}
    cells = placed[0][1].cells
    gaps = [100 * (r.row("analogy").mean.value - r.row("source").mean.value) for _, r in placed]
    held = sum(g > 0 for g in gaps)
    return Section(
        title="Analogy, over all regimes",
        question=f"{cells['A']} is to {cells['B']} as {cells['C']} is to {cells['D']}: is the fourth built from three?",
        equation="θ = θ₀ + α (τ_C + (τ_B − τ_A))",
        figure=spread(gaps, signed=True),
        figure_label="points of test accuracy over the best source",
        verdict="",
        sentences=(
            f"The analogy is above the best source in {held} of {len(gaps)} runs; the difference is {spread(gaps, signed=True)} points "
            "(± is the standard deviation over all of these runs; in the table, over seeds). The source is chosen on validation data, as are all "
            "coefficients.",
        ),
        tables=(_table("Test accuracy on D, %", placed, columns),),
        notes=(),
    )  # fmt: skip


def _disentanglement(placed: Sequence[tuple[Where, Any]]) -> Section:
    def column(distance: str) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: Cell(
            spread([statistics.mean(r.mean(p) for p in r.pairs) for r in results if r.distance == distance], digits=3)
        )

    def worst(results: Sequence[Any]) -> Cell:
        return Cell(spread([max(r.mean(p) for p in r.pairs) for r in results if r.distance == "prediction"], digits=3))

    columns = {
        "mean ξ, predictions": column("prediction"),
        "largest of the pairs": worst,
        "mean ξ, before the head": column("representation"),
    }
    lowest = min(
        (kv for kv in by_key([p for p in placed if p[1].distance == placed[0][1].distance]).items()),
        key=lambda kv: statistics.mean(r.mean(p) for _, r in kv[1] for p in r.pairs),
    )
    values = [statistics.mean(r.mean(p) for p in r.pairs) for _, r in lowest[1]]
    low, high = placed[0][1].box
    return Section(
        title="Weight disentanglement, over all regimes",
        question="Does a second task vector leave the first task's predictions alone?",
        equation="ξ(α₁, α₂) = Σₜ Eₓ d(f(x; θ₀ + αₜτₜ), f(x; θ₀ + α₁τ₁ + α₂τ₂))",
        figure=spread(values, digits=3),
        figure_label=f"least mean ξ ({'predictions' if placed[0][1].distance == 'prediction' else 'before the head'}), {_words(lowest[0])}",
        verdict="",
        sentences=(
            f"ξ is a sum over the two tasks of a pair, 0 to 2; shown is its mean over the box [{low:g}, {high:g}]², over all pairs. ± is the "
            "standard deviation over seeds. Predictions: the share of validation inputs whose class changes; before the head: the "
            "normalised distance of features.",
        ),
        tables=(_table("Disentanglement error", placed, columns),),
        notes=(),
    )  # fmt: skip


def _geometry(placed: Sequence[tuple[Where, Any]]) -> Section:
    def cosine(r: Any) -> float:
        n = len(r.names)
        return statistics.mean(abs(r.cosine[i][j]) for i in range(n) for j in range(i))

    def step(measure: Callable[[Any], float | None]) -> Callable[[Sequence[Any]], Cell]:
        def cell(results: Sequence[Any]) -> Cell:
            found = [[v for s in r.steps if (v := measure(s)) is not None] for r in results]
            return Cell(spread([statistics.mean(f) for f in found if f], digits=3))

        return cell

    columns = {
        "mean |cosine|": lambda results: Cell(spread([cosine(r) for r in results], digits=3)),
        "norm, of the base's": lambda results: Cell(
            spread([statistics.mean(r.norms) / r.base_norm for r in results if r.base_norm], digits=4)
        ),
        "not linear": step(lambda s: s.nonlinearity),
        "non-linear advantage": step(lambda s: s.advantage),
    }
    everywhere = [cosine(r) for _, r in placed]
    return Section(
        title="Geometry, over all regimes",
        question="How large are the task vectors, how do they lie to each other, and how far from linear are their steps?",
        equation="cosine = ⟨τᵢ, τⱼ⟩ / (‖τᵢ‖ ‖τⱼ‖)",
        figure=f"{statistics.mean(everywhere):.3f}",
        figure_label="mean |cosine| between task vectors",
        verdict="",
        sentences=("Means over tasks or pairs; ± is the standard deviation over seeds.",),
        tables=(_table("Geometry", placed, columns),),
        notes=(),
    )


def _locality(placed: Sequence[tuple[Where, Any]]) -> Section:
    columns = {"energy across, relative": lambda results: Cell(spread([r.across for r in results], digits=3))}
    return Section(
        title="Locality of the tangent kernel, over all bases",
        question="Do the leading eigenfunctions of one task's kernel have their energy on its own inputs?",
        equation="E(x) = Σ_ρ φ_ρ(x)²",
        figure=spread([r.across for _, r in placed], digits=2),
        figure_label="mean energy on other tasks' inputs over all bases and seeds, own inputs are 1",
        verdict="",
        sentences=(
            "Below 1 means local; 1 means that a task's eigenfunctions live on other tasks' inputs as much as on its own.",
        ),
        tables=(_table("Locality", placed, columns),),
        notes=(),
    )


def _few_shot(placed: Sequence[tuple[Where, Any]]) -> Section:
    labels = placed[0][1].labels
    alike = [(w, r) for w, r in placed if r.labels == labels]
    starts = [s.name for s in placed[0][1].starts]

    def column(start: str, i: int) -> Callable[[Sequence[Any]], Cell]:
        return lambda results: Cell(spread([100 * r.start(start).scores[i].value for r in results]))

    columns = {f"{n}: {count(k, 'label')}": column(n, i) for n in starts for i, k in enumerate(labels)}
    main = "analogy" if "analogy" in starts else starts[-1]
    gaps = [100 * (r.start(main).scores[0].value - r.start("base").scores[0].value) for _, r in alike]
    worth = [r.labels_needed("base", main)[0] for _, r in alike]
    reached = sorted(n for n in worth if n is not None)
    said = f"In {len(worth) - len(reached)} of {len(worth)} runs none of the numbers that were tried is enough for it" + (
        f"; in the others the base first has it with {count(reached[0], 'label')}"
        + (f" to {reached[-1]}" if reached[-1] > reached[0] else "") + "." if reached else "."
    )  # fmt: skip
    return Section(
        title="Few shots, over all regimes",
        question=f"How many labels of {clean(placed[0][1].task)} does a start spare that never saw one?",
        equation="θ = fine-tuned on k labels of each class, from θ₀ + α τ",
        figure=spread(gaps, signed=True),
        figure_label=f"points of test accuracy: {clean(main)} over base, with {count(labels[0], 'label')}",
        verdict="",
        sentences=(
            f"How many labels does the base need for what the start ‘{clean(main)}’ has with {count(labels[0], 'label')}? {said}",
            "Nothing is interpolated between the numbers of labels that were tried. Coefficients were chosen on labelled validation samples, "
            "which are not counted. ± is the standard deviation over seeds.",
        ),
        tables=(_table(f"Test accuracy on {clean(placed[0][1].task)}, %", alike, columns),),
        notes=tuple(dict.fromkeys(n for _, r in alike for n in r.notes if not n.startswith("The source"))),
    )  # fmt: skip
