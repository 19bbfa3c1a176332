"""What presets, refinement and smoothing are worth on toybox rooms that training never saw.

`python benchmark/quality.py` prints, for each way to label, mean IoU and boundary IoU over single
pictures, the time of one picture, and how many labels change along the true motion of a tour.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from cliptrase_ros.evaluation.metrics import confusion, scores
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.scenes import DIFFICULTIES, sample_room, true_labels
from cliptrase_ros.toybox.sequences import Frame, photograph, rendered_sequence
from cliptrase_ros.toybox.training.evaluate import VOCABULARIES

CASES = {
    'robot': {},
    'robot, edges': {'refinement': 'edges'},
    'robot, edges, smoothing 0.5': {'refinement': 'edges', 'smoothing': 0.5},
    'plus': {'preset': 'plus'},
    'plus, edges': {'preset': 'plus', 'refinement': 'edges'},
    'plus, smoothing 0.5': {'preset': 'plus', 'smoothing': 0.5},
    'plus, edges, smoothing 0.5': {'preset': 'plus', 'refinement': 'edges', 'smoothing': 0.5},
}
PHRASES = VOCABULARIES['names']
# Pixels from a boundary that count as its band.
_BAND = 4
_TIMED_ROOMS = 15


@dataclass(frozen=True)
class Quality:
    """How good one way to label is; shares are 0..1.

    milliseconds: median over pictures. flicker: of pixels seen in two frames running, those
    whose label changed; true_flicker: the same of the true labels.
    """

    case: str
    resolution: int
    mean_iou: float
    boundary_iou: float
    milliseconds: float
    sequence_iou: float
    flicker: float
    true_flicker: float


def main() -> None:
    """Measure, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N')
    parser.add_argument('--rooms', type=int, default=48)
    parser.add_argument('--tours', type=int, default=6, help='rooms seen as sequences')
    parser.add_argument('--frames', type=int, default=10, help='of a tour, at 10 Hz')
    parser.add_argument('--first-seed', type=int, default=1000)
    parser.add_argument('--difficulty', choices=DIFFICULTIES, default=next(iter(DIFFICULTIES)))
    parser.add_argument('--resolutions', type=int, nargs='+', default=[224, 336])
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 = all')
    parser.add_argument('--json', type=Path, metavar='FILE')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    segmenter = load_segmenter('toybox', device=options.device)
    vocabulary = segmenter.encode_vocabulary(parse_vocabulary(list(PHRASES), background=()))
    first, difficulty = options.first_seed, options.difficulty
    # The moment of the tour that the toybox's own evaluation looks at.
    rooms = [
        photograph(sample_room(seed, 'held_out', difficulty), 7.3 * seed, 240, 320)
        for seed in range(first, first + options.rooms)
    ]
    tours = [
        list(rendered_sequence(sample_room(seed, 'held_out', difficulty), options.frames))
        for seed in range(first, first + options.tours)
    ]
    milliseconds = {}
    for size in options.resolutions:
        settings = {
            case: SegmentationSettings(resolution=size, **CASES[case]) for case in options.cases
        }
        for case, taken in times(segmenter, vocabulary, settings, rooms[:_TIMED_ROOMS]).items():
            milliseconds[size, case] = taken
    results = []
    todo = [(size, case) for size in options.resolutions for case in options.cases]
    print(
        'size  case                         mIoU  boundary IoU      ms  tour mIoU  changed (true)'
    )
    for size, case in tqdm(todo, unit='case', leave=False):
        settings = SegmentationSettings(resolution=size, **CASES[case])
        taken = milliseconds[size, case]
        quality = measure(segmenter, vocabulary, settings, case, taken, rooms, tours)
        results.append(quality)
        tqdm.write(
            f'{size:4}  {case:27} {100 * quality.mean_iou:5.1f}  {100 * quality.boundary_iou:12.1f}'
            f'  {quality.milliseconds:6.1f}  {100 * quality.sequence_iou:9.1f}'
            f'  {100 * quality.flicker:5.2f} % ({100 * quality.true_flicker:.2f} %)'
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + '\n')


def times(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: dict[str, SegmentationSettings],
    rooms: Sequence[Frame],
) -> dict[str, float]:
    """Median milliseconds of one picture in each case, taken in turn so that drift meets all."""
    seconds = {case: [] for case in settings}
    for room in [rooms[0], *rooms]:
        for case, chosen in settings.items():
            begin = time.perf_counter()
            segmenter.segment([room.image], vocabulary, chosen)
            seconds[case].append(time.perf_counter() - begin)
    # The first ones warm up.
    return {case: 1e3 * statistics.median(taken[1:]) for case, taken in seconds.items()}


def measure(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    case: str,
    milliseconds: float,
    rooms: Sequence[Frame],
    tours: Sequence[Sequence[Frame]],
) -> Quality:
    """Label every picture and tour in one way."""
    classes = len(PHRASES)
    counts = np.zeros((classes, classes + 1), np.int64)
    common, either = np.zeros(classes), np.zeros(classes)
    for room in rooms:
        (result,) = segmenter.segment([room.image], vocabulary, settings)
        truth = true_labels(room.label, PHRASES)
        counts += confusion(result.label, truth, classes)
        for label in np.union1d(np.unique(truth), np.unique(result.label)):
            if label < classes:
                ours, theirs = band(result.label == label), band(truth == label)
                common[label] += (ours & theirs).sum()
                either[label] += (ours | theirs).sum()
    present = counts.sum(1) > 0

    tour_counts = np.zeros_like(counts)
    changed = true_changed = pairs = 0
    for tour in tours:
        memory = before = None
        for frame in tour:
            (result,) = segmenter.segment([frame.image], vocabulary, settings, [memory])
            memory = result.history
            tour_counts += confusion(result.label, true_labels(frame.label, PHRASES), classes)
            if before is not None:
                seen = ~np.isnan(frame.motion[..., 0])
                changed += changes(result.label, before[0], frame.motion)
                true_changed += changes(frame.label, before[1], frame.motion)
                pairs += seen.sum()
            before = result.label, frame.label
    return Quality(
        case,
        settings.resolution,
        scores(counts).mean_iou,
        float((common[present] / either[present]).mean()),
        milliseconds,
        scores(tour_counts).mean_iou,
        changed / pairs if pairs else math.nan,
        true_changed / pairs if pairs else math.nan,
    )


def band(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that are near its boundary (boundary IoU, arXiv 2103.16562)."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=_BAND)[1:-1, 1:-1]
    return mask & (inner == 0)


def changes(label: np.ndarray, before: np.ndarray, motion: np.ndarray) -> int:
    """Pixels whose label is not that of the place they were at in the frame before."""
    seen = ~np.isnan(motion[..., 0])
    rows, columns = np.nonzero(seen)
    x = np.rint(columns + motion[seen, 0]).astype(int).clip(0, label.shape[1] - 1)
    y = np.rint(rows + motion[seen, 1]).astype(int).clip(0, label.shape[0] - 1)
    return int((label[seen] != before[y, x]).sum())


if __name__ == '__main__':
    main()
