"""What the last frame of each camera left for its next one, for labels that do not flicker."""

from cliptrase_ros.segmentation.method.smoothing import FrameHistory

#: Age of a frame from which it says nothing about the next one of its camera.
REMEMBERED_NS = 1_000_000_000


class CameraHistories:
    """The histories of cameras, by name; see `Segmenter.segment`."""

    def __init__(self):
        self._latest: dict[str, tuple[int, FrameHistory]] = {}

    def before(self, camera: str, time_ns: int) -> FrameHistory | None:
        """Memory of the camera's frame before this one; None after a gap or a jump back."""
        last_ns, memory = self._latest.get(camera, (0, None))
        # A driver may repeat a stamp: that is no gap.
        return memory if 0 <= time_ns - last_ns <= REMEMBERED_NS else None

    def keep(self, camera: str, time_ns: int, memory: FrameHistory | None) -> None:
        """Keep what a frame leaves; None forgets."""
        if memory is None:
            self._latest.pop(camera, None)
        else:
            self._latest[camera] = time_ns, memory
