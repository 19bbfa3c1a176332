"""From camera frames to label images in tensors alone; shapes are known beforehand if bounded.

With `Bounds` nothing here waits for the device or depends on a value, so that a whole call can be
one CUDA graph; without, clustering takes as many steps and clusters as there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function as stage

from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.method import sliding
from cliptrase_ros.segmentation.method.clustering import (
    cluster_maps,
    dbscan,
    dbscan_bounded,
    dbscan_parameters,
    vote,
)
from cliptrase_ros.segmentation.method.propagation import propagate
from cliptrase_ros.segmentation.method.refinement import refine_edges
from cliptrase_ros.segmentation.method.smoothing import History, no_history, smooth
from cliptrase_ros.segmentation.model import preprocessing
from cliptrase_ros.segmentation.model.backbone import DenseBackbone, DenseFeatures
from cliptrase_ros.segmentation.model.correlation import denoise_correlation
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.settings import Method

# Columns enlarged to pixels at once: bounds memory, and the result is the same.
_COLUMNS_AT_ONCE = 32

# Stands for the probability 0, whose logarithm could not be interpolated.
_LEAST = 1e-37

# Windows of large frames that go through the tower at once: bounds memory.
_WINDOWS_AT_ONCE = 16


#: Names of the stages in PyTorch's profiler, which `cliptrase bench` reads.
STAGES = ('input', 'tower', 'logits', 'clusters', 'regions', 'edges', 'output')


@dataclass(frozen=True)
class Bounds:
    """What makes clustering a fixed amount of work.

    clusters: slots for clusters of one image. steps: rounds of DBSCAN; every one at least halves
    the way that is left along most chains of core points.
    """

    clusters: int = 32
    steps: int = 8


@dataclass(frozen=True)
class Trace:
    """Every stage of the method for B images of N = h w patches and C label columns.

    tokens: float32 (B, 1 + N, D). correlation: float32 (B, N, N), what is clustered.
    patch_logits: float32 (B, C, h, w), without the image prior; with windows their mean, of a
    finer grid than that of tokens, correlation and clusters. patch_probability: the same shape,
    0..1, propagated where the method does. clusters: int64 (B, N), -1 = noise.
    raw_labels, labels: int64 (B, H, W), before and after the vote; the value `foreground`
    stands for every background column.
    exact: bool (B,), whether the bounds sufficed; where not, `clusters` and `labels` are wrong.
    memory: for the frames that follow, where the method smooths.
    """

    tokens: Tensor
    correlation: Tensor
    patch_logits: Tensor
    patch_probability: Tensor
    clusters: Tensor
    raw_labels: Tensor
    labels: Tensor
    exact: Tensor
    history: History | None = None


@dataclass(frozen=True)
class LabelledFrames:
    """B frames labelled, at the camera's size, on the device.

    label: (B, H, W), ids of the table, its `unlabelled` where there is none.
    confidence: uint8 (B, H, W), 0..255 for 0..1. exact: bool (B,), memory: see `Trace`.
    """

    label: Tensor
    confidence: Tensor
    exact: Tensor
    history: History | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is for the host."""
        return self.label, self.confidence, self.exact


@dataclass(frozen=True)
class Pipeline:
    """A frozen image tower with what its pixels need.

    mean, std: float32 (3, 1, 1), on the tower's device, of RGB values 0..1.
    dtype: of the tower; correlation, clusters and logits are float32 always, and exactly so, see
    `exact_float32`.
    """

    backbone: DenseBackbone
    mean: Tensor
    std: Tensor
    dtype: torch.dtype

    @exact_float32()
    def __call__(
        self,
        frames: Tensor,
        framing: Framing,
        table: LabelTable,
        min_confidence: Tensor,
        method: Method,
        bounds: Bounds | None = None,
        before: History | None = None,
    ) -> LabelledFrames:
        """Label frames.

        frames: uint8 (B, H, W, 3) RGB, of the framing's source size. min_confidence: float32 (),
        0..1; pixels below become unlabelled. bounds: None for exact clusters at any cost.
        before: of the frames before, for a method that smooths; None where there were none.
        """
        with stage('input'):
            picture = preprocessing.network_input(frames, framing)
            pixels = self.normalise(picture)
        if method.smoothing and before is None:
            before = self.no_history(len(frames), framing, table)
        result = trace(self.backbone, pixels, table, method, bounds, picture, before)
        labels = result.labels
        if method.refine_edges:
            with stage('edges'):
                grid = tuple(result.patch_probability.shape[-2:])
                labels = refine_edges(labels, picture, grid, table.size[1] + 1)
        with stage('output'):
            confidence = label_probability(result.patch_probability, labels, table)
            label = table.ids[labels]
            label = label.masked_fill(confidence < min_confidence, table.unlabelled)
            confidence = confidence.mul(255).round().byte()
            return LabelledFrames(
                preprocessing.to_camera_size(label, framing, outside=table.unlabelled),
                preprocessing.to_camera_size(confidence, framing, outside=0),
                result.exact,
                result.history,
            )

    def no_history(self, batch: int, framing: Framing, table: LabelTable) -> History:
        """What precedes the first of B frames."""
        grid = tuple(side // self.backbone.patch_size for side in framing.crop)
        return no_history(table.size[1], grid, batch, self.mean.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to the image tower's dtype, normalised."""
        return pixels.float().div_(255).sub_(self.mean).div_(self.std).to(self.dtype)


@exact_float32()
def trace(
    backbone: DenseBackbone,
    pixels: Tensor,
    table: LabelTable,
    method: Method,
    bounds: Bounds | None = None,
    picture: Tensor | None = None,
    before: History | None = None,
) -> Trace:
    """Run the method on normalised network input.

    pixels: float (B, 3, H, W) in the backbone's dtype. picture: uint8, the same before it was
    normalised; it and `before` are for a method that smooths. Labels have the size of the input.
    """
    size = pixels.shape[-2:]
    window = _window(size, backbone.patch_size, method)
    with stage('tower'):
        whole = pixels if window is None else _shrunk(pixels, backbone.patch_size, method)
        dense = backbone(whole, method.recovery)
        tokens = dense.tokens.float()
        correlation = _correlation(dense, method)
    with stage('logits'):
        token_logits = table.logits(tokens)
        image_logits = token_logits[:, 0]
        patches = _patches(dense, token_logits, image_logits, table, method)
    if window is not None:
        patches = _sliding_patches(backbone, pixels, window, table, image_logits, method)

    with stage('logits'):
        probability, evidence, memory = patches.logits.softmax(1), patches.label_logits, None
        if method.propagation:
            evidence = probability = patches.shared
        if method.smoothing:
            probability, memory = smooth(patches.shared, picture, before, method.smoothing)
            # Interpolated logarithms rank classes as interpolated logits do.
            evidence = probability if method.propagation else probability.clamp(min=_LEAST).log()
        raw_labels = torch.minimum(largest_enlarged(evidence, size), table.foreground)

    with stage('clusters'):
        clusters, exact = _clusters(correlation, method, bounds)
    labels = raw_labels
    if method.clustering:
        with stage('regions'):
            labels = _voted(raw_labels, correlation, clusters, dense.grid, table, method, bounds)
    return Trace(
        tokens,
        correlation,
        patches.logits,
        probability,
        clusters,
        raw_labels,
        labels,
        exact,
        memory,
    )


@dataclass(frozen=True)
class _Patches:
    """What patches show, each float32 (B, C, h, w).

    logits: without the image prior. label_logits: with it, where the method has it. shared: the
    probabilities of these, propagated where the method does.
    """

    logits: Tensor
    label_logits: Tensor
    shared: Tensor


def _correlation(dense: DenseFeatures, method: Method) -> Tensor:
    if method.denoising:
        return denoise_correlation(dense.correlation)
    return dense.correlation[:, 1:, 1:]


def _patches(
    dense: DenseFeatures,
    token_logits: Tensor,
    image_logits: Tensor,
    table: LabelTable,
    method: Method,
) -> _Patches:
    """token_logits: (B, 1 + N, C). image_logits: (B, C), of whole images, for the image prior."""
    logits = token_logits[:, 1:].mT.unflatten(-1, dense.grid)
    label_logits = logits
    if method.image_prior:
        label_logits = table.without_padding(logits * image_logits[..., None, None])
    shared = label_logits.softmax(1)
    if method.propagation:
        shared = propagate(shared, _correlation(dense, method))
    return _Patches(logits, label_logits, shared)


def _window(size: Sequence[int], patch_size: int, method: Method) -> tuple[int, int] | None:
    """Patches (h, w) of the windows of images of this size; None where one would show it all."""
    grid = tuple(length // patch_size for length in size)
    side = max(1, method.window // patch_size)
    window = tuple(min(side, length) for length in grid)
    return None if method.window == 0 or window == grid else window


def _shrunk(pixels: Tensor, patch_size: int, method: Method) -> Tensor:
    """Images with the window as their shorter side, if they are larger."""
    scale = min(1.0, method.window / min(pixels.shape[-2:]))
    size = [max(1, round(side * scale / patch_size)) * patch_size for side in pixels.shape[-2:]]
    shrunk = F.interpolate(
        pixels.float(), size=size, mode='bilinear', align_corners=False, antialias=True
    )
    return shrunk.to(pixels.dtype)


def _sliding_patches(
    backbone: DenseBackbone,
    pixels: Tensor,
    window: tuple[int, int],
    table: LabelTable,
    image_logits: Tensor,
    method: Method,
) -> _Patches:
    """The mean of what overlapping windows show."""
    patch_size = backbone.patch_size
    grid = tuple(length // patch_size for length in pixels.shape[-2:])
    stride = max(1, (method.stride or method.window // 2) // patch_size)
    places = sliding.window_corners(grid, window, stride)
    cuts = sliding.cut_windows(pixels, places, window, patch_size)
    prior = image_logits.repeat(len(places), 1)
    parts = []
    for some, some_prior in zip(
        cuts.split(_WINDOWS_AT_ONCE), prior.split(_WINDOWS_AT_ONCE), strict=True
    ):
        with stage('tower'):
            dense = backbone(some, method.recovery)
        with stage('logits'):
            token_logits = table.logits(dense.tokens.float())
            part = _patches(dense, token_logits, some_prior, table, method)
            parts.append(torch.stack([part.logits, part.label_logits, part.shared], 1))
    with stage('logits'):
        maps = sliding.join_windows(torch.cat(parts).flatten(1, 2), places, grid)
        return _Patches(*maps.unflatten(1, (3, -1)).unbind(1))


def _clusters(correlation: Tensor, method: Method, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    """Cluster numbers (B, N), and whether they are exact (B,)."""
    if not method.clustering:
        none = torch.full(correlation.shape[:2], -1, device=correlation.device)
        return none, none.new_ones(len(none), dtype=torch.bool)
    eps, min_samples = dbscan_parameters(correlation.shape[-1])
    if bounds is None:
        clusters = dbscan(correlation, eps, min_samples)
        return clusters, clusters.new_ones(len(clusters), dtype=torch.bool)
    clusters, converged = dbscan_bounded(correlation, eps, min_samples, bounds.steps)
    return clusters, converged & (clusters.amax(1) < bounds.clusters)


def _voted(
    labels: Tensor,
    correlation: Tensor,
    clusters: Tensor,
    grid: tuple[int, int],
    table: LabelTable,
    method: Method,
    bounds: Bounds | None,
) -> Tensor:
    found = clusters.amax(1) + 1
    applies = found >= method.fewest_clusters
    if bounds is not None:
        slots = bounds.clusters
        clusters = clusters.clamp(max=slots - 1)
    elif applies.any():
        slots = int(found.max())
    else:
        return labels
    maps = cluster_maps(correlation, clusters, grid, slots)
    regions = largest_enlarged(maps, labels.shape[-2:])
    classes = table.size[1] + 1
    return vote(labels, regions, slots, classes, applies, method.min_agreement)


def largest_enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Which of K maps (B, K, h, w), enlarged bilinearly, is largest at each pixel: int64."""
    best = None
    for first, some in enumerate(maps.split(_COLUMNS_AT_ONCE, 1)):
        # Contiguous, because the kernel for other layouts rounds differently.
        enlarged = F.interpolate(
            some.contiguous(), size=tuple(size), mode='bilinear', align_corners=False
        )
        # max() over a strided dimension is several times faster than argmax(), with equal indices.
        value, index = enlarged.max(1)
        if best is None:
            best, largest = value, index
        else:
            larger = value > best
            best = torch.where(larger, value, best)
            largest = torch.where(larger, index + first * _COLUMNS_AT_ONCE, largest)
    return largest


def label_probability(probability: Tensor, labels: Tensor, table: LabelTable) -> Tensor:
    """Probability of each pixel's label: patches' (B, C, h, w), interpolated. float32 (B, H, W).

    The background columns count as one, as their labels do.
    """
    column = torch.arange(probability.shape[1], device=probability.device)[:, None, None]
    is_background = column >= table.foreground
    background = (probability * is_background).sum(1, keepdim=True)
    return _enlarged_at(torch.where(is_background, background, probability), labels)


def _enlarged_at(maps: Tensor, which: Tensor) -> Tensor:
    """Of maps (B, K, h, w), enlarged bilinearly to (B, K, H, W), the values at which (B, H, W)."""
    (top, bottom, down), (left, right, across) = (
        _between(target, source, maps.device)
        for target, source in zip(which.shape[-2:], maps.shape[-2:], strict=True)
    )
    height, width = maps.shape[-2:]
    flat = maps.flatten(1)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        index = which * (height * width) + (rows[:, None] * width + columns)
        return flat.gather(1, index.flatten(1)).view(which.shape)

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down[:, None])


@constant
def _between(target: int, source: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` pixels the two of `source` it lies between, and how far along."""
    pixel = torch.arange(target, device=device)
    position = ((pixel + 0.5) * (source / target) - 0.5).clamp(min=0)
    before = position.long().clamp(max=source - 1)
    return before, (before + 1).clamp(max=source - 1), position - before
