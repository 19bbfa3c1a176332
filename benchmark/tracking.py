"""How often the tracker takes an object for another: id switches on tours of the toy rooms.

`source tools/env.sh && python benchmark/tracking.py`

Each room has balls, boxes, cones and cylinders, several of a shape, and is labelled by shapes; the
renderer knows which object each pixel shows. An object is found in a picture by the instance whose
mask overlaps most with it, by 30 % of their union or more. A switch is when it is found under
another id than before, unless it was not found for longer than the tracker remembers (a return).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cliptrase_ros.segmentation.instances import Instance, find_instances
from cliptrase_ros.segmentation.segmenter import Segmentation, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.tracking import MAX_GAP_NS, InstanceTracker
from cliptrase_ros.toybox import materials
from cliptrase_ros.toybox.renderer import render
from cliptrase_ros.toybox.scenes import OBJECT_SLOTS, SLOTS, Room, sample_room, true_labels
from cliptrase_ros.toybox.sequences import photograph

SHAPES = ('ball', 'box', 'cone', 'cylinder')
#: Least intersection over union with an object for an instance to be it.
FOUND = 0.3


@dataclass
class Tally:
    """What is counted, and the milliseconds that each image took."""

    frames: int = 0
    objects: int = 0
    found: int = 0
    switches: int = 0
    returns: int = 0
    find_ms: list[float] = field(default_factory=list)
    track_ms: list[float] = field(default_factory=list)


class Follower:
    """Follows the objects of one room under the ids of a tracker."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._tracker = InstanceTracker()
        # Of each object: its latest id, and when that was.
        self._latest: dict[int, tuple[int, int]] = {}

    def add(self, result: Segmentation, objects: np.ndarray, time_ns: int) -> None:
        """Take the next picture; objects: uint8 (H, W), the slot of each pixel."""
        tally = self._tally
        begin = time.perf_counter()
        instances = find_instances(result, SegmentationSettings.min_instance_area)
        found = time.perf_counter()
        ids = self._tracker.track(instances, time_ns)
        tally.find_ms.append(1e3 * (found - begin))
        tally.track_ms.append(1e3 * (time.perf_counter() - found))
        tally.frames += 1
        for slot, index in _find_objects(instances, objects).items():
            tally.found += 1
            before, seen_ns = self._latest.get(slot, (None, time_ns))
            if before is None:
                tally.objects += 1
            elif before != ids[index]:
                if time_ns - seen_ns > MAX_GAP_NS:
                    tally.returns += 1
                else:
                    tally.switches += 1
            self._latest[slot] = ids[index], time_ns


def _find_objects(instances: Sequence[Instance], objects: np.ndarray) -> dict[int, int]:
    """Index of the instance that is each object, for those that are found."""
    areas, found = np.bincount(objects.ravel(), minlength=SLOTS), {}
    for index, instance in enumerate(instances):
        x, y, width, height = instance.box
        inside = objects[y : y + height, x : x + width][instance.mask]
        shared = np.bincount(inside, minlength=SLOTS)[:OBJECT_SLOTS]
        slot = int(shared.argmax())
        union = instance.area + areas[slot] - shared[slot]
        if shared[slot] >= FOUND * union:
            found[slot] = index
    return found


def _with_slots(room: Room) -> Room:
    """The same room, in which the class of each thing is the number of its slot."""
    appearance = room.packed.appearance.clone()
    appearance[..., materials.CLASS_ID] = torch.arange(SLOTS)
    return replace(room, packed=replace(room.packed, appearance=appearance))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rooms', type=int, default=2)
    parser.add_argument('--frames', type=int, default=100)
    parser.add_argument('--rate', type=float, default=10.0, help='pictures a second')
    parser.add_argument('--size', type=int, nargs=2, default=(240, 320), metavar=('H', 'W'))
    arguments = parser.parse_args()
    segmenter = load_segmenter('toybox', device='cpu')
    words = segmenter.encode_vocabulary(parse_vocabulary(SHAPES, ('floor', 'wall', 'ceiling')))
    ways = {
        'true labels': None,
        'predicted': SegmentationSettings(),
        'predicted, smoothing 0.5': SegmentationSettings(smoothing=0.5),
    }
    print(f'{arguments.rooms} rooms, {arguments.frames} pictures each, {arguments.rate:g} a second')
    print(
        f'{"":34} objects  found  switches  /100 pictures  /object  returns  find ms  track ms',
    )
    for difficulty in ('easy', 'hard'):
        tallies = {way: Tally() for way in ways}
        for seed in range(arguments.rooms):
            room = sample_room(seed, 'held_out', difficulty)
            followers = {way: Follower(tally) for way, tally in tallies.items()}
            histories = CameraHistories()
            for number in range(arguments.frames):
                time_s = number / arguments.rate
                photo, time_ns = photograph(room, time_s, *arguments.size), round(1e9 * time_s)
                slots = render([_with_slots(room)], [photo.pose], *arguments.size).label[0].numpy()
                for way, settings in ways.items():
                    if settings is None:
                        label = true_labels(photo.label, SHAPES)
                        result = Segmentation(label, np.full_like(label, 255), words.vocabulary)
                    else:
                        history = histories.before(way, time_ns)
                        (result,) = segmenter.segment([photo.image], words, settings, [history])
                        histories.keep(way, time_ns, result.history)
                    followers[way].add(result, slots, time_ns)
        for way, tally in tallies.items():
            print(
                f'{f"{difficulty}, {way}":34} {tally.objects:7} {tally.found:6} '
                f'{tally.switches:9} {100 * tally.switches / tally.frames:14.2f} '
                f'{tally.switches / max(1, tally.objects):8.3f} {tally.returns:8} '
                f'{np.median(tally.find_ms):8.2f} {np.median(tally.track_ms):9.2f}'
            )


if __name__ == '__main__':
    main()
