r"""Tangents carried beside values: one pass of a module gives :math:`f(\theta_0, x)` with a graph and
:math:`J\tau` without one.

A `Dual` is a tensor of a module's computation with its derivative along :math:`\tau`. The value is an ordinary autograd
tensor, computed by torch's own kernels (fused attention too), so its reverse pass at :math:`\theta_0` is the ordinary one;
the tangent is computed beside it, without a graph. What does not depend on a displaced parameter stays an ordinary tensor
and costs nothing. Rules stand for the common layers (tangents.py); any other operation is differentiated by
`torch.func.jvp`.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

with warnings.catch_warnings(), contextlib.suppress(ImportError):
    # torch loads this by itself at the first derivative that needs it, with a warning about its own way of doing so.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp


class Dual(torch.Tensor):
    """A value with its tangent. Made by `dual`; operations on it go through rules, or through `by_jvp`."""

    value: torch.Tensor
    tangent: torch.Tensor
    family: weakref.WeakSet[Dual]  # those that share its memory
    rules: Mapping[Any, Callable[..., Any]] = {}  # tangents.py sets them

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        rule = cls.rules.get(func)
        if rule is None and (name in ASKING or (name == "__get__" and _asks(func))):
            return func(*tree_map(value_of, args), **tree_map(value_of, kwargs))
        if getattr(Reverse.held, "wanted", False) and not torch.is_grad_enabled():
            raise NoDerivative(
                f"{name}: is run without a graph (torch.no_grad, an autograd.Function or a re-entrant checkpoint)"
            )
        if name == "requires_grad_":
            return args[0]
        if rule is not None and "out" not in kwargs:
            try:
                return rule(*args, **kwargs)
            except TypeError as error:
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                return by_jvp(func, *args, **kwargs)  # called in a way that the rule does not know
        if name in ("__setitem__", "__set__") or kwargs.get("out") is not None or _mutates(func):
            raise NoDerivative(f"{name}: writes into a tensor that was given")
        if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            return _in_place(name, *args, **kwargs)
        return by_jvp(func, *args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached only below torch's functions (torch.jit, torch.vmap, torch.func), where the tangent would be lost."""
        raise NoDerivative(f"{func}: is run inside torch.jit, torch.vmap or torch.func")


def dual(value: torch.Tensor, tangent: torch.Tensor | None, *, of: Dual | None = None) -> torch.Tensor:
    """`value` carrying `tangent`; `value` itself if there is none. `of`: whose memory the value may be."""
    if tangent is None:
        return value
    out = torch.Tensor._make_subclass(Dual, value.detach())
    out.value, out.tangent = value, tangent if tangent.dtype == value.dtype else tangent.to(value.dtype)
    shared = of is not None and value.untyped_storage().data_ptr() == of.value.untyped_storage().data_ptr()
    out.family = of.family if of is not None and shared else weakref.WeakSet()
    out.family.add(out)
    return out


def _asks(func: Any) -> bool:
    """Whether an attribute of a tensor says something about it, rather than being another tensor of its values."""
    name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name in ATTRIBUTES or name.startswith("is_")


def _mutates(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable


def write(target: Dual, source: Any) -> Dual:
    """Let `target` be what `source` is, as an operation in place would."""
    if any(other is not target for other in target.family):
        raise NoDerivative("an operation in place: writes into memory of which a view is in use")
    target.value = value_of(source)
    target.tangent = source.tangent if isinstance(source, Dual) else torch.zeros_like(source)
    target.family = weakref.WeakSet([target])
    return target


def value_of(x: Any) -> Any:
    return x.value if isinstance(x, Dual) else x


def tangent_of(x: Any) -> Any:
    return x.tangent if isinstance(x, Dual) else None


# Questions about a tensor rather than operations on it.
ASKING = {
    "size", "dim", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex", "element_size", "ndimension",
    "get_device", "__len__", "is_nested", "data_ptr", "storage_offset", "__repr__", "is_same_size", "result_type",
    "is_tensor", "isfinite", "isnan", "isinf", "argmax", "argmin", "argsort", "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__",
    "__lt__", "__le__", "__gt__", "__ge__", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "detach", "register_hook", "retain_grad",
}  # fmt: skip
ATTRIBUTES = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "names", "itemsize", "nbytes", "grad", "grad_fn", "output_nr",
    "_version", "data", "volatile", "name", "_base",
}  # fmt: skip
IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__", "__imatmul__"}


def by_jvp(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation that has a forward-mode derivative; costs one more run of it."""
    inplace = bool(kwargs.get("inplace"))
    if inplace:
        kwargs["inplace"] = False
    leaves, form = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Dual)]
    values = [value_of(leaf) for leaf in leaves]

    def run(*moved: torch.Tensor) -> Any:
        filled = list(values)
        for i, x in zip(places, moved, strict=True):
            filled[i] = x
        a, k = tree_unflatten(filled, form)
        return func(*a, **k)

    out = run(*(values[i] for i in places))
    flat, shape = tree_flatten(out)
    if not any(_real(x) for x in flat):
        return out
    try:
        with torch.no_grad():
            _, tangents = torch.func.jvp(  # type: ignore[misc]
                lambda *moved: [x for x in tree_flatten(run(*moved))[0] if _real(x)],
                tuple(values[i].detach() for i in places),
                tuple(leaves[i].tangent for i in places),
            )
    except (NotImplementedError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise NoDerivative(f"{getattr(func, '__name__', func)}: {said.rstrip('.')}") from error
    along = iter(tangents)
    source = leaves[places[0]]
    made = tree_unflatten([dual(x, next(along), of=source) if _real(x) else x for x in flat], shape)
    return write(source, made) if inplace else made


def _real(x: Any) -> bool:
    """Whether a value can have a tangent."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


class Reverse:
    """While it is entered, values are to have a graph: an operation that would lose it is refused."""

    held = threading.local()

    def __enter__(self) -> None:
        self.before, self.held.wanted = getattr(self.held, "wanted", False), True

    def __exit__(self, *_: object) -> None:
        self.held.wanted = self.before


class NoDerivative(Exception):
    """An operation without a forward-mode derivative (turned into an error that names the module)."""


def _in_place(name: str, target: Any, *args: Any, **kwargs: Any) -> Any:
    """``x.add_(y)`` and ``x += y`` as ``x.add(y)``, kept in x."""
    if not name.endswith("__"):
        func = getattr(torch.Tensor, name[:-1], None)
    else:
        func = getattr(torch.Tensor, f"__{name[3:]}", None)
    if func is None or not isinstance(target, Dual):
        raise NoDerivative(f"{name}: writes a value with a tangent into an ordinary tensor")
    out = func(target, *args, **kwargs)
    if out.shape != target.shape or out.dtype != target.dtype:
        raise NoDerivative(f"{name}: changes the shape or format of its tensor")
    return write(target, out)
