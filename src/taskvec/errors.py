"""Everything taskvec raises on purpose.

::

    TaskvecError                     exit code
    ├── UsageError                   2    wrong call, expression, recipe or option
    │   ├── UnknownName              2    a name nobody defined; the nearest match is shown
    │   ├── NotLinear                2    an expression that leaves the algebra (point + point, vector * vector)
    │   └── MissingExtra             2    an optional library is not installed; the pip line is shown
    ├── InputError                   3    a file or tensor that cannot be used
    │   ├── NotACheckpoint           3    not a checkpoint, or a damaged or unsafe one
    │   ├── KeyMismatch              3    parameter names or shapes differ
    │   ├── BaseMismatch             3    vectors of different bases meet
    │   └── NonFinite                3    NaN or infinity where a number must be
    ├── StorageError                 4    disk, permission, existing output
    └── CheckFailed                  5    a verification or a gate did not hold

A message has four parts: what was attempted, where, what was expected and what came, and the remedy. Where one look
finds several mistakes, one error lists them all (`several`).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class TaskvecError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line returns.

    An error that lists several mistakes has them, one by one, in ``mistakes``.
    """

    exit_code = 1
    mistakes: tuple[TaskvecError, ...] = ()


class UsageError(TaskvecError, ValueError):
    """A call, expression, recipe or option that cannot mean anything."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not defined; carries the nearest defined one."""


class NotLinear(UsageError, TypeError):
    """An operation outside the algebra of points and vectors."""


class MissingExtra(UsageError, ImportError):
    """An optional library is needed and absent."""


class InputError(TaskvecError, ValueError):
    """A file or tensor that cannot be used as it is."""

    exit_code = 3


class NotACheckpoint(InputError):
    """Not a checkpoint, or one that is damaged or unsafe to open."""


class KeyMismatch(InputError):
    """Parameter names or shapes of two operands differ."""


class BaseMismatch(InputError):
    """Task vectors taken from different bases were combined, or applied to another base."""


class NonFinite(InputError):
    """A NaN or an infinity in an input or a result."""


class StorageError(TaskvecError, OSError):
    """Disk, permissions, or an output that already exists."""

    exit_code = 4


class CheckFailed(TaskvecError):
    """A verification did not hold."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known name, else the empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def quoted(value: object, limit: int = 120) -> str:
    """The value as Python writes it, cut in the middle: names and shapes come from files and can be a megabyte long."""
    said = (
        repr(value[: limit + 1] + value[-limit:]) if isinstance(value, str) and len(value) > 2 * limit else repr(value)
    )
    return said if len(said) <= limit else f"{said[: limit // 2]}...{said[-limit // 2 :]}"


def plain(text: object) -> str:
    """Names come from files and users: control characters, which could drive a terminal or break a line, shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few of many names, quoted, with the count of the rest."""
    names = list(names)
    shown = ", ".join(map(quoted, names[:limit]))
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def told(values: Iterable[object], limit: int = 3) -> str:
    """As `some`, for what a table holds where names were expected: sentences, which may be offensive, are not repeated.

    Example:
        >>> told(["sex", "a sentence that stands where a name should"])
        "'sex', (text)"
    """
    values = list(values)
    shown = [quoted(v) if _is_name(v) else "(text)" for v in values[:limit]]
    rest = len(values) - limit
    return ", ".join(dict.fromkeys(shown)) + (f" and {rest} more" if rest > 0 else "")


def _is_name(value: object) -> bool:
    return len(str(value)) <= 32 and len(str(value).split()) <= 3


def lacks_column(where: str, column: str, header: Iterable[str]) -> str:
    """The message that a table has no such column, with those it has; of a file without a header no text is repeated."""
    header = list(header)
    if not header:
        return f"{where} has no column {column!r}: it is empty."
    hint = nearest(column, [h for h in header if _is_name(h)])
    bare = "" if all(map(_is_name, header)) else " Is its first line a header?"
    return f"{where} has no column {column!r}; it has {told(header, 12)}.{hint}{bare}"


SHOWN = 20  # mistakes listed in one error


def several(mistakes: Sequence[TaskvecError]) -> TaskvecError:
    """One error for all of them: the mistake itself if there is one, else a numbered list; equal texts count once.

    Its class is theirs if they share one; else InputError or StorageError if such a mistake is among them, else UsageError.
    """
    single = {str(e): e for mistake in mistakes for e in (mistake.mistakes or (mistake,))}
    found = tuple(single.values())
    if len(found) == 1:
        return found[0]
    lines = [f"{len(found)} mistakes:"]
    for i, text in enumerate(list(single)[:SHOWN], 1):
        lines.append(f"{i:>3}. " + text.replace("\n", "\n     "))
    if len(found) > SHOWN:
        lines.append(f"     and {len(found) - SHOWN} more.")
    kinds = {type(e) for e in found}
    broad = (k for k in (InputError, StorageError, UsageError, TaskvecError) if any(isinstance(e, k) for e in found))
    error = (kinds.pop() if len(kinds) == 1 else next(broad))("\n".join(lines))
    error.mistakes = found
    return error


@contextlib.contextmanager
def collecting(mistakes: list[TaskvecError]) -> Iterator[None]:
    """Put a deliberate error into the list and go on after the block, so that the next mistake is found too.

    Example:
        >>> found = []
        >>> with collecting(found):
        ...     raise UsageError("no such thing")
        >>> raise_all(found)
        Traceback (most recent call last):
        taskvec.errors.UsageError: no such thing
    """
    try:
        yield
    except TaskvecError as error:
        mistakes.append(error)


def raise_all(mistakes: Sequence[TaskvecError]) -> None:
    """Raise what was collected, as one error; nothing if there is nothing."""
    if mistakes:
        raise several(mistakes) from None


def missing_extra(library: str, extra: str, purpose: str) -> MissingExtra:
    """The error for an absent optional library, with the line that installs it."""
    return MissingExtra(f"{purpose} needs {library}, which is not installed. Run: pip install 'taskvec[{extra}]'")
