"""What presets, refinement and smoothing are worth on toybox rooms that training never saw.

`python benchmark/quality.py` prints, for each way to label, mean IoU and boundary IoU over single
pictures, the time of one picture, and how many labels change along the true motion of a tour.

What it says of `sc_clip` says nothing of that preset with a real CLIP: the toybox model is trained
through the residual and the MLP of its last block, which `sc_clip` leaves out.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cliptrase_ros.benchmark.timing import interleaved
from cliptrase_ros.evaluation.metrics import confusion, scores
from cliptrase_ros.photos.reading import read_photo
from cliptrase_ros.segmentation.method import pamr
from cliptrase_ros.segmentation.model.preprocessing import framing_of, network_input, to_camera_size
from cliptrase_ros.segmentation.run.pipeline import trace
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.scenes import DIFFICULTIES, sample_room, true_labels
from cliptrase_ros.toybox.sequences import Photograph, photograph_room, rendered_sequence
from cliptrase_ros.toybox.training.evaluate import VOCABULARIES

CASES = {
    'robot': {},
    'robot, edges': {'refinement': 'edges'},
    'robot, pamr': {'refinement': 'pamr'},
    'robot, edges, smoothing 0.5': {'refinement': 'edges', 'smoothing': 0.5},
    'plus': {'preset': 'plus'},
    'plus, edges': {'preset': 'plus', 'refinement': 'edges'},
    'plus, pamr': {'preset': 'plus', 'refinement': 'pamr'},
    'plus, window 224': {'preset': 'plus', 'window': 224},
    'plus, smoothing 0.5': {'preset': 'plus', 'smoothing': 0.5},
    'plus, edges, smoothing 0.5': {'preset': 'plus', 'refinement': 'edges', 'smoothing': 0.5},
    'sc_clip': {'preset': 'sc_clip'},
}
PHRASES = VOCABULARIES['names']
# Pixels from a boundary that count as its band.
_BAND = 4
_TIMED_ROOMS = 15


@dataclass(frozen=True)
class Quality:
    """How good one way to label is; shares are 0..1.

    Attributes:
        resolution: Shorter side fed to CLIP, pixels.
        mean_iou: Of single pictures.
        boundary_iou: Of single pictures.
        milliseconds: Of a picture, median.
        sequence_iou: Mean IoU of the pictures of tours.
        flicker: Of pixels seen in two pictures running, those whose label changed.
        true_flicker: The same of the true labels.
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
    parser.add_argument(
        '--pamr',
        action='store_true',
        help='instead, compare refinement pamr with PAMR of the maps of all classes',
    )
    parser.add_argument('--photos', type=Path, metavar='FOLDER', help='compare on these as well')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    segmenter = load_segmenter('toybox', device=options.device)
    vocabulary = segmenter.encode_vocabulary(parse_vocabulary(list(PHRASES), background=()))
    first, difficulty = options.first_seed, options.difficulty
    rooms = [
        photograph_room(seed, 'held_out', difficulty, (240, 320))
        for seed in range(first, first + options.rooms)
    ]
    if options.pamr:
        print_pamr(segmenter, vocabulary, [room.image for room in rooms], 'rooms')
        if options.photos:
            photos = [read_photo(path) for path in sorted(options.photos.iterdir())]
            print_pamr(segmenter, vocabulary, photos, 'photos')
        return
    tours = [
        list(rendered_sequence(sample_room(seed, 'held_out', difficulty), options.frames))
        for seed in range(first, first + options.tours)
    ]
    settings = {
        size: {case: SegmentationSettings(resolution=size, **CASES[case]) for case in options.cases}
        for size in options.resolutions
    }
    milliseconds = {
        size: time_cases(segmenter, vocabulary, of_size, rooms[:_TIMED_ROOMS])
        for size, of_size in settings.items()
    }
    results = []
    todo = [(size, case) for size in options.resolutions for case in options.cases]
    print(
        'size  case                         mIoU  boundary IoU      ms  tour mIoU  changed (true)'
    )
    for size, case in tqdm(todo, unit='case', leave=False):
        engine = segmenter, vocabulary, settings[size][case]
        mean_iou, boundary_iou = measure_rooms(*engine, rooms)
        quality = Quality(
            *(case, size, mean_iou, boundary_iou, milliseconds[size][case]),
            *measure_tours(*engine, tours),
        )
        results.append(quality)
        tqdm.write(
            f'{size:4}  {case:27} {100 * quality.mean_iou:5.1f}  {100 * quality.boundary_iou:12.1f}'
            f'  {quality.milliseconds:6.1f}  {100 * quality.sequence_iou:9.1f}'
            f'  {100 * quality.flicker:5.2f} % ({100 * quality.true_flicker:.2f} %)'
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + '\n')


def print_pamr(
    segmenter: Segmenter, vocabulary: EncodedVocabulary, images: Sequence[np.ndarray], what: str
) -> None:
    """Print how many labels refinement `pamr` has in common with PAMR of the maps of all classes.

    That is done at the network's size, as the refinement is, and at the image's, as published.
    """
    for preset, resolution in itertools.product(('robot', 'plus'), (224, 336)):
        settings = SegmentationSettings(preset, resolution, refinement='pamr')
        shares = []
        for image in tqdm(images, unit='image', leave=False):
            (result,) = segmenter.segment([image], vocabulary, settings)
            shares.append(
                [
                    float((result.label == label).mean())
                    for label in label_by_pamr_of_all(segmenter, vocabulary, settings, image)
                ]
            )
        same_size, full_size = np.mean(shares, 0)
        print(
            f'{len(images)} {what}, {preset}, {resolution}: labels equal to those of all maps '
            f'{same_size:.2%}, of all maps at full size {full_size:.2%}'
        )


@torch.inference_mode()
def label_by_pamr_of_all(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    image: np.ndarray,
) -> list[np.ndarray]:
    """Labels (H, W) by PAMR of every class's map, at the network's size and at the image's."""
    pipeline, table = segmenter.pipeline, vocabulary.table
    method = replace(settings.method, refinement='none')
    framing = framing_of(
        method.frame, image.shape[:2], settings.resolution, pipeline.backbone.patch_size
    )
    frames = torch.from_numpy(image)[None].to(segmenter.device)
    pixels = pipeline.normalise(network_input(frames, framing), method.frame)
    result = trace(pipeline.backbone, pixels, table, method)
    maps = result.patch_probability if method.propagation else result.patch_logits
    labels = []
    for size in (framing.crop, framing.source):
        enlarged, picture = (F.interpolate(x, size=size, mode='bilinear') for x in (maps, pixels))
        refined = pamr.refine(enlarged, pamr.neighbour_weights(picture))
        label = table.ids[refined.argmax(1)]
        if size != framing.source:
            label = to_camera_size(label, framing, outside=table.unlabelled)
        labels.append(label[0].cpu().numpy())
    return labels


def time_cases(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: dict[str, SegmentationSettings],
    rooms: Sequence[Photograph],
) -> dict[str, float]:
    """Median milliseconds of one picture in each case, taken in turn so that drift meets all."""

    def make_labeller(chosen: SegmentationSettings) -> Callable[[], object]:
        images = itertools.cycle(room.image for room in rooms)
        return lambda: segmenter.segment([next(images)], vocabulary, chosen)

    labellers = {case: make_labeller(chosen) for case, chosen in settings.items()}
    taken = interleaved(labellers, len(rooms), segmenter.device)
    return {case: statistics.median(milliseconds) for case, milliseconds in taken.items()}


def measure_rooms(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    rooms: Sequence[Photograph],
) -> tuple[float, float]:
    """Label single pictures; returns mean IoU and mean boundary IoU, 0..1."""
    classes = len(PHRASES)
    counts = np.zeros((classes, classes + 1), np.int64)
    common, either = np.zeros(classes), np.zeros(classes)
    for room in rooms:
        (result,) = segmenter.segment([room.image], vocabulary, settings)
        truth = true_labels(room.label, PHRASES)
        counts += confusion(result.label, truth, classes)
        for label in np.union1d(np.unique(truth), np.unique(result.label)):
            if label < classes:
                ours = boundary_band(result.label == label)
                theirs = boundary_band(truth == label)
                common[label] += (ours & theirs).sum()
                either[label] += (ours | theirs).sum()
    present = counts.sum(1) > 0
    return scores(counts).mean_iou, float((common[present] / either[present]).mean())


def measure_tours(
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    tours: Sequence[Sequence[Photograph]],
) -> tuple[float, float, float]:
    """Label sequences; returns mean IoU, flicker and true flicker, see `Quality`."""
    classes = len(PHRASES)
    counts = np.zeros((classes, classes + 1), np.int64)
    changed = true_changed = seen_twice = 0
    for tour in tours:
        history = earlier = None
        for photo in tour:
            (result,) = segmenter.segment([photo.image], vocabulary, settings, [history])
            history = result.history
            counts += confusion(result.label, true_labels(photo.label, PHRASES), classes)
            if earlier is not None:
                earlier_label, earlier_truth = earlier
                changed += count_changes(result.label, earlier_label, photo.motion)
                true_changed += count_changes(photo.label, earlier_truth, photo.motion)
                seen_twice += (~np.isnan(photo.motion[..., 0])).sum()
            earlier = result.label, photo.label
    if not seen_twice:
        return scores(counts).mean_iou, math.nan, math.nan
    return scores(counts).mean_iou, changed / seen_twice, true_changed / seen_twice


def boundary_band(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that are near its boundary (boundary IoU, arXiv 2103.16562)."""
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=_BAND)[1:-1, 1:-1]
    return mask & (inner == 0)


def count_changes(label: np.ndarray, before: np.ndarray, motion: np.ndarray) -> int:
    """Count the pixels whose label is not that of their place in the picture before, by `motion`.

    See `Photograph`; the labels are (H, W).
    """
    seen = ~np.isnan(motion[..., 0])
    rows, columns = np.nonzero(seen)
    x = np.rint(columns + motion[seen, 0]).astype(int).clip(0, label.shape[1] - 1)
    y = np.rint(rows + motion[seen, 1]).astype(int).clip(0, label.shape[0] - 1)
    return int((label[seen] != before[y, x]).sum())


if __name__ == '__main__':
    main()
