"""Boundaries from a second network: each of its masks takes the label its pixels vote for."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cliptrase_ros.segmentation.device_faults import first_line
from cliptrase_ros.segmentation.model.weights import ModelError, weights_digest

#: Takes images, uint8 (H, W, 3) RGB, and gives masks of the things in each, bool (M, H, W), which
#: may overlap and need not cover the image.
MaskSource = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

# What transformers calls "segment everything"; points that prompt the network at once.
_TASK = 'mask-generation'
_POINTS_PER_BATCH = 64


class SamError(ModelError):
    """SAM cannot be had; the message says what was looked for and what to do."""


def vote_in_masks(
    label: np.ndarray, confidence: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give each mask the label that most of its pixels have (CLIPtrase with SAM).

    Pixels vote with the label they came with, unlabelled ones too; the lowest wins a tie. Where
    masks overlap the smallest counts, because it is what is in front or a part; pixels in no mask
    keep their label. The paper's code has no SAM: order, overlaps and the rest are ours.

    Args:
        label: Integers (H, W).
        confidence: uint8 (H, W).
        masks: bool (M, H, W).

    Returns:
        New arrays: labels, and confidence, in a mask the mean over the pixels that voted for its
        label.

    Raises:
        ValueError: For masks of another shape or dtype.
    """
    if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != label.shape:
        raise ValueError(
            f'masks must be bool of shape (M, {label.shape[0]}, {label.shape[1]}), not '
            f'{masks.dtype} of shape {masks.shape}'
        )
    new_label, new_confidence = label.copy(), confidence.copy()
    areas = masks.sum((1, 2))
    for index in np.argsort(-areas, kind='stable'):
        if areas[index] == 0:
            continue
        mask = masks[index]
        votes = label[mask]
        candidates, counts = np.unique(votes, return_counts=True)
        winner = candidates[counts.argmax()]
        new_label[mask] = winner
        new_confidence[mask] = np.rint(confidence[mask][votes == winner].mean())
    return new_label, new_confidence


class Sam:
    """A model of the SAM family in the transformers library: SAM, SAM 2, SAM-HQ, EdgeTAM.

    A `MaskSource` of every mask it finds from a grid of points, filtered as its authors do.
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = 'cpu', points_per_side: int = 32
    ) -> None:
        """Load it; nothing is downloaded and no code of the folder is run.

        Args:
            folder: With config.json, weights and image processor, as made by
                `hf download facebook/sam2.1-hiera-tiny --local-dir FOLDER`.
            points_per_side: Of the grid; fewer are faster and find less.

        Raises:
            SamError: The folder holds no SAM, or transformers is not installed.
        """
        folder = Path(folder).expanduser()
        self.name = folder.resolve().name
        try:
            json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise SamError(
                f'No SAM in {folder}: its config.json cannot be read ({type(error).__name__}). '
                'Give a folder as `hf download facebook/sam2.1-hiera-tiny --local-dir FOLDER` '
                'makes; it can be carried to a machine without internet.'
            ) from error
        try:
            from transformers import pipeline
        except ImportError as error:
            raise SamError(
                'SAM needs the transformers library, which is not installed: pip install '
                "'transformers>=5' (or this package with its extra, cliptrase_ros[sam])"
            ) from error
        try:
            self._generate = pipeline(_TASK, model=str(folder), device=torch.device(device))
        except Exception as error:
            # Settings and weights come from files; what transformers raises on odd ones has no
            # bounds.
            raise SamError(
                f'The model in {folder} cannot be loaded as SAM: {type(error).__name__}: '
                f'{first_line(error)}'
            ) from error
        self._points_per_side = points_per_side

    @cached_property
    def weights_digest(self) -> str:
        """A name for the weights; takes seconds for a large model."""
        return weights_digest(self._generate.model)

    def to(self, device: torch.device) -> None:
        """Move it to another device."""
        self._generate.device = device
        self._generate.model.to(device)

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Masks of each image; see `MaskSource`."""
        results = self._generate(
            [Image.fromarray(image) for image in images],
            points_per_batch=_POINTS_PER_BATCH,
            points_per_crop=self._points_per_side,
        )
        return [
            np.stack([np.asarray(mask, bool) for mask in result['masks']])
            if len(result['masks'])
            else np.zeros((0, *image.shape[:2]), bool)
            for image, result in zip(images, results, strict=True)
        ]
