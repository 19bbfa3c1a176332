"""What the last frame of each camera left for its next one, for labels that do not flicker."""

from cliptrase_ros.segmentation.method.smoothing import FrameHistory

#: Longest time between two frames of a camera over which its history is of use.
MAX_GAP_NS = 1_000_000_000


class CameraHistories:
    """The histories of cameras, by name; see `Segmenter.segment`."""

    def __init__(self):
        self._latest: dict[str, tuple[int, FrameHistory]] = {}

    def before(self, camera: str, time_ns: int) -> FrameHistory | None:
        """History of the camera's frame before this time; None after a gap or a jump back."""
        last_ns, history = self._latest.get(camera, (0, None))
        # A driver may repeat a stamp: that is no gap.
        return history if 0 <= time_ns - last_ns <= MAX_GAP_NS else None

    def keep(self, camera: str, time_ns: int, history: FrameHistory | None) -> None:
        """Keep what a frame leaves; None forgets."""
        if history is None:
            self._latest.pop(camera, None)
        else:
            self._latest[camera] = time_ns, history
