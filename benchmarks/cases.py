"""The edits that are measured, what taskvec and the peer call them, and what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Targets: "peer/plain" is CPU (the least ratio), "plain/floor" CPU (the most), "plain MB" the most memory.
SMALL = {"plain MB": 100, "fast MB": 200}


@dataclass(frozen=True)
class Row:
    """One edit, measured as several kinds of process."""

    name: str
    method: str  # a key of `edit` below, or "diff" or "compare"
    gigabytes: float = 1.0
    vectors: int = 3
    threads: tuple[int | None, ...] = (None,)
    targets: dict[str, float] = field(default_factory=dict)
    peer: bool = True
    forget: bool = False
    options: tuple[str, ...] = ()
    rounds: int | None = None


ONE = ("--threads", "1")  # where two threads share a memory bus, the second costs CPU time and brings little
TIES = {"peer/plain": 9.0, "peer/fast": 25.0, "plain MB": 150, "fast MB": 250}
AT_LEAST = {"peer/plain": 6.0, "peer/fast": 9.0}
ROWS = {
    "edit": [
        Row("task arithmetic", "task arithmetic", targets={**AT_LEAST, "fast/floor": 1.6, **SMALL}),
        Row("first edit of new inputs", "task arithmetic", forget=True, peer=False),
        Row("TIES, global exact cut", "ties", targets=TIES),
        Row("DARE, linear", "dare", targets={**AT_LEAST, **SMALL}),
        Row("slerp of two", "slerp", vectors=2, targets={**AT_LEAST, **SMALL}),
        Row("task arithmetic, one thread", "task arithmetic", targets={**AT_LEAST, "fast/floor": 1.6, **SMALL}, options=ONE),
        Row("TIES, one thread", "ties", targets=TIES, options=ONE),
        Row("DARE, one thread", "dare", targets={**AT_LEAST, **SMALL}, options=ONE),
        Row("slerp, one thread", "slerp", vectors=2, targets={**AT_LEAST, **SMALL}, options=ONE),
        Row("diff", "diff", vectors=1, targets={"fast/floor": 1.8, **SMALL}, peer=False),
        Row("compare", "compare", targets={"fast/floor": 1.8, **SMALL}, peer=False),
        Row("10 MB model", "task arithmetic", 0.01, targets={"wall peer/plain": 12.0, "wall plain": 0.5}, rounds=7),
    ],
    "scaling": [
        *(Row(f"{m}, {n} vectors", m, 0.25, n, peer=False) for m in ("task arithmetic", "ties") for n in (2, 4, 8)),
        *(Row(f"{m}, 0.25 GB", m, 0.25) for m in ("task arithmetic", "ties")),
        *(Row(f"{m}, 1 GB", m, 1.0, peer=False) for m in ("task arithmetic", "ties")),
        *(Row(f"{m}, threads", m, 1.0, threads=(1, 2), peer=False) for m in ("task arithmetic", "ties")),
        *(Row(f"{m}, 4 GB", m, 4.0, peer=m != "ties", rounds=1) for m in ("task arithmetic", "ties")),
    ],
}  # fmt: skip


def expression(method: str, letters: list[str]) -> str:
    vectors = [f"({x} - base)" for x in letters]
    listed = ", ".join(f"{x} - base" for x in letters)
    return {
        "task arithmetic": f"base + 0.4 * ({' + '.join(vectors)})",
        "negation": f"base - 0.4 * {vectors[0]}",
        "average of three": f"base + average([{listed}])",
        "ties": f"base + ties([{listed}], density=0.2)",
        "dare": f"base + 0.4 * dare([{listed}], density=0.1)",
        "slerp": f"base + slerp([{listed}], t=0.5)",
    }[method]


def peer_config(method: str, base: Path, others: list[Path]) -> dict[str, object]:
    """What the peer calls the same edit. Its slerp is one of the two models themselves: no base to read."""
    name, parameters = {
        "task arithmetic": ("task_arithmetic", {"weight": 0.4}),
        "negation": ("task_arithmetic", {"weight": -0.4}),
        "average of three": ("linear", {"weight": 1.0}),
        "ties": ("ties", {"weight": 1.0, "density": 0.2}),
        "dare": ("dare_linear", {"weight": 0.4, "density": 0.1}),
        "slerp": ("slerp", {}),
    }[method]
    listed = [{"model": str(p)} | ({"parameters": parameters} if parameters else {}) for p in others]
    config: dict[str, object] = {"merge_method": name, "models": listed, "dtype": "bfloat16"}
    if name == "slerp":
        return config | {"base_model": str(others[0]), "parameters": {"t": 0.5}}
    return config | ({} if name == "linear" else {"base_model": str(base)})
