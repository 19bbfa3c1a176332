"""What commands share in talking to the user: errors and progress."""

import warnings


class CommandError(Exception):
    """What the user asked for cannot be done; the message says why, in one line."""


def require_ros(why: str, remedy: str) -> None:
    """Raise CommandError where this Python has no ROS 2. why: it is needed; remedy: what to do."""
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise CommandError(
            f'{why}, and there is no ROS 2 in this Python ({error}); {remedy}'
        ) from error


def quiet_pillow() -> None:
    """Keep Pillow's remarks on odd but readable files off standard error; for a whole process."""
    warnings.filterwarnings('ignore', module=r'PIL\.')


def progress_bar(total: int | None):
    """Progress over so many images, None if unknown, with rate and time left; a tqdm bar."""
    from tqdm import tqdm

    # None: shown on a terminal only.
    return tqdm(total=total, unit='image', disable=None, dynamic_ncols=True)
