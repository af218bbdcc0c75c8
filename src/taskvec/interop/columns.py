"""The models of one document of a mergekit config as columns of equal names, and its parameters by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, some
from ..weights import graph
from ..weights.layers import BEFORE, depths, layer
from ..weights.names import floats
from .mergekit import METHODS, Config, Input, Settings, filters, value_for
from .models import Names

WITH_BASE = ("nearswap", "arcee_fusion", "slerp")  # two models, of which one is the base


@dataclass
class Columns:
    """The models of one document as columns of equal names, and what its parameters are for each tensor."""

    config: Config
    names: Names
    notes: list[str]
    part: bool = False  # of a slice: one that has the base alone is copied

    def _columns(self) -> None:
        """Each model, with its blocks stacked as the output's, by the names of the output; the base first."""
        rows = []
        for part in self.config.slices:
            base = part.base or self.config.base
            inputs = list(part.inputs)
            if len({i.model for i in inputs}) < len(inputs):
                raise UsageError(f"{some([i.model for i in inputs])}: a model can stand once in a list of models.")
            if base is not None and all(i.model != base for i in inputs):
                inputs.append(Input(base, inputs[0].blocks))
            rows.append(sorted(inputs, key=lambda i: i.model != base))
        self.has_base = (self.config.slices[0].base or self.config.base) is not None
        if self.config.method == "passthrough" and len(rows[0]) > 1:
            if len(self.config.slices[0].inputs) > 1:
                raise UsageError(f"passthrough takes one model a slice, got {len(self.config.slices[0].inputs)}.")
            rows = [
                [i for i in r if i.model == part.inputs[0].model]
                for r, part in zip(rows, self.config.slices, strict=True)
            ]
            self.has_base = False
        self.rows = rows
        self.columns = [self._column([r[j] for r in rows]) for j in range(len(rows[0]))]
        origin = self.names.values[self.columns[0]]
        self.spec = floats(origin.spec)
        self.deep = depths(origin.spec)
        for name, what in (("slerp", 2), ("nuslerp", 2 + self.has_base), ("nearswap", 2), ("arcee_fusion", 2)):
            if self.config.method == name and len(self.columns) != what:
                beside = ", of which one is the base" if name in WITH_BASE else " beside the base" * (what > 2)
                raise UsageError(f"{name} takes two models{beside}, got {len(self.columns)}.")
        if self.has_base and len(self.columns) < 2 and not self.part:
            raise UsageError(f"{self.config.method} needs a model beside the base {self.config.base}.")

    def _column(self, inputs: Sequence[Input]) -> str:
        pieces: list[tuple[str, int, int, int]] = []
        for i in inputs:
            name = self.names.of(i.model)
            point = self.names.values[name]
            found = depths(point.names)
            if i.blocks is None:
                return name
            if len(found) != 1:
                raise UsageError(f"{i.model} has {len(found)} stacks of blocks; slices need a model with one.")
            pieces.append((name, i.blocks[0], i.blocks[1], next(iter(found.values()))))
        if len(pieces) == 1 and pieces[0][1:3] == (0, pieces[0][3]):
            return pieces[0][0]
        text = ", ".join(f"[{name}, {first}, {last}]" for name, first, last, _ in pieces)
        return self.names.give("_on_".join(dict.fromkeys(p[0] for p in reversed(pieces)))[:40], f"stack({text})")

    # --- parameters -------------------------------------------------------------------------------------------------

    def _place(self, name: str) -> tuple[int, float]:
        """The slice a tensor lies in, and where its block lies in it, from 0 to 1."""
        at = layer(name)
        if at is None:
            return (0 if BEFORE.search(name) else len(self.rows) - 1), 0.0
        if self.rows[0][0].blocks is None:
            deep = self.deep[at[0]]
            return 0, at[1] / (deep - 1) if deep > 1 else 1.0
        place = at[1]
        for i, row in enumerate(self.rows):
            first, last = row[0].blocks or (0, 0)
            if place < last - first:
                return i, place / (last - first - 1) if last - first > 1 else 1.0
            place -= last - first
        return len(self.rows) - 1, 1.0

    def _value(self, parameter: str, name: str, column: int | None = None) -> Any:
        """What a parameter is for a tensor (of the output's name), of one model or of the whole."""
        i, t = self._place(name)
        part = self.config.slices[i]
        tables: list[Settings] = [part.parameters, self.config.own, self.config.parameters]
        seen = name
        if column is not None:
            tables.insert(0, self.rows[i][column].parameters)
            node = self.names.values[self.columns[column]].node
            seen = node.params["old"][name][1] if node.op is graph.STACK else name
        found = value_for(seen, t, tables, parameter)
        if found is None:
            found = METHODS[self.config.method][column is None].get(parameter)
        if found is None:
            who = "" if column is None else f" for {self.rows[i][column].model}"
            raise UsageError(f"{self.config.method} needs the parameter {parameter!r}{who} (tensor {name!r}).")
        return found

    def _check_filters(self) -> None:
        """A filter that no tensor's name contains is a mistake."""
        tables = [self.config.own, self.config.parameters, *(s.parameters for s in self.config.slices)]
        tables += [i.parameters for s in self.config.slices for i in s.inputs]
        for word in dict.fromkeys(f for t in tables for v in t.values() for f in filters(v)):
            if not any(word in n for n in self.spec):
                self.notes.append(f"the filter {word!r} matches no tensor.")

    def _weights(self, column: int) -> dict[str, float]:
        return {n: float(self._value("weight", n, column)) for n in self.spec}

    def _shares(self, columns: Sequence[int], *, near: float) -> list[dict[str, float]]:
        """The coefficient of each model for each tensor: its weight, over their sum if normalised, times lambda."""
        tables = [self._weights(j) for j in columns]
        for n in self.spec:
            if bool(self._value("normalize", n)):
                total = math.fsum(t[n] for t in tables)
                if abs(total) <= near:
                    if not near:
                        raise UsageError(
                            f"the weights of {n!r} add up to zero; normalize: false leaves them as they are."
                        )
                    total = 1.0
                for t in tables:
                    t[n] /= total
            if "lambda" in METHODS[self.config.method][1]:
                factor = float(self._value("lambda", n))
                for t in tables:
                    t[n] *= factor
        return tables
