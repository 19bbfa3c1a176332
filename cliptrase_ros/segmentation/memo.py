"""Tensors that depend on sizes alone: made once for a call that is repeated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

_kept: ContextVar[dict | None] = ContextVar('kept', default=None)


@contextmanager
def kept_in(constants: dict) -> Iterator[None]:
    """Within it, what a `constant` function returned is looked up there, and added if need be."""
    token = _kept.set(constants)
    try:
        yield
    finally:
        _kept.reset(token)


def constant(function: Callable) -> Callable:
    """Let a function of hashable arguments make its tensors once within `kept_in`.

    They must not be changed in place. Elsewhere it is called as it is.
    """

    @wraps(function)
    def made_once(*arguments):
        constants = _kept.get()
        if constants is None:
            return function(*arguments)
        key = (function, arguments)
        if key not in constants:
            constants[key] = function(*arguments)
        return constants[key]

    return made_once
