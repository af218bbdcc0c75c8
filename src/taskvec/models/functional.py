"""A module as a pure function of its weights, and checkpoints as torch tensors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KeyMismatch, StorageError, TaskvecError, UsageError, missing_extra, some
from ..weights import Checkpoint, TaskVector

if TYPE_CHECKING:
    import torch

    Bound = Callable[[Mapping[str, torch.Tensor], torch.Tensor], torch.Tensor]
else:
    Bound = Callable


def require_torch(purpose: str, extra: str = "train") -> Any:
    """The torch module, or the error that says how to install it, with all else that the purpose needs (`extra`)."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", extra, purpose) from error
    return torch


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the module's first parameter lives; the CPU for a module without any."""
    torch = require_torch("Running a model")
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def tensors(
    weights: Checkpoint | TaskVector, *, like: torch.nn.Module | None = None, device: Any = None
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint or vector, floats as float32, each a fresh copy.

    Args:
        weights: what to materialise.
        like: a module whose parameters must all be there, with equal shapes; extra names are an error.
        device: where to put them, else the CPU.
    Raises:
        KeyMismatch: `like` is given and names or shapes differ.
    """
    torch = require_torch("Materialising a checkpoint as torch tensors")
    if like is not None:
        check_names({n: tuple(s.shape) for n, s in weights.spec.items()}, like, weights.label)
    out = {}
    for name, array in weights.arrays().items():
        # ml_dtypes' bfloat16 and float8 are not of NumPy's floating kind: everything that is no integer or bool is a float.
        values = array if array.dtype.kind in "iub" else np.asarray(array, dtype=np.float32)
        out[name] = torch.from_numpy(np.asarray(values, order="C")).to(device)  # arrays() gave copies of its own
    return out


def bind(module: torch.nn.Module) -> Bound:
    r"""The pure function :math:`f(\theta, x)` of a module's weights.

    The module itself is neither changed nor copied in memory. It runs in evaluation mode: no dropout, and buffers such as
    batch-norm statistics are fixed. Buffers named in `params` are taken from there, the others from the module. One bound
    function is for one thread at a time; bind again for another.

    Args:
        module: any module whose call takes one input.
    Returns:
        ``f(params, x)``: `params` maps every parameter name to a tensor; tied parameters may come under any or all of
        their names, then the first name counts.
    Raises:
        KeyMismatch: (when `f` is called) a parameter is missing, unknown, or of another shape.
    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> bind(layer)({"weight": torch.tensor([[2.0, 3.0]])}, torch.ones(1, 2))
        tensor([[5.]])
    """
    require_torch("Binding a model")
    from torch.func import functional_call

    twin = twin_of(module)
    first = aliases(twin)

    def f(params: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        check_names({n: tuple(t.shape) for n, t in params.items()}, twin, "the given weights")
        run = functools.partial(functional_call, twin, under_first_names(params, first), (x,))
        return applied(type(module).__name__, x, run)

    f.buffers = frozenset(n for n, _ in twin.named_buffers())  # type: ignore[attr-defined]
    return f


def adopt(module: torch.nn.Module, inner: torch.nn.Module) -> None:
    """Give a module the layers of another under their own names, and the other itself as ``_inner``, to be called.

    Raises:
        UsageError: `inner` holds parameters beside its layers.
    """
    own = [name for name, _ in inner.named_parameters(recurse=False)]
    if own:
        raise UsageError(
            f"{type(inner).__name__} holds parameters outside its layers ({some(own)}); not supported yet."
        )
    for name, child in inner.named_children():
        module.add_module(name, child)
    # Beside the module table: as a child, `inner` would give every parameter a second, prefixed name.
    object.__setattr__(module, "_inner", inner)


def twin_of(module: torch.nn.Module) -> Any:
    """A copy of the module's structure, in evaluation mode, that shares the tensors."""
    shared: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared).eval()


def applied(model: str, x: torch.Tensor, run: Callable[[], Any]) -> torch.Tensor:
    """The outputs that `run` gives for the inputs `x`; what can go wrong in a model, as errors that say so."""
    import torch

    try:
        out = run()
    except (RuntimeError, IndexError, TypeError, MemoryError) as error:
        if isinstance(error, TaskvecError):
            raise
        if out_of_memory(error):
            raise StorageError(
                f"out of memory on {x.device}: {model} with {len(x)} samples at a time. Use a device with more memory or a smaller "
                "model; in training a smaller batch."
            ) from error
        raise UsageError(
            f"{model} cannot be applied to inputs of {x.dtype}, shape {list(x.shape)}: {str(error).splitlines()[0]}."
        ) from error
    if not isinstance(out, torch.Tensor):
        raise UsageError(
            f"{model} returns {type(out).__name__}, expected one tensor of features. Wrap it in a module that "
            "returns that tensor alone."
        )
    return out


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out: torch's own class, or a driver's or an allocator's words; or follows from one."""
    import torch

    if error is None:
        return False
    said = str(error)
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    mine = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(w in said for w in words)
    )
    return mine or (isinstance(error, StorageError) and out_of_memory(error.__cause__))


def aliases(module: torch.nn.Module) -> dict[str, str]:
    """Every parameter name, mapped to the first name of the same parameter (itself, unless weights are tied)."""
    first: dict[int, str] = {}
    return {n: first.setdefault(id(p), n) for n, p in module.named_parameters(remove_duplicate=False)}


def under_first_names(params: Mapping[str, Any], first: Mapping[str, str]) -> dict[str, Any]:
    """Each tied parameter once, under its first name; of several entries for one parameter the first name's counts."""
    once = {first.get(n, n): t for n, t in params.items()}
    return {n: params.get(n, t) for n, t in once.items()}


def check_names(found: Mapping[str, tuple[int, ...]], module: torch.nn.Module, label: str) -> None:
    """Raise KeyMismatch unless `found` has every parameter of the module, of equal shape, and nothing unknown."""
    first = aliases(module)
    wanted = {n: tuple(p.shape) for n, p in module.named_parameters(remove_duplicate=False)}
    known = wanted | {n: tuple(b.shape) for n, b in module.named_buffers(remove_duplicate=False)}
    covered = {first[n] for n in found if n in first}
    missing = [n for n in dict.fromkeys(first.values()) if n not in covered]
    unknown = [n for n in found if n not in known]
    shapes = [n for n in found if n in known and tuple(found[n]) != known[n]]
    if not (missing or unknown or shapes):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({some(missing)})")
    if unknown:
        parts.append(f"{len(unknown)} unknown ({some(unknown)})")
    if shapes:
        n = shapes[0]
        parts.append(f"{len(shapes)} of another shape ({n!r}: expected {known[n]}, got {tuple(found[n])})")
    raise KeyMismatch(
        f"{label} does not fit the model {type(module).__name__}: {', '.join(parts)}. "
        "Parameter names and shapes must be exactly the model's; a head is kept apart, as taskvec.tasks.Head."
    )
