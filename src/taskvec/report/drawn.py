"""Molecules as inline SVG, drawn by rdkit. Of its drawing only the paths are taken: a SMILES cannot bring anything else into a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from ..results import GateResult
from ..results.gate import GATE, SINGLE
from .words import clean

SIDE, LINE, ACROSS = 150, 13, 4  # of one drawing, of one line of text under it; drawings in a row
LARGEST = 150  # heavy atoms that are drawn


def worst_molecules(result: GateResult, key: str) -> str | None:
    """The test molecules that added modules predict worst, a row for each target; None without rdkit, or if it reads none.

    Errors are means over the runs that tested a molecule.
    """
    try:
        from rdkit import Chem  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    pieces, said, top, any_drawn = [], [], 0, False
    for name in result.targets:
        pieces.append(_text(0, top + LINE, clean(name, 60), "ink", 11, weight=600))
        top += LINE + 6
        for k, (smiles, truth, added, alone) in enumerate(worst(result, name)[:ACROSS]):
            left = k * (SIDE + 10)
            paths = _paths(Chem, smiles)
            any_drawn = any_drawn or bool(paths)
            paths = paths or _text(0, SIDE / 2, "not drawn", "muted", 9.5)
            pieces.append(f'<g transform="translate({left} {top})">{paths}</g>')
            lines = (f"measured {truth:.4g}", f"added {added:.4g}, alone {alone:.4g}")
            pieces += [_text(left, top + SIDE + LINE * (i + 1), text, "muted", 9.5) for i, text in enumerate(lines)]
            said.append(f"{clean(name)}: {clean(smiles, 120)} {lines[0]}, {lines[1]}")
        top += SIDE + 2 * LINE + 14
    if not any_drawn:
        return None
    width = ACROSS * (SIDE + 10)
    head = f'<svg id="{key}" role="img" aria-label="{escape("; ".join(said))}" viewBox="0 0 {width} {top}" style="--w: {width * 0.75:g}">'
    return head + "".join(pieces) + "</svg>"


def worst(result: GateResult, name: str) -> list[tuple[str, float, float, float]]:
    """Molecules of one target by falling mean absolute error of task addition: SMILES, measured, predicted by it and by the single task."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for run in result.runs:
        t = run.target(name)
        for row in zip(t.molecules, t.truth, t.predictions[GATE], t.predictions[SINGLE], strict=True):
            found.setdefault(row[0], []).append(row[1:])
    off = {s: _mean([abs(added - truth) for truth, added, _ in rows]) for s, rows in found.items()}
    order = sorted(found, key=lambda s: (-off[s], s))
    return [(s, *(_mean([r[i] for r in found[s]]) for i in range(3))) for s in order]  # type: ignore[misc]


def _paths(chem: Any, smiles: str) -> str:
    from rdkit import rdBase  # pyright: ignore[reportMissingImports]
    from rdkit.Chem.Draw import rdMolDraw2D  # pyright: ignore[reportMissingImports]

    with rdBase.BlockLogs():
        mol = chem.MolFromSmiles(smiles) if len(smiles) < 10_000 else None
        if mol is None or not 0 < mol.GetNumHeavyAtoms() <= LARGEST:
            return ""
        drawing = rdMolDraw2D.MolDraw2DSVG(SIDE, SIDE)
        options = drawing.drawOptions()
        options.useBWAtomPalette()
        options.clearBackground = False
        options.bondLineWidth = 1.1
        options.maxFontSize = 13
        options.fixedBondLength = 22
        rdMolDraw2D.PrepareAndDrawMolecule(drawing, mol)
        drawing.FinishDrawing()
    out = []
    for tag in re.findall(r"<path\b[^>]*>", drawing.GetDrawingText()):
        line = re.search(r"\bd='([MLQCZ\d\s.,e-]*)'", tag)
        if line is None:
            continue
        filled = "fill:none" not in tag
        edged = "stroke:#" in tag
        width = re.search(r"stroke-width:([\d.]+)", tag)
        style = f"fill:{'var(--ink)' if filled else 'none'}"
        style += f";stroke:var(--ink);stroke-width:{width[1] if width else '1'}" if edged else ""
        style += ";stroke-dasharray:3,3" if "stroke-dasharray" in tag else ""
        out.append(f'<path d="{" ".join(line[1].split())}" style="{style}"/>')
    return "".join(out)


def _text(x: float, y: float, text: str, colour: str, size: float, *, weight: int = 400) -> str:
    style = f"font: {weight} {size}px var(--sans); fill: var(--{colour})"
    return f'<text x="{x:g}" y="{y:g}" style="{style}">{escape(text)}</text>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
