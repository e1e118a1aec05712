"""What every program of the package has around it: errors become one line and an exit status."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable


class Failure(Exception):
    """What was asked for could not be done, through no mistake of the user's.

    Attributes:
        status: the program's exit status.
    """

    status = 1


def one_line(error: BaseException) -> str:
    """The error's own words on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def guarded(main: Callable[[], object]) -> int:
    """Run `main`; the exit status: 0, or 2 for a mistake of the user's, 1 for a run that failed, 130 for Ctrl-C,
    141 where nobody reads the output any longer.

    What went wrong goes to stderr as one line; of Ctrl-C, what there is to say of it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a word the terminal cannot show must not end the program
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"stopped: {one_line(stop)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed when Python ends
        return 141
    except Failure as error:
        return _say(error, error.status)
    except (ValueError, OSError) as error:
        return _say(error, 2)
    except (ArithmeticError, MemoryError) as error:
        return _say(error, 1)
    return 0


def _say(error: Exception, status: int) -> int:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return status
