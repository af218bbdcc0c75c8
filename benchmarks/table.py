"""The results as Markdown tables: python benchmarks/table.py [RESULTS]"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from cases import ROWS

Result = dict


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)])


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def target(result: Result, key: str) -> str:
    """' (target ...)' if the row has one. Ratios with the peer are to be at least so large, all else at most."""
    wanted = result.get("targets", {}).get(key)
    if wanted is None:
        return ""
    return f" ({'≥' if 'peer' in key else '≤'} {wanted:g})"


def cell(result: Result, kind: str, figure: str = "cpu_s", digits: int = 2) -> str:
    if kind == "fast" and result.get("fast_is_plain"):
        return "= plain"
    return number(result["kinds"].get(kind, {}).get(figure), digits)


def span(result: Result, kind: str) -> str:
    """CPU seconds, the median and the range."""
    got, each = cell(result, kind), result["kinds"].get(kind, {}).get("cpu_s_each", [])
    return f"{got} ({min(each):.2f}-{max(each):.2f})" if len(each) > 1 else got


def ratio(result: Result, pair: str, figure: str = "cpu") -> str:
    if "fast" in pair and result.get("fast_is_plain"):
        got = number(result["ratios"].get(f"{figure} {pair.replace('fast', 'plain')}"), 1)
    else:
        got = number(result["ratios"].get(f"{figure} {pair}"), 1)
    return got if got == "-" else got + target(result, pair if figure == "cpu" else f"{figure} {pair}")


def memory(result: Result, kind: str) -> str:
    got = cell(result, kind, "memory_mb", 0)
    return got if got == "-" else got + target(result, f"{kind} MB")


def in_order(part: str, rows: dict[str, Result]) -> dict[str, Result]:
    known = [r.name for r in ROWS.get(part, []) if r.name in rows]
    return {n: rows[n] for n in [*known, *(r for r in rows if r not in known)]}


def edit(rows: dict[str, Result]) -> str:
    large = {n: r for n, r in rows.items() if n != "10 MB model"}
    pairs = ("plain/floor", "fast/floor", "peer/plain", "peer/fast")
    times = table(
        ["CPU seconds, median (range)", "floor", "plain", "`fast`", "peer"],
        [[n, *(span(r, k) for k in ("floor", "plain", "fast", "peer"))] for n, r in rows.items()],
    )
    heads = [p.replace("/", " / ").replace("fast", "`fast`") for p in pairs]
    paired = table(["CPU, median of ratios", *heads], [[n, *(ratio(r, p) for p in pairs)] for n, r in large.items()])
    least = table(
        ["CPU, least over least", *heads], [[n, *(ratio(r, p, "least") for p in pairs)] for n, r in large.items()]
    )
    walls = table(
        ["wall seconds", "floor", "plain", "`fast`", "peer", "peer / plain", "peer / `fast`"],
        [
            [n, cell(r, "floor", "wall_s"), cell(r, "plain", "wall_s") + target(r, "wall plain")]
            + [cell(r, k, "wall_s") for k in ("fast", "peer")]
            + [ratio(r, p, "wall") for p in ("peer/plain", "peer/fast")]
            for n, r in rows.items()
        ],
    )
    peaks = table(
        ["peak memory, MB", "plain", "`fast`", "peer"],
        [[n, memory(r, "plain"), memory(r, "fast"), memory(r, "peer")] for n, r in rows.items()],
    )
    return "\n\n".join([times, paired, least, walls, peaks])


def scaling(rows: dict[str, Result]) -> str:
    grown = {n: r for n, r in rows.items() if not n.endswith("threads")}
    kinds = ("floor", "plain", "fast", "peer")
    cost = table(
        ["CPU s (wall s)", "floor", "plain", "`fast`", "peer", "plain, MB", "`fast`, MB"],
        [
            [n]
            + ["-" if k not in r["kinds"] else f"{cell(r, k)} ({cell(r, k, 'wall_s')})" for k in kinds]
            + [memory(r, "plain"), memory(r, "fast")]
            for n, r in grown.items()
        ],
    )
    threads = [
        [f"{n.removesuffix(', threads')}, {k}", *(number(v[f]) for f in ("cpu_s", "wall_s")), number(v["memory_mb"], 0)]
        for n, r in rows.items()
        if n not in grown
        for k, v in r["kinds"].items()
    ]
    return "\n\n".join([cost, table(["1 and 2 threads", "CPU s", "wall s", "memory, MB"], threads)])


def accuracy(rows: dict[str, Result]) -> str:
    def share(value: float) -> str:
        return "100 %" if value == 1 else f"{min(100 * value, 99.999999):.6f} %"

    return table(
        ["against float64", "rounded once", "within 1 ulp", "one rounding, float32 inside", "elements"],
        [
            [
                f"{n}, {k}",
                share(v["rounded_once"]),
                share(v["within_one_ulp"]),
                share(v["one_rounding_and_float32"]),
                f"{v['elements']:,}",
            ]
            for n, r in rows.items()
            for k, v in r["kinds"].items()
        ],
    )


def startup(rows: dict[str, Result]) -> str:
    return table(
        ["", "CPU s", "wall s", "memory, MB"],
        [
            [n, cell(r, "plain") + target(r, "cpu"), cell(r, "plain", "wall_s"), memory(r, "plain")]
            for n, r in rows.items()
        ],
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results"
    parts: dict[str, Callable[[dict[str, Result]], str]] = {
        "edit": edit, "scaling": scaling, "accuracy": accuracy, "startup": startup
    }  # fmt: skip
    shown = ""
    for part, draw in parts.items():
        path = folder / f"{part}.json"
        if not path.exists():
            continue
        read = json.loads(path.read_text())
        facts = read["facts"]
        machine = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in facts.items() if v is not None and k != "command")
        if machine != shown:
            print(f"Measured on: {machine}.\n")
            shown = machine
        print(f"### {part}\n\n{draw(in_order(part, read['rows']))}\n")
        days = sorted({r["when"]["date"][:10] for r in read["rows"].values()})
        commits = list(dict.fromkeys(r["when"]["commit"] or "?" for r in read["rows"].values()))
        print(
            f"`{facts['command']}`, {' to '.join(dict.fromkeys([days[0], days[-1]]))}, commit {', '.join(commits)}.\n"
        )


if __name__ == "__main__":
    main()
