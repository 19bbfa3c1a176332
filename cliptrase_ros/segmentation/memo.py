"""Tensors that depend on sizes alone: made once for a call that is repeated."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TypeVar

_Result = TypeVar('_Result')

_cache: ContextVar[dict | None] = ContextVar('cache', default=None)


@contextmanager
def reuse_constants_in(cache: dict) -> Iterator[None]:
    """Within it, `constant` functions look up there what they returned before, and add to it."""
    token = _cache.set(cache)
    try:
        yield
    finally:
        _cache.reset(token)


def constant(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Let a function of hashable arguments make its tensors once within `reuse_constants_in`.

    They must not be changed in place. Elsewhere the function is called as it is.
    """

    @wraps(function)
    def call_once(*arguments: Hashable) -> _Result:
        cache = _cache.get()
        if cache is None:
            return function(*arguments)
        key = (function, arguments)
        if key not in cache:
            cache[key] = function(*arguments)
        return cache[key]

    return call_once
