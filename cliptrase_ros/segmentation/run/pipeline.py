"""From camera frames to label images, in tensors alone.

With `Bounds` every shape is known beforehand and nothing here waits for the device or depends on a
value, so that a whole call can be one CUDA graph. Without them, clustering takes as many steps and
clusters as it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function as stage

from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.method import pamr, sliding
from cliptrase_ros.segmentation.method.clustering import (
    cluster_maps,
    dbscan,
    dbscan_bounded,
    dbscan_parameters,
    vote,
)
from cliptrase_ros.segmentation.method.enlarging import (
    ids_and_confidence,
    labels_at_camera,
    largest_enlarged,
)
from cliptrase_ros.segmentation.method.presence import (
    among_present,
    present_columns,
    unlabel_where_nothing_is_left,
    without_absent,
)
from cliptrase_ros.segmentation.method.propagation import propagate
from cliptrase_ros.segmentation.method.refinement import refine_edges
from cliptrase_ros.segmentation.method.smoothing import History, empty_history, smooth
from cliptrase_ros.segmentation.model import preprocessing
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.run.pixels import (
    keep_columns,
    label_pixels,
    patch_scores,
    phrase_maps,
    probability_of,
)
from cliptrase_ros.segmentation.settings import Method

# Stands for the probability 0, whose logarithm could not be interpolated.
_LEAST_PROBABILITY = 1e-37

#: Names of the stages in PyTorch's profiler, which `cliptrase bench` reads.
STAGES = ('input', 'tower', 'logits', 'clusters', 'regions', 'edges', 'pamr', 'output')


@dataclass(frozen=True)
class Bounds:
    """What makes clustering a fixed amount of work.

    Attributes:
        clusters: Slots for the clusters of one image.
        rounds: Of DBSCAN; images take 4 at most, see `clustering`.
    """

    clusters: int = 32
    rounds: int = 6


@dataclass(frozen=True)
class Trace:
    """Every stage of the method for B images of N = h w patches and C label columns.

    Attributes:
        tokens: float32 (B, 1 + N, D), unit length, [CLS] first.
        correlation: float32 (B, N, N), what is clustered; None where nothing is.
        patch_logits: float32 (B, C, h, w), without the image prior. With sliding windows their
            mean, on a finer grid than that of tokens, correlation and clusters.
        scores: float32 of the same shape, 0..1, the probability of every column, propagated and
            smoothed where the method does so.
        patch_probability: The same among the columns that are `present`: what labels are made from.
        present: bool (B, C), see `presence.present_columns`; None where the method leaves out none.
        clusters: int64 (B, N), -1 for noise.
        raw_labels: int64 (B, H, W), label columns before the vote, after PAMR; the value
            `LabelTable.foreground` stands for every background column.
        labels: int64 (B, H, W), the same after the vote.
        exact: bool (B,), whether the bounds sufficed; where not, `clusters` and `labels` are wrong.
        history: For the frames that follow, where the method smooths; else None.
    """

    tokens: Tensor
    correlation: Tensor | None
    patch_logits: Tensor
    scores: Tensor
    patch_probability: Tensor
    present: Tensor | None
    clusters: Tensor
    raw_labels: Tensor
    labels: Tensor
    exact: Tensor
    history: History | None = None


@dataclass(frozen=True)
class LabelledFrames:
    """B frames labelled, at the camera's size, on the device.

    Attributes:
        label: (B, H, W), ids of the label table, its `unlabelled` where there is none.
        confidence: uint8 (B, H, W), 0..255 for a probability of 0..1.
        exact: bool (B,), see `Trace`.
        scores: float32 (B, C, h, w), 0..1, the probability of each label column at each patch,
            where the method has them; else None.
        history: See `Trace`.
    """

    label: Tensor
    confidence: Tensor
    exact: Tensor
    scores: Tensor | None = None
    history: History | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is copied to the host."""
        always = self.label, self.confidence, self.exact
        return always if self.scores is None else (*always, self.scores)


@dataclass(frozen=True)
class Pipeline:
    """A frozen image tower with what its pixels need.

    Whatever the tower's dtype, everything after it is float32, and exactly so, see `exact_float32`.

    Attributes:
        mean: float32 (3, 1, 1), on the tower's device, of RGB values 0..1.
        std: The same for the standard deviation.
    """

    backbone: DenseBackbone
    mean: Tensor
    std: Tensor

    @exact_float32()
    def __call__(
        self,
        frames: Tensor,
        framing: Framing,
        table: LabelTable,
        min_confidence: Tensor,
        method: Method,
        bounds: Bounds | None = None,
        history: History | None = None,
    ) -> LabelledFrames:
        """Label frames.

        Args:
            frames: uint8 (B, H, W, 3) RGB, of the framing's source size.
            min_confidence: float32 (), 0..1; pixels below it become unlabelled.
            bounds: None for exact clusters at any cost.
            history: Of the frames before, for a method that smooths; None where there are none.
        """
        with stage('input'):
            picture = preprocessing.network_input(frames, framing)
            # At pixels PAMR compares these themselves, not what the tower makes of them.
            is_compared = method.softmax == 'pixels' and method.refinement == 'pamr'
            dtype = torch.float32 if is_compared else self.backbone.dtype
            pixels = self.normalise(picture, method.frame, dtype)
        if method.softmax == 'pixels':
            return self._label_at_pixels(frames, pixels, table, min_confidence, method)
        if method.smoothing and history is None:
            history = self.empty_history(len(frames), framing, table)
        result = trace(self.backbone, pixels, table, method, bounds, picture, history)
        labels = result.labels
        if method.refinement == 'edges':
            with stage('edges'):
                grid = tuple(result.patch_probability.shape[-2:])
                labels = refine_edges(labels, picture, grid, table.size[1] + 1)
        with stage('output'):
            label, confidence = labels_at_camera(
                labels, result.patch_probability, table, min_confidence, framing
            )
            if result.present is not None:
                label, confidence = unlabel_where_nothing_is_left(
                    label, confidence, result.present, table.unlabelled
                )
            scores = result.scores if method.scores else None
            return LabelledFrames(label, confidence, result.exact, scores, result.history)

    def _label_at_pixels(
        self,
        frames: Tensor,
        pixels: Tensor,
        table: LabelTable,
        min_confidence: Tensor,
        method: Method,
    ) -> LabelledFrames:
        maps = phrase_maps(self.backbone, pixels, table, method, tuple(frames.shape[1:3]))
        grid = self.backbone.grid(pixels)
        scores, present = None, None
        if method.scores or method.min_presence:
            scores = patch_scores(maps, grid, table, method)
        if scores is not None and method.min_presence:
            present = present_columns(scores, table, method.min_presence)
            maps = keep_columns(maps, present, table)
        labels, probability = label_pixels(maps, table, method)
        if method.refinement == 'edges':
            with stage('edges'):
                picture = frames.permute(0, 3, 1, 2)
                labels = refine_edges(labels, picture, grid, table.size[1] + 1)
            probability = probability_of(labels, maps, table, method)
        with stage('output'):
            label, confidence = ids_and_confidence(labels, probability, table, min_confidence)
            if present is not None:
                label, confidence = unlabel_where_nothing_is_left(
                    label, confidence, present, table.unlabelled
                )
            exact = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
            return LabelledFrames(label, confidence, exact, scores if method.scores else None)

    def empty_history(self, batch: int, framing: Framing, table: LabelTable) -> History:
        """The history that the first frames of `batch` cameras get."""
        return empty_history(table.size[1], self.grid(framing), batch, self.mean.device)

    def grid(self, framing: Framing) -> tuple[int, int]:
        """Whole patches (h, w) of what the network sees."""
        height, width = (side // self.backbone.patch_size for side in framing.crop)
        return height, width

    def normalise(self, pixels: Tensor, frame: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 (B, 3, H, W) to that dtype, normalised in float32; frame as in `Method`."""
        if frame == 'mmcv':
            mean, std = _as_configured(self.mean), _as_configured(self.std)
            return preprocessing.normalise(pixels, 1, mean, std, dtype)
        return preprocessing.normalise(pixels, 255, self.mean, self.std, dtype)


@constant
def _as_configured(value: Tensor) -> Tensor:
    """Mean or deviation of values 0..255, with the three decimals that configurations give."""
    return (255 * value).round(decimals=3)


@exact_float32()
def trace(
    backbone: DenseBackbone,
    pixels: Tensor,
    table: LabelTable,
    method: Method,
    bounds: Bounds | None = None,
    picture: Tensor | None = None,
    history: History | None = None,
) -> Trace:
    """Run the method on normalised network input; labels have the size of the input.

    Args:
        pixels: float (B, 3, H, W).
        bounds: None for exact clusters at any cost.
        picture: uint8 (B, 3, H, W), `pixels` before they were normalised; needed for smoothing and
            PAMR.
        history: Of the frames before; needed for smoothing.
    """
    size, pixels = pixels.shape[-2:], pixels.to(backbone.dtype)
    window = _window_grid(size, backbone.patch_size, method)
    with stage('tower'):
        whole = pixels if window is None else _shrink_to_window(pixels, backbone, method)
        dense = backbone(whole, method.features)
        correlation = None
        # Windows propagate along correlations of their own.
        if method.clustering or (method.propagation and window is None):
            correlation = dense.patch_correlation(method.denoising)
    with stage('logits'):
        cosines = dense.tokens @ table.features.mT
        image_cosines = cosines[:, 0]
    if window is None:
        with stage('logits'):
            patches = _patch_maps(
                cosines[:, 1:], image_cosines, dense.grid, correlation, table, method
            )
    else:
        patches = _sliding_patch_maps(backbone, pixels, window, table, image_cosines, method)
    with stage('logits'):
        weighed = _weigh(patches, picture, history, table, method)
        columns = largest_enlarged(weighed.evidence, size)
    if method.refinement == 'pamr':
        with stage('pamr'):
            assert picture is not None
            columns = pamr.refine_present(columns, weighed.evidence, picture)
    raw_labels = torch.minimum(columns, table.foreground)
    if correlation is None or not method.clustering:
        clusters = torch.full_like(dense.tokens[:, 1:, 0], -1, dtype=torch.int64)
        exact = torch.ones_like(clusters[:, 0], dtype=torch.bool)
        labels = raw_labels
    else:
        with stage('clusters'):
            clusters, exact = _clusters(correlation, bounds)
        with stage('regions'):
            labels = _vote_in_regions(
                raw_labels, correlation, clusters, dense.grid, table, method, bounds
            )
    return Trace(
        dense.tokens,
        correlation if method.clustering else None,
        patches.logits,
        weighed.scores,
        weighed.probability,
        weighed.present,
        clusters,
        raw_labels,
        labels,
        exact,
        weighed.history,
    )


@dataclass(frozen=True)
class _PatchMaps:
    """What patches show, each float32 (B, C, h, w).

    Attributes:
        logits: Without the image prior.
        label_logits: With the image prior, where the method has it.
        probability: Of `label_logits`, propagated where the method does so; None where it neither
            propagates nor smooths.
    """

    logits: Tensor
    label_logits: Tensor
    probability: Tensor | None = None


def _patch_maps(
    cosines: Tensor,
    image_cosines: Tensor,
    grid: tuple[int, int],
    correlation: Tensor | None,
    table: LabelTable,
    method: Method,
) -> _PatchMaps:
    """What patches show.

    Args:
        cosines: (B, N, P).
        image_cosines: (B, P), of whole images, for the image prior.
        correlation: (B, N, N), needed by a method that propagates.
    """
    logits, label_logits = (
        maps.unflatten(-1, grid)
        for maps in table.patch_logits(cosines, image_cosines if method.image_prior else None)
    )
    if not (method.propagation or method.smoothing):
        return _PatchMaps(logits, label_logits)
    probability = label_logits.softmax(1)
    if method.propagation:
        assert correlation is not None
        probability = propagate(probability, correlation)
    return _PatchMaps(logits, label_logits, probability)


def _sliding_patch_maps(
    backbone: DenseBackbone,
    pixels: Tensor,
    window: tuple[int, int],
    table: LabelTable,
    image_cosines: Tensor,
    method: Method,
) -> _PatchMaps:
    """The mean of what overlapping windows, of so many patches (h, w), show of B images."""
    patch_size = backbone.patch_size
    grid = tuple(length // patch_size for length in pixels.shape[-2:])
    stride = max(1, (method.stride or method.window // 2) // patch_size)
    corners = sliding.window_corners(grid, window, stride)
    windows = sliding.cut_windows(pixels, corners, window, patch_size).split(
        sliding.WINDOWS_AT_ONCE
    )
    priors = image_cosines.repeat(len(corners), 1).split(sliding.WINDOWS_AT_ONCE)
    parts = []
    for window_pixels, prior in zip(windows, priors, strict=True):
        with stage('tower'):
            dense = backbone(window_pixels, method.features)
            correlation = None
            if method.propagation:
                correlation = dense.patch_correlation(method.denoising)
        with stage('logits'):
            cosines = (dense.tokens @ table.features.mT)[:, 1:]
            maps = _patch_maps(cosines, prior, dense.grid, correlation, table, method)
            present = [maps.logits, maps.label_logits]
            if maps.probability is not None:
                present.append(maps.probability)
            parts.append(torch.stack(present, 1))
    with stage('logits'):
        mean = sliding.join_windows(torch.cat(parts).flatten(1, 2), corners, grid)
        return _PatchMaps(*mean.unflatten(1, (len(present), -1)).unbind(1))


def _window_grid(size: Sequence[int], patch_size: int, method: Method) -> tuple[int, int] | None:
    """Patches (h, w) of the windows of images of this size; None where one would show it all."""
    height, width = (length // patch_size for length in size)
    side = max(1, method.window // patch_size)
    window = min(side, height), min(side, width)
    return None if method.window == 0 or window == (height, width) else window


def _shrink_to_window(pixels: Tensor, backbone: DenseBackbone, method: Method) -> Tensor:
    """Scale images down until their shorter side is a window's, if they are larger."""
    scale = min(1.0, method.window / min(pixels.shape[-2:]))
    patch_size = backbone.patch_size
    size = [max(1, round(side * scale / patch_size)) * patch_size for side in pixels.shape[-2:]]
    shrunk = F.interpolate(
        pixels.float(), size=size, mode='bilinear', align_corners=False, antialias=True
    )
    return shrunk.to(pixels.dtype)


@dataclass(frozen=True)
class _Weighed:
    """What labels are made from, see `Trace`.

    Attributes:
        evidence: float32 (B, C, h, w), the maps whose largest decides a pixel.
    """

    scores: Tensor
    probability: Tensor
    evidence: Tensor
    present: Tensor | None
    history: History | None


def _weigh(
    patches: _PatchMaps,
    picture: Tensor | None,
    history: History | None,
    table: LabelTable,
    method: Method,
) -> _Weighed:
    new_history = None
    if method.smoothing:
        # `Pipeline` hands both on to a method that smooths. What is left out now counts on: it may
        # be seen again.
        assert picture is not None and history is not None and patches.probability is not None
        scores, new_history = smooth(patches.probability, picture, history, method.smoothing)
    elif patches.probability is not None:
        scores = patches.probability
    else:
        scores = patches.logits.softmax(1)
    probability, evidence, present = scores, patches.label_logits, None
    if method.min_presence:
        present = present_columns(scores, table, method.min_presence)
        probability = among_present(scores, present)
        evidence = without_absent(evidence, present, table.logit_scale)
    if method.propagation:
        evidence = probability
    elif method.smoothing:
        # Interpolated logarithms rank classes as interpolated logits do.
        evidence = probability.clamp(min=_LEAST_PROBABILITY).log()
    return _Weighed(scores, probability, evidence, present, new_history)


def _clusters(correlation: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    """Cluster numbers (B, N), and whether they are exact (B,)."""
    eps, min_samples = dbscan_parameters(correlation.shape[-1])
    if bounds is None:
        clusters = dbscan(correlation, eps, min_samples)
        return clusters, clusters.new_ones(len(clusters), dtype=torch.bool)
    return dbscan_bounded(correlation, eps, min_samples, bounds.rounds, bounds.clusters)


def _vote_in_regions(
    labels: Tensor,
    correlation: Tensor,
    clusters: Tensor,
    grid: tuple[int, int],
    table: LabelTable,
    method: Method,
    bounds: Bounds | None,
) -> Tensor:
    """Labels after each cluster's region has voted, in images that have enough clusters."""
    slots = int(clusters.max()) + 1 if bounds is None else bounds.clusters
    if slots < method.fewest_clusters:
        return labels
    maps, absent = cluster_maps(correlation, clusters, grid, slots)
    regions = largest_enlarged(maps, labels.shape[-2:])
    too_few = absent[:, method.fewest_clusters - 1]
    classes = table.size[1] + 1
    return vote(labels, regions, slots, classes, too_few, method.min_agreement)
