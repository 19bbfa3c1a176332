"""Work of threads on many things one after the other, a few of them ahead of who takes them."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


def submit_ahead(
    threads: Executor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Generator[Future[_Result], None, None]:
    """Yield the futures of `function(item)` in the order of the items.

    Those that nobody took are cancelled when the generator is closed.

    Args:
        ahead: How many items after the one whose future is yielded are at work already.
    """
    futures: deque[Future[_Result]] = deque()
    try:
        for item in items:
            futures.append(threads.submit(function, item))
            if len(futures) > ahead:
                yield futures.popleft()
        while futures:
            yield futures.popleft()
    finally:
        for future in futures:
            future.cancel()
