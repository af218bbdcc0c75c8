"""The command line: `commands.py` has its root, other modules the commands, `terminal.py` what they print; this is the way in and out.

Results go to stdout (with ``--json`` as one document), progress and notes to stderr. Exit codes: 0 done, 1 a bug of
ours, 2 wrong usage, 3 bad input, 4 disk or other resources, 5 a check failed, 129, 130 and 143 ended by a signal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from ..errors import TaskvecError
from . import editing, examining, hub, reporting  # noqa: F401  (they add their commands, in the order in which --help lists them)

# isort: split
from . import fairness, gate, gate_evaluate, gate_inspect, language, pretraining, steering, study, toxicity, training  # noqa: F401  (they add their commands)
from .commands import cli
from .terminal import note, print_json, say_error


def _terminated(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way: where unfinished work is kept."""
    return getattr(error, "__notes__", [])


def main() -> None:
    """Entry point: run a command, turn deliberate errors into one line and an exit code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, _terminated)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    with contextlib.suppress(ImportError, ValueError, OSError):  # every shard of every input is an open file
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = 65536 if most == resource.RLIM_INFINITY else min(most, 65536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, enough), most))
    command = arguments[0] if arguments else ""
    as_json = "--json" in arguments

    def fail(text: str, code: int) -> int:
        if as_json:
            with contextlib.suppress(BrokenPipeError):
                print_json(command, {"error": {"message": text, "exit_code": code}})
        return say_error(text, code)

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    log = logging.getLogger("taskvec")
    log.handlers, log.propagate = [Said()], False
    log.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: note(str(message))
    try:
        # Not cli.main(), which ends the process by itself when a pipe closes.
        with cli.make_context("taskvec", list(arguments) or ["--help"]) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except TaskvecError as error:
        return fail(" ".join([str(error), *_notes(error)]), error.exit_code)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.NoSuchOption as error:
        minus = command in ("edit", "explain") and not error.option_name.startswith("--")
        hint = " Put -- before an expression that begins with a minus." if minus else ""
        return fail(f"{error.format_message()}{hint} See `taskvec {command} --help`.", 2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "taskvec"
        return fail(f"{error.format_message()} See `{where} --help`.", 2)
    except click.ClickException as error:
        return fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort) as error:
        return fail("interrupted. " + (" ".join(_notes(error)) or "Nothing was left behind."), 130)
    except SystemExit as error:  # a signal
        note(" ".join(_notes(error)) or "ended by a signal. Nothing was left behind.")
        raise
    except BrokenPipeError:  # `taskvec ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return fail("not enough memory.", 4)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            return _bug(error, fail)
        return fail("not enough memory to start a thread, or too many processes. Try --threads 1.", 4)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}.", 4)
    except Exception as error:
        return _bug(error, fail)


def _bug(error: Exception, fail: Callable[[str, int], int]) -> int:
    if os.environ.get("TASKVEC_DEBUG"):
        raise error
    said = f"{type(error).__name__}: {error}. Set TASKVEC_DEBUG=1 to see where, and please report it."
    return fail(f"a bug in taskvec: {said}", 1)
