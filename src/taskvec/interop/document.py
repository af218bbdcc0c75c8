"""One document of a mergekit config as an expression."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError, some
from ..methods import METHODS as OURS
from ..weights.layers import patterns
from ..weights.names import floats
from .columns import Columns
from .mergekit import METHODS
from .models import module_of


@dataclass
class Document(Columns):
    """One document, written as an expression."""

    def text(self) -> str:
        """The merged model as an expression."""
        if self.config.modules:
            return self._modules()
        if self._differing():
            return self._slice_by_slice()
        self._columns()
        method = self.config.method
        if self.has_base and len(self.columns) < 2:
            return self.columns[0]  # of the base alone nothing is to be merged
        special: Mapping[str, Callable[[], str]] = {
            "linear": self._linear, "slerp": self._slerp, "passthrough": self._passthrough,
            "task_arithmetic": self._task_arithmetic,
            **dict.fromkeys(("dare_linear", "breadcrumbs", "della_linear"), self._thinned),
            **dict.fromkeys(("ties", "dare_ties", "breadcrumbs_ties", "della"), self._elected),
        }  # fmt: skip
        text = special[method]() if method in special else self._grouped()
        if not self.part:  # a filter may be about another slice
            self._check_filters()
        return text

    # --- slices and modules by themselves -----------------------------------------------------------------------------

    def _differing(self) -> bool:
        """Whether slices differ in their number of models or in their base, so that columns do not run through."""
        if self.config.method == "passthrough" or len(self.config.slices) < 2:
            return False
        kinds = set()
        for part in self.config.slices:
            base = part.base or self.config.base
            kinds.add((len({*(i.model for i in part.inputs), *([base] if base else [])}), base))
        return len(kinds) > 1

    def _slice_by_slice(self) -> str:
        """Every slice as a model of its own, and these on top of each other."""
        pieces = []
        for i, part in enumerate(self.config.slices):
            text = Document(replace(self.config, slices=(part,)), self.names, self.notes, part=True).text()
            first, last = part.inputs[0].blocks or (0, 0)
            pieces.append(f"[{self.names.give(f'slice_{i}', text)}, 0, {last - first}]")
        return f"stack({', '.join(pieces)})"

    def _modules(self) -> str:
        """Every module as a model of its own, of which its tensors are taken."""
        model = self.names.of(self.config.models[0])
        origin = self.names.values[model]
        held: dict[str, list[str]] = {m: [] for m in self.config.modules}
        strange = []
        for name in floats(origin.spec):
            place = module_of(name, held)
            (held[place] if place else strange).append(name)
        for module, names in held.items():
            if not names:
                raise UsageError(f"{model} has no tensors of the module {module!r} ({some(origin.names)}).")
        if strange:
            raise UsageError(
                f"{len(strange)} tensors of {model} are in none of the modules {', '.join(held)} ({some(strange)})."
            )
        out = model
        for module, config in self.config.modules.items():
            if any(i.blocks is not None for s in config.slices for i in s.inputs):
                raise UsageError(f"slices in one of several modules ({module}) are not available; name `models` there.")
            text = Document(config, self.names, self.notes).text()
            if text != model:
                whole = self.names.give(module, text)
                chosen = patterns(held[module], origin.spec)
                out += f" + restrict({whole} - {model}, {(chosen[0] if len(chosen) == 1 else chosen)!r})"
        return out

    # --- methods ----------------------------------------------------------------------------------------------------

    def _linear(self) -> str:
        origin, *others = self.columns
        tables = self._shares(range(len(self.columns)), near=0.0)
        affine = all(abs(math.fsum(t[n] for t in tables) - 1) < 1e-12 for n in self.spec)
        if affine:
            terms = [self._term(self._tau(c), t) for c, t in zip(others, tables[1:], strict=True)]
        else:
            tables[0] = {n: c - 1 for n, c in tables[0].items()}
            terms = [self._term(f"as_vector({c}, {origin})", t) for c, t in zip(self.columns, tables, strict=True)]
        return origin + "".join(terms)

    def _task_arithmetic(self) -> str:
        tables = self._shares(range(1, len(self.columns)), near=1e-8)
        return self.columns[0] + "".join(
            self._term(self._tau(c), t) for c, t in zip(self.columns[1:], tables, strict=True)
        )

    def _thinned(self) -> str:
        """Every model thinned out by itself, then added."""
        tables = self._shares(range(1, len(self.columns)), near=1e-8)
        out = self.columns[0]
        for j, table in enumerate(tables, 1):
            alike: dict[str, list[str]] = {}
            for n in self.spec:
                alike.setdefault(self._thin(n, j), []).append(n)
            for text, names in alike.items():
                if text:
                    part = self._thin(names[0], j, self._part(j, names) if len(alike) > 1 else "")
                    out += self._term(part, {n: table[n] for n in names})
        return out

    def _elected(self) -> str:
        """Every model thinned out by itself, then signs elected entry by entry."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for n in self.spec:
            found = [(j, self._thin(n, j), self._value("weight", n, j)) for j in range(1, len(self.columns))]
            kept = tuple((j, text, w) for j, text, w in found if text and w)  # neither votes nor counts otherwise
            groups.setdefault((kept, bool(self._value("normalize", n)), self._value("lambda", n)), []).append(n)
        out = self.columns[0]
        for (kept, normalise, factor), names in groups.items():
            if not kept:
                continue
            given: dict[str, Any] = {"density": 1.0, "variant": "mergekit", "coefficients": [w for _, _, w in kept]}
            # Cut to the group's tensors first: a density of its own costs a look at every tensor that is left.
            parts = [self._thin(names[0], j, self._part(j, names) if len(groups) > 1 else "") for j, _, _ in kept]
            if normalise:  # the sum of what agrees, over the weights that agree
                text = self._call("ties", parts, given)
            else:
                text = self._call("dare", parts, {**given, "consensus": "ties"})
            out += self._term(text, {n: float(factor) for n in names})
        return out

    def _part(self, column: int, names: Sequence[str]) -> str:
        return self._only(self._tau(self.columns[column]), names)

    def _thin(self, name: str, column: int, tau: str = "") -> str:
        """What is left of a model's difference to the base (or of `tau`), by one tensor's parameters; empty if nothing is."""
        method, tau = self.config.method, tau or self._tau(self.columns[column])
        density = float(self._value("density", name, column))
        rescale = bool(self._value("rescale", name))
        family = method.removesuffix("_linear").removesuffix("_ties")
        if density >= 1:
            return tau
        if density <= 0:
            return ""
        if family in ("ties", "breadcrumbs"):
            more = {"gamma": self._value("gamma", name, column)} if family == "breadcrumbs" else {}
            more |= {"rescale": True} if rescale else {}
            return self._call(family, [tau], {"density": density, **more, "variant": "mergekit"})
        variant = self._value("variant", name)
        given = {"density": density, "seed": column - 1}
        if family == "della":
            given |= {"epsilon": self._value("epsilon", name, column), "consensus": "sum"}
            given |= {} if rescale else {"rescale": False}
        if rescale and variant != "paper":
            given["variant"] = variant
        self.notes.append(
            f"{method}: masks depend on the seed and on the names of tensors alone, and are not those of mergekit."
        )
        if variant == "paper" and rescale:
            self.notes.append(
                f"{method}: what is kept is divided by the probability of keeping it, as in the paper; mergekit restores the "
                "L1 norm of each tensor. For its way write `variant: mergekit` among the parameters."
            )
        text = self._call(family, [tau], given)
        return text if rescale or family != "dare" else f"{density!r} * {text}"

    def _slerp(self) -> str:
        base, other = self.columns
        return self._on_weights(base, "slerp", [base, other], lambda n: {"t": self._value("t", n)})

    def _passthrough(self) -> str:
        (column,) = self.columns
        table = {n: float(self._value("scale", n, 0)) - 1 for n in self.spec}
        return column + self._term(f"as_vector({column}, {column})", table)

    def _grouped(self) -> str:
        """Methods of whole lists of vectors, called once for each set of tensors with equal parameters."""
        method = self.config.method
        others = self.columns[1:] if self.has_base else self.columns
        first = 1 if self.has_base else 0
        if method in ("model_stock", "sce", "nearswap", "arcee_fusion", "ram", "ramplus_tl"):
            ours = "ram" if method == "ramplus_tl" else method
            return self.columns[0] + self._calls(ours, [self._tau(c) for c in others], self._whole)
        if method == "karcher":
            return self._on_weights(
                self.columns[0], "karcher", self.columns,
                lambda n: {"iterations": int(self._value("max_iter", n)), "tolerance": self._value("tol", n)},
            )  # fmt: skip

        def own(n: str) -> dict[str, Any]:
            weights = [self._value("weight", n, j) for j in range(first, len(self.columns))]
            if method == "multislerp":
                return {"coefficients": weights}
            total = math.fsum(weights)
            given = {"t": 0.5 if abs(total) < 1e-6 else weights[1] / total}
            rows = "column" if self._value("nuslerp_row_wise", n) else "row"
            return given if self._value("nuslerp_flatten", n) else {**given, "per": rows}

        def length(n: str) -> float:
            """Weights that are not divided by their sum make the result longer by it; a model alone stays as it is."""
            if method != "multislerp" or len(others) < 2 or self._value("normalize_weights", n):
                return 1.0
            return abs(math.fsum(self._value("weight", n, j) for j in range(first, len(self.columns))))

        if self.has_base:
            return self.columns[0] + self._calls(method, [self._tau(c) for c in others], own, length)
        return self._on_weights(self.columns[0], method, others, own, length)

    def _whole(self, name: str) -> dict[str, Any]:
        """Hyper-parameters of methods that take differences to the base and have no weights."""
        method = self.config.method
        if method == "sce":
            return {"density": self._value("select_topk", name)}
        if method == "model_stock":
            return {"per": "row"} if self._value("filter_wise", name) else {}
        given = {p: float(self._value(p, name)) for p in METHODS[method][1]}
        return {**given, "per": "tensor"} if method == "ramplus_tl" else given

    def _calls(
        self, method: str, vectors: Sequence[str], own: Callable[[str], dict[str, Any]],
        length: Callable[[str], float] = lambda n: 1.0,
    ) -> str:  # fmt: skip
        """`` + c * method([...], ...)`` for each set of tensors with equal hyper-parameters and factor."""
        groups: dict[str, tuple[dict[str, Any], float, list[str]]] = {}
        for n in self.spec:
            given, c = own(n), length(n)
            groups.setdefault(repr((given, c)), (given, c, []))[2].append(n)
        out = ""
        for given, c, names in groups.values():
            call = self._call(method, vectors, given)
            out += f" + {'' if c == 1 else f'{c!r} * '}{self._only(call, names) if len(groups) > 1 else call}"
        return out

    def _call(self, method: str, vectors: Sequence[str], given: dict[str, Any]) -> str:
        """One call in the words of our own method.

        Raises:
            UsageError: there is no such method here, or it cannot do that.
        """
        found = OURS.get(method)
        if found is None:
            raise UsageError(
                f"merge_method {method} is not available: there is no method of that name (see `taskvec methods`)."
            )
        known = {p.name: p for p in inspect.signature(found.fn).parameters.values() if p.kind is p.KEYWORD_ONLY}
        left = {k: v for k, v in given.items() if k in known}
        lacking = [k for k in given if k not in known]
        if lacking:
            raise UsageError(f"merge_method {method} is not available: our {method} has no {', '.join(lacking)}.")
        said = "".join(f", {k}={v!r}" for k, v in left.items())
        return f"{method}([{', '.join(vectors)}]{said})"

    def _on_weights(
        self, origin: str, method: str, columns: Sequence[str], own: Callable[[str], dict[str, Any]],
        length: Callable[[str], float] = lambda n: 1.0,
    ) -> str:  # fmt: skip
        """A method of the weights themselves rather than of differences."""
        calls = self._calls(method, [f"as_vector({c}, {origin})" for c in columns], own, length)
        return f"{origin}{calls} - as_vector({origin}, {origin})"

    # --- words ------------------------------------------------------------------------------------------------------

    def _tau(self, column: str) -> str:
        return self.names.give(f"tau_{column}", f"{column} - {self.columns[0]}")

    def _only(self, text: str, names: Sequence[str]) -> str:
        chosen = patterns(names, self.spec)
        said = chosen[0] if len(chosen) == 1 else chosen
        return f"restrict({text}, {said!r})"

    def _term(self, text: str, table: Mapping[str, float]) -> str:
        """`` + coefficient * vector``, or by name if the coefficients differ."""
        values = dict.fromkeys(table.values())
        if len(values) == 1:
            (c,) = values
            if c == 0:
                return ""
            return f" {'-' if c < 0 else '+'} " + ("" if abs(c) == 1 else f"{abs(c)!r} * ") + text
        groups: dict[float, list[str]] = {}
        for n, c in table.items():
            groups.setdefault(c, []).append(n)
        by = {c: patterns(names, table) for c, names in groups.items()}
        most = max(by, key=lambda c: len(by[c]))  # said last, of all that is left: the first pattern counts
        by = {**{c: chosen for c, chosen in by.items() if c != most}, most: ["*"]}
        said = ", ".join(f"{p!r}: {c!r}" for c, chosen in by.items() for p in chosen)
        return f" + scale_by({text}, {{{said}}})"
