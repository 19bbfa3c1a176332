"""What is at fault where a task is not done: the input, or the worker."""


class InputFault(Exception):
    """An input that cannot be labelled, however often it is tried; the message says why."""


class WorkerUnfit(RuntimeError):
    """A worker that can go on no more, as when its GPU is lost; the message says why."""


def sentence(error: Exception) -> str:
    """What an error says, and of which kind it is, in a line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'
