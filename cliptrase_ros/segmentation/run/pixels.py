"""Labels made at the camera's pixels: every phrase is enlarged, then the most probable one wins.

Maps of all phrases at that size need not exist at once: phrases are taken a few at a time, and with
them the largest logit and the sum that softmax divides by.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function as stage

from cliptrase_ros.segmentation.method import pamr, sliding
from cliptrase_ros.segmentation.method.enlarging import enlarge
from cliptrase_ros.segmentation.method.presence import without_absent
from cliptrase_ros.segmentation.method.refinement import count_labels
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.settings import Method

# Values of enlarged maps at a time, to bound memory: 128 MiB; some three times as much is in use.
_VALUES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class PhraseMaps:
    """How similar the places of B frames are to each of P phrases.

    Attributes:
        cosines: float32 (windows x B, P, h, w), of patches, in the order of `cut_windows`; very low
            for phrases that are padding.
        corners: (top, left) of the windows, pixels at the network's size; None for one pass over
            the whole frame.
        window: (height, width), pixels.
        network_size: (height, width) of the frame at the network's size.
        camera_size: (height, width) of the frame.
        neighbour_weights: For `pamr.refine`, at the camera's size; None without PAMR.
    """

    cosines: Tensor
    corners: list[sliding.Corner] | None
    window: tuple[int, int]
    network_size: tuple[int, int]
    camera_size: tuple[int, int]
    neighbour_weights: Tensor | None = None

    def at_pixels(self, phrases: slice) -> Tensor:
        """Cosines of some phrases at the camera's pixels: float32 (B, K, H, W)."""
        with stage('logits'):
            maps = enlarge(self._joined(phrases), self.camera_size)
        if self.neighbour_weights is None:
            return maps
        with stage('pamr'):
            return pamr.refine(maps, self.neighbour_weights)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """All phrases, as many at a time as `_VALUES_AT_ONCE` allows, and their maps."""
        parts = self._parts()
        for part in parts:
            yield part, self._all_at_pixels if len(parts) == 1 else self.at_pixels(part)

    def _parts(self) -> list[slice]:
        height, width = self.camera_size
        frames = len(self.cosines) // (1 if self.corners is None else len(self.corners))
        windows = len(self.cosines) * self.window[0] * self.window[1]
        step = max(1, _VALUES_AT_ONCE // max(frames * height * width, windows))
        phrases = self.cosines.shape[1]
        return [slice(i, min(i + step, phrases)) for i in range(0, phrases, step)]

    @cached_property
    def _all_at_pixels(self) -> Tensor:
        """Where they fit, maps of all phrases are made once for those who ask several times."""
        return self.at_pixels(slice(None))

    def at_patches(self, grid: tuple[int, int]) -> Tensor:
        """Cosines of all phrases at the centres of the frames' patches: float32 (B, P, h, w)."""
        with stage('logits'):
            return torch.cat(
                [
                    # Between the nearest four: what `at_pixels` enlarges has these values there.
                    F.interpolate(self._joined(part), size=grid, mode='bilinear')
                    for part in self._parts()
                ],
                1,
            )

    def _joined(self, phrases: slice) -> Tensor:
        """Cosines of some phrases over whole frames: of patches, or of pixels of windows."""
        maps = self.cosines[:, phrases]
        if self.corners is None:
            return maps
        maps = enlarge(maps, self.window)
        return sliding.join_windows(maps, self.corners, self.network_size)


def phrase_maps(
    backbone: DenseBackbone,
    pixels: Tensor,
    table: LabelTable,
    method: Method,
    camera_size: tuple[int, int],
) -> PhraseMaps:
    """Compare frames, whole or in windows, with every phrase.

    Args:
        pixels: float (B, 3, H, W), normalised; float32 for PAMR.
        camera_size: (height, width) of the frames.
    """
    size = pixels.shape[-2:]
    patch = backbone.patch_size
    window, corners = size, None
    with stage('tower'):
        windows = pixels
        if method.window:
            # In whole patches, so that no strip between windows is seen by none.
            side = max(patch, method.window // patch * patch)
            window = (min(side, size[0]), min(side, size[1]))
            stride = min(side, max(patch, method.stride or side // 2))
            corners = sliding.window_corners(size, window, stride)
            windows = sliding.cut_windows(pixels, corners, window, 1)
        cosines = [
            _patch_cosines(backbone, part, table, method)
            for part in windows.split(sliding.WINDOWS_AT_ONCE)
        ]
    weights = None
    if method.refinement == 'pamr':
        with stage('pamr'):
            weights = pamr.neighbour_weights(enlarge(pixels, camera_size))
    return PhraseMaps(torch.cat(cosines), corners, window, size, camera_size, weights)


def label_pixels(maps: PhraseMaps, table: LabelTable, method: Method) -> tuple[Tensor, Tensor]:
    """The class of each pixel, and how probable it is.

    Phrases get their probabilities by softmax over all; of a class's phrases the largest counts.

    Returns:
        int64 (B, H, W), label columns, `LabelTable.foreground` for every background column; and
        float32 (B, H, W), 0..1.
    """
    column, probability = _most_probable(maps, table, method)
    if method.min_area:
        columns = table.size[1] + 1
        pixels = count_labels(column, columns)
        number = torch.arange(columns, device=column.device)
        is_class, is_padding = number < table.foreground, number >= table.used
        of_classes = (pixels * is_class).sum(1, keepdim=True)
        stays = ~is_padding & (~is_class | (pixels > method.min_area * of_classes))
        column, probability = _most_probable(
            maps, table, method, lambda columns: stays[:, columns, None, None]
        )
    return torch.minimum(column, table.foreground), probability


def patch_scores(
    maps: PhraseMaps, grid: tuple[int, int], table: LabelTable, method: Method
) -> Tensor:
    """How probable each label column is at patches, see `label_pixels`, before PAMR.

    Args:
        grid: (h, w), of the frames' patches.

    Returns:
        float32 (B, C, h, w), 0..1.
    """
    logits = maps.at_patches(grid) * (method.logit_scale or table.logit_scale)
    by_column = table.largest_by_column(logits.softmax(1).movedim(1, -1))
    return by_column.movedim(-1, 1).contiguous()


def keep_columns(maps: PhraseMaps, present: Tensor, table: LabelTable) -> PhraseMaps:
    """The maps for a vocabulary of which an image has only the columns present, bool (B, C)."""
    is_kept = F.pad(present, (0, 1))[:, table.columns]
    of_windows = is_kept.repeat(len(maps.cosines) // len(present), 1)
    return replace(maps, cosines=without_absent(maps.cosines, of_windows))


def probability_of(labels: Tensor, maps: PhraseMaps, table: LabelTable, method: Method) -> Tensor:
    """How probable given labels (B, H, W) are, see `label_pixels`: float32 (B, H, W)."""

    def is_labelled(columns: Tensor) -> Tensor:
        return torch.minimum(columns, table.foreground)[:, None, None] == labels[:, None]

    return _most_probable(maps, table, method, is_labelled)[1]


def _patch_cosines(
    backbone: DenseBackbone, pixels: Tensor, table: LabelTable, method: Method
) -> Tensor:
    """(B, P, h, w) of windows (B, 3, H, W)."""
    dense = backbone(pixels, method.features)
    return table.cosines(dense.tokens[:, 1:].float()).mT.unflatten(-1, dense.grid)


def _most_probable(
    maps: PhraseMaps,
    table: LabelTable,
    method: Method,
    permitted: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Each pixel's most probable phrase: its column, int64, and its probability, (B, H, W) both.

    Args:
        permitted: Tells for the columns (K,) of some phrases where they may be chosen: bool, of
            a shape that broadcasts to (B, K, H, W). They count in the softmax in any case.
    """
    scale = method.logit_scale or table.logit_scale
    best = None
    for part, cosines in maps.parts():
        with stage('logits'):
            logits = cosines * scale
            part_total = logits.logsumexp(1)
            if permitted is not None:
                logits.masked_fill_(~permitted(table.columns[part]), -torch.inf)
            value, index = logits.max(1)
            if best is None:
                best, phrase, total = value, index, part_total
            else:
                larger = value > best
                best = torch.where(larger, value, best)
                phrase = torch.where(larger, index + part.start, phrase)
                total = torch.logaddexp(total, part_total)
    return table.columns[phrase], (best - total).exp()
