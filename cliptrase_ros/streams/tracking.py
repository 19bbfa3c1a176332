"""Which instance of an image is which of the images before: a plain tracker by overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cliptrase_ros.segmentation.instances import Instance

#: How long an instance that is not seen keeps its id, nanoseconds.
MAX_GAP_NS = 1_000_000_000
#: Least intersection over union of the masks of one instance in two images.
MIN_OVERLAP = 0.05


@dataclass
class _Track:
    """An instance as it was seen last."""

    id: int
    instance: Instance
    seen_ns: int


class InstanceTracker:
    """Gives the instances of one camera ids that stay from image to image.

    An instance is one of before if it is of the same class and overlaps with the place where that
    was seen last, at most `MAX_GAP_NS` ago, by an intersection over union of `MIN_OVERLAP` or more.
    The pairs that overlap most are taken first. What moves further between two images than it is
    wide is another instance, as is what is hidden for longer; two that touch are one, which keeps
    one of both ids.

    Ids count from 1 and are never given twice.
    """

    def __init__(self):
        self._tracks: list[_Track] = []
        self._last_id = 0
        self._last_ns = 0
        self._size: tuple[int, ...] = ()

    def track(self, instances: Sequence[Instance], time_ns: int) -> list[int]:
        """Find the ids of the instances of the next image; after a jump back in time all are new.

        Args:
            time_ns: Stamp of the image, nanoseconds.
        """
        size = instances[0].numbers.shape if instances else self._size
        if time_ns < self._last_ns or size != self._size:
            self._tracks = []
        self._last_ns, self._size = time_ns, size
        tracks = [t for t in self._tracks if time_ns - t.seen_ns <= MAX_GAP_NS]
        matches = _match([track.instance for track in tracks], instances)
        ids = []
        for index, instance in enumerate(instances):
            if index in matches:
                track = tracks[matches[index]]
                track.instance, track.seen_ns = instance, time_ns
            else:
                self._last_id += 1
                track = _Track(self._last_id, instance, time_ns)
                tracks.append(track)
            ids.append(track.id)
        self._tracks = tracks
        return ids


def _match(before: Sequence[Instance], now: Sequence[Instance]) -> dict[int, int]:
    """Which of the instances before each of now is, by index: pairs of largest overlap first."""
    pairs = [(_overlap(before[i], now[j]), i, j) for i, j in _candidates(before, now)]
    matches: dict[int, int] = {}
    taken = set()
    for overlap, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if overlap >= MIN_OVERLAP and i not in taken and j not in matches:
            matches[j] = i
            taken.add(i)
    return matches


def _candidates(before: Sequence[Instance], now: Sequence[Instance]) -> list[list[int]]:
    """Pairs, by their indices, of the same class whose boxes overlap."""
    if not before or not now:
        return []
    # By name: a vocabulary that has run out of ids gives those of another one's classes.
    names = [np.array([instance.entry.name for instance in group]) for group in (before, now)]
    boxes = [np.array([instance.box for instance in group]).T for group in (before, now)]
    (x, y, width, height), (x_now, y_now, width_now, height_now) = boxes[0][..., None], boxes[1]
    overlaps = (
        (names[0][:, None] == names[1])
        & (x < x_now + width_now)
        & (x_now < x + width)
        & (y < y_now + height_now)
        & (y_now < y + height)
    )
    return np.argwhere(overlaps).tolist()


def _overlap(one: Instance, other: Instance) -> float:
    """Intersection over union of two masks, 0..1; their boxes overlap."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = one.box, other.box
    common = np.s_[max(y1, y2) : min(y1 + h1, y2 + h2), max(x1, x2) : min(x1 + w1, x2 + w2)]
    both = (one.numbers[common] == one.number) & (other.numbers[common] == other.number)
    shared = int(np.count_nonzero(both))
    return shared / (one.area + other.area - shared)
