"""What commands share in talking to the user: errors and progress."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


class CommandError(Exception):
    """What the user asked for cannot be done; the message says why, in one line."""


@contextlib.contextmanager
def command_errors(*kinds: type[Exception], before: str = '') -> Iterator[None]:
    """Within it, errors whose messages are written for the user become a CommandError."""
    try:
        yield
    except kinds as error:
        raise CommandError(f'{before}{error}') from error


def require_ros(why: str, remedy: str) -> None:
    """Raise CommandError where this Python has no ROS 2, saying why it is needed."""
    try:
        # It needs rclpy, nothing else that may be missing, and little time.
        import cliptrase_ros.ros.parameters  # noqa: F401
    except ImportError as error:
        raise CommandError(
            f'{why}, and there is no ROS 2 in this Python ({error}); {remedy}'
        ) from error


def quiet_pillow() -> None:
    """Keep Pillow's remarks on odd but readable files off standard error; for a whole process."""
    warnings.filterwarnings('ignore', module=r'PIL\.')


def progress_bar(total: int | None, unit: str = 'image', what: str | None = None) -> 'tqdm':
    """A tqdm bar with rate and time left.

    Args:
        total: How many units there are; None where that is not known.
        what: Stands before the bar.
    """
    from tqdm import tqdm

    # None: shown on a terminal only.
    return tqdm(desc=what, total=total, unit=unit, disable=None, dynamic_ncols=True)
