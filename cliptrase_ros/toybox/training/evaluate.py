"""Zero-shot results of a toybox CLIP: `python -m cliptrase_ros.toybox.training.evaluate --help`."""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cliptrase_ros.evaluation.class_indices import label_by_method
from cliptrase_ros.evaluation.metrics import class_iou, confusion
from cliptrase_ros.segmentation.model import preprocessing
from cliptrase_ros.segmentation.model.weights import TOYBOX_FOLDER, load_model_folder
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, parse_vocabulary
from cliptrase_ros.toybox.scenes import (
    CLASSES,
    DIFFICULTIES,
    UNSEEN_COMBINATIONS,
    matches,
    true_labels,
)
from cliptrase_ros.toybox.sequences import Photograph, photograph_room
from cliptrase_ros.toybox.training.captions import MENTIONED_FROM

VOCABULARIES: dict[str, tuple[str, ...]] = {
    'names': tuple(toy_class.name for toy_class in CLASSES),
    'shapes': ('ball', 'box', 'cone', 'cylinder', 'floor', 'wall'),
}
#: Ways to label. The first two do without clusters: by the tokens of plain CLIP, and by those that
#: the engine recovers.
METHODS = {
    'plain': replace(PRESETS['robot'], features='clip', clustering=False),
    'recovered': replace(PRESETS['robot'], clustering=False),
    'paper': PRESETS['paper'],
    'robot': PRESETS['robot'],
    'plus+edges': replace(PRESETS['plus'], refinement='edges'),
}


def photograph_rooms(
    count: int,
    split: str,
    first_seed: int = 0,
    difficulty: str = 'easy',
    size: tuple[int, int] | None = None,
) -> list[Photograph]:
    """Take one picture of each of `count` rooms; see `sequences.photograph_room`."""
    seeds = range(first_seed, first_seed + count)
    return [photograph_room(seed, split, difficulty, size) for seed in seeds]


def evaluate(
    folder: Path,
    rooms: Sequence[Photograph],
    phrases: Sequence[str],
    resolution: int = 336,
    methods: Sequence[str] = tuple(METHODS),
) -> dict:
    """Measure a model on pictures of rooms with one vocabulary.

    Pixels whose class no phrase names do not count; for preset `paper` neither do those outside its
    square crop.

    Args:
        folder: Of the model.
        resolution: Shorter side fed to CLIP, pixels.
        methods: Some of `METHODS`.

    Returns:
        By method the mean IoU (0..1), `miou`; the same over the combinations that training never
        saw, `unseen_miou`; `accuracy`; and the IoU of each class. Under `image`, of the unmodified
        [CLS] token: `auc`, the mean over phrases of the area under the ROC curve; `first_hit`, how
        often the object phrase and the surface phrase with the largest score is in the picture.
    """
    segmenter = Segmenter(load_model_folder(folder))
    vocabulary = segmenter.encode_vocabulary(parse_vocabulary(list(phrases), background=()))
    settings = SegmentationSettings(resolution=resolution)
    truth = [true_labels(room.label, phrases) for room in rooms]
    labels: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    scores = []
    for room in tqdm(rooms, unit='room', leave=False):
        scores.append(_score_image(segmenter, vocabulary, room.image, resolution))
        for method in methods:
            labels[method] += label_by_method(
                segmenter, [room.image], vocabulary.table, settings, METHODS[method]
            )
    report = {}
    for method, predicted in labels.items():
        counts = np.zeros((len(phrases), len(phrases) + 1), np.int64)
        for p, t in zip(predicted, truth, strict=True):
            outside = (p == UNLABELLED) if method == 'paper' else np.zeros_like(p, bool)
            counts += confusion(p, np.where(outside, UNLABELLED, t), len(phrases))
        iou = class_iou(counts)
        report[method] = {
            'miou': round(float(np.nanmean(iou)), 4),
            'unseen_miou': _unseen_miou(phrases, iou),
            'accuracy': round(float(np.trace(counts) / counts.sum()), 4),
            'iou': {
                n: round(float(v), 3) for n, v in zip(phrases, iou, strict=True) if np.isfinite(v)
            },
        }
    return report | {'image': _measure_image_scores(np.stack(scores), truth, phrases)}


@torch.inference_mode()
def _score_image(
    segmenter: Segmenter, vocabulary: EncodedVocabulary, image: np.ndarray, resolution: int
) -> np.ndarray:
    """Logits of the phrases for a whole image, of the [CLS] token of plain CLIP."""
    pipeline = segmenter.pipeline
    framing = preprocessing.whole_frame_framing(
        image.shape[:2], resolution, pipeline.backbone.patch_size
    )
    frames = torch.from_numpy(image)[None].to(segmenter.device)
    pixels = pipeline.normalise(preprocessing.network_input(frames, framing), 'whole')
    tokens = pipeline.backbone(pixels, 'clip').tokens
    return vocabulary.table.logits(tokens.float())[0, 0].cpu().numpy()


def _unseen_miou(phrases: Sequence[str], iou: np.ndarray) -> float | None:
    """Mean over the phrases that are `UNSEEN_COMBINATIONS`; None where there are none."""
    unseen = {' '.join(pair) for pair in UNSEEN_COMBINATIONS}
    values = iou[[phrase in unseen for phrase in phrases]]
    return round(float(np.nanmean(values)), 4) if np.isfinite(values).any() else None


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative; ties count half.

    Of N scores, `positive` says by bool (N,) which are positives. The result is 0..1; NaN where
    there are no positives or no negatives.
    """
    wins, losses = int(positive.sum()), int((~positive).sum())
    if not wins or not losses:
        return float('nan')
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    return float((rank[inverse][positive].sum() - wins * (wins + 1) / 2) / (wins * losses))


def _measure_image_scores(
    scores: np.ndarray, truth: list[np.ndarray], phrases: Sequence[str]
) -> dict:
    share = np.stack([np.bincount(t.ravel(), minlength=256)[: len(phrases)] for t in truth])
    share = share / truth[0].size
    aucs = []
    for column in range(len(phrases)):
        known = (share[:, column] >= MENTIONED_FROM) | (share[:, column] == 0)
        aucs.append(roc_auc(scores[known, column], share[known, column] > 0))
    # One view may hold everything or nothing of what is asked for.
    result = {'auc': round(float(np.nanmean(aucs)), 4) if np.isfinite(aucs).any() else None}
    kinds = [next(c.kind for c in CLASSES if matches(phrase, c)) for phrase in phrases]
    for name, columns in (
        ('object', [i for i, kind in enumerate(kinds) if kind == 'object']),
        ('surface', [i for i, kind in enumerate(kinds) if kind != 'object']),
    ):
        rows = (share[:, columns] >= MENTIONED_FROM).any(1)
        if not rows.any():
            continue
        best = scores[rows][:, columns].argmax(1)
        hits = share[rows][:, columns][np.arange(rows.sum()), best] > 0
        result[f'first_hit_{name}'] = round(float(hits.mean()), 4)
    return result


def _summary(method: str, result: dict) -> str:
    unseen = result['unseen_miou']
    alone = '' if unseen is None else f' (unseen {100 * unseen:.1f})'
    return f'{method} {100 * result["miou"]:.1f}{alone}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog='python -m cliptrase_ros.toybox.training.evaluate',
        description='Zero-shot segmentation of rooms that training never saw.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('folders', type=Path, nargs='*', default=[TOYBOX_FOLDER])
    parser.add_argument('--scenes', type=int, default=100)
    parser.add_argument('--first-seed', type=int, default=0, help='of the rooms')
    parser.add_argument('--splits', nargs='+', default=['held_out', 'unseen_combinations'])
    parser.add_argument('--difficulties', nargs='+', default=list(DIFFICULTIES))
    parser.add_argument('--resolutions', type=int, nargs='+', default=[336])
    parser.add_argument('--vocabularies', nargs='+', default=list(VOCABULARIES))
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=METHODS)
    parser.add_argument('--threads', type=int, default=0, help='CPU threads; 0 = all')
    parser.add_argument('--json', type=Path, help='write everything, per class too')
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    report = {}
    for difficulty, split in itertools.product(options.difficulties, options.splits):
        rooms = photograph_rooms(options.scenes, split, options.first_seed, difficulty)
        for folder, resolution, name in itertools.product(
            options.folders, options.resolutions, options.vocabularies
        ):
            result = evaluate(folder, rooms, VOCABULARIES[name], resolution, options.methods)
            title = f'{folder.name} {difficulty} {split} {resolution} {name}'
            report[title] = result
            print(f'{title}: ' + '  '.join(_summary(m, result[m]) for m in options.methods))
            print(f'    {result["image"]}', flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
