"""The functions of a module that is in use, replaced by those of another text of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor


def transplant(module: ModuleType, text: str) -> None:
    """Let all functions, methods and numbers of `module` be those of `text`, for everybody who imported them already.

    Functions keep their identity and get other code, so that it makes no difference who holds them: tests that were
    collected, other modules, torch's own tables.
    """
    assert module.__file__ is not None
    fresh = {"__name__": module.__name__, "__package__": module.__package__, "__file__": module.__file__}
    exec(compile(text, module.__file__, "exec"), fresh)
    _replace(vars(module), fresh, module, vars(module).__setitem__)


def _replace(
    old: Mapping[str, Any], new: Mapping[str, Any], module: ModuleType, assign: Callable[[str, Any], None]
) -> None:
    for name, value in new.items():
        before, after = _inner(old.get(name)), _inner(value)
        if isinstance(before, FunctionType) and isinstance(after, FunctionType):
            if after.__code__.co_filename == module.__file__:  # neither imported nor made by a decorator
                before.__code__, before.__defaults__ = after.__code__, after.__defaults__
        elif isinstance(before, type) and isinstance(after, type):
            if after.__module__ == module.__name__ and not name.startswith("_backward"):  # which torch makes of another
                _replace(vars(before), vars(after), module, partial(setattr, before))
        elif isinstance(after, bool | int | float | Tensor) and name not in UNSEEN:
            assign(name, after)


UNSEEN = {"__firstlineno__", "_autograd_function_id"}  # numbers that Python and torch give to a class


def _inner(value: Any) -> Any:
    """The function in a static or class method, or under a decorator such as `cache`."""
    if isinstance(value, type):
        return value
    value = getattr(value, "__func__", value)
    return getattr(value, "__wrapped__", value)
