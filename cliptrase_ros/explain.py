"""Why a patch gets its label: what it attends to in plain CLIP and what the method makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cliptrase_ros.evaluation.class_indices import label_by_method
from cliptrase_ros.segmentation.lettering import text_mask
from cliptrase_ros.segmentation.method.clustering import cluster_maps, dbscan, dbscan_parameters
from cliptrase_ros.segmentation.method.enlarging import largest_enlarged
from cliptrase_ros.segmentation.model import preprocessing
from cliptrase_ros.segmentation.model.correlation import denoise_correlation
from cliptrase_ros.segmentation.model.preprocessing import Framing, framing_of
from cliptrase_ros.segmentation.overlay import draw_overlay, legend_name
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import VocabularyClass, class_color


@dataclass(frozen=True)
class Explanation:
    """The stages of the method as one patch of an image of N = h w patches sees them.

    Attributes:
        crop: uint8 (H, W, 3) RGB, what the network sees.
        patch: (row, column) in the grid.
        cls_attention: float32 (h, w), what the [CLS] token attends to in the last block of plain
            CLIP, mean over heads; with the attention to [CLS] it adds up to 1.
        attention: float32 (h, w), the same of the patch.
        recovered: float32 (h, w), correlation of the patch with all.
        denoised: float32 (h, w), the same after denoising.
        clusters: int64 (h, w), -1 for noise.
        regions: int64 (H, W), each pixel's cluster; None where there is no cluster.
    """

    crop: np.ndarray
    patch: tuple[int, int]
    cls_attention: np.ndarray
    attention: np.ndarray
    recovered: np.ndarray
    denoised: np.ndarray
    clusters: np.ndarray
    regions: np.ndarray | None


@torch.inference_mode()
@exact_float32()
def explain(
    segmenter: Segmenter,
    image: np.ndarray,
    at: tuple[int, int],
    settings: SegmentationSettings,
) -> Explanation:
    """Run CLIPtrase on an image and keep what concerns the patch at a pixel.

    Args:
        image: uint8 (H, W, 3) RGB.
        at: (x, y) in its pixels.
        settings: Of these, preset and resolution say what the network sees.

    Raises:
        ValueError: The network does not see the pixel, or the preset is another method's.
    """
    if settings.method.features != 'recovered':
        theirs = [name for name, method in PRESETS.items() if method.features == 'recovered']
        raise ValueError(
            f'preset is {settings.preset!r}, but explain draws the stages of CLIPtrase, and that '
            f'preset has others; choose one of {", ".join(theirs)}'
        )
    backbone = segmenter.pipeline.backbone
    framing = framing_of(
        settings.method.frame, image.shape[:2], settings.resolution, backbone.patch_size
    )
    row, column = patch_at(at, framing, backbone.patch_size)
    frames = torch.from_numpy(image.copy())[None].to(segmenter.device)
    crop = preprocessing.network_input(frames, framing)
    pixels = segmenter.pipeline.normalise(crop, settings.method.frame)

    dense, attention = backbone(pixels), backbone.attention(pixels)
    correlation = denoise_correlation(dense.correlation)
    clusters = dbscan(correlation, *dbscan_parameters(correlation.shape[-1]))
    count = int(clusters.max()) + 1
    regions = None
    if count:
        maps, _ = cluster_maps(correlation, clusters, dense.grid, count)
        regions = largest_enlarged(maps, pixels.shape[-2:])[0].cpu().numpy()
    patch = row * dense.grid[1] + column

    def on_grid(values: Tensor) -> np.ndarray:
        return values.unflatten(-1, dense.grid).cpu().numpy()

    return Explanation(
        crop[0].permute(1, 2, 0).cpu().numpy(),
        (row, column),
        on_grid(attention[0, 0, 1:]),
        on_grid(attention[0, 1 + patch, 1:]),
        on_grid(dense.correlation[0, 1 + patch, 1:]),
        on_grid(correlation[0, patch]),
        on_grid(clusters[0]),
        regions,
    )


def patch_at(at: tuple[int, int], framing: Framing, patch_size: int) -> tuple[int, int]:
    """Find the patch, (row, column) in the grid, that holds a pixel (x, y) of an image.

    Raises:
        ValueError: The network does not see the pixel.
    """
    (x, y), (height, width) = at, framing.source
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f'the pixel {x},{y} is not in the image of {width} x {height} pixels')
    positions = [
        (2 * pixel + 1) * resized // (2 * source) - offset
        for pixel, resized, source, offset in zip(
            (y, x), framing.resized, framing.source, framing.offset, strict=True
        )
    ]
    if not all(0 <= p < side for p, side in zip(positions, framing.crop, strict=True)):
        raise ValueError(
            f'the pixel {x},{y} is outside the square that preset paper looks at; choose another, '
            'or preset robot'
        )
    return positions[0] // patch_size, positions[1] // patch_size


def draw_explanation(
    segmenter: Segmenter,
    explanation: Explanation,
    settings: SegmentationSettings,
    encoded: EncodedVocabulary | None = None,
) -> np.ndarray:
    """Draw plain CLIP's stages above those of the method, uint8 (H, W, 3) RGB.

    Args:
        segmenter: What `explain` was given, as are the settings.
        encoded: Words to label by, for a column more: labels of plain CLIP, and of the preset.
    """
    e = explanation
    count, noise = int(e.clusters.max()) + 1, int((e.clusters < 0).sum())
    plain = [
        Tile('Image', 'and the chosen patch', _mark_patch(e.crop, e)),
        _heat_tile(e, e.cls_attention, '[CLS] attends to', 'last block, mean over heads'),
        _heat_tile(e, e.attention, 'The patch attends to', 'last block, mean over heads'),
    ]
    method = [
        _heat_tile(e, e.recovered, 'Recovered', 'correlation of the patch with all'),
        _heat_tile(e, e.denoised, 'Denoised', 'less that of [CLS], not below 0'),
        Tile(
            f'{count} cluster{"s" if count != 1 else ""}',
            f'{noise} of {e.clusters.size} patches in none',
            _mark_patch(_draw_regions(e), e),
        ),
    ]
    classes: Sequence[VocabularyClass] = ()
    if encoded:
        # The crop has its size already.
        settings = replace(settings, resolution=min(e.crop.shape[:2]))
        frame = settings.method.frame
        plain_clip = Method(frame, features='clip', clustering=False, denoising=False)
        labels = [
            label_by_method(segmenter, [e.crop], encoded.table, settings, steps)[0]
            for steps in (plain_clip, settings.method)
        ]
        captions = ('of plain CLIP', f'of preset {settings.preset}')
        for row, caption, label in zip((plain, method), captions, labels, strict=True):
            overlay = draw_overlay(e.crop, label, encoded.vocabulary, legend=False)
            row.append(Tile('Labels', caption, _mark_patch(overlay, e)))
        present = np.unique(labels)
        classes = [entry for entry in encoded.vocabulary.classes if entry.id in present]
    return draw_panel([('Plain CLIP', plain), ('CLIPtrase', method)], classes)


@dataclass(frozen=True)
class Tile:
    """One picture of a panel, uint8 (H, W, 3) RGB, below its title and a smaller caption.

    Attributes:
        scale: The values that the darkest and the lightest colour stand for, if they do.
    """

    title: str
    caption: str
    picture: np.ndarray
    scale: tuple[float, float] | None = None


def _heat_tile(explanation: Explanation, values: np.ndarray, title: str, caption: str) -> Tile:
    crop = explanation.crop
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    enlarged = cv2.resize(scaled.astype(np.float32), crop.shape[1::-1])
    picture = cv2.addWeighted(_heat_colors(enlarged), 0.75, _grey(crop), 0.25, 0.0)
    return Tile(title, caption, _mark_patch(picture, explanation), (low, high))


def _heat_colors(values: np.ndarray) -> np.ndarray:
    """RGB for values 0..1, dark to light."""
    bgr = cv2.applyColorMap(np.uint8(values.clip(0, 1) * 255), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _draw_regions(explanation: Explanation) -> np.ndarray:
    grey, regions = _grey(explanation.crop), explanation.regions
    if regions is None:
        return grey
    palette = np.array([class_color(index) for index in range(int(regions.max()) + 1)], np.uint8)
    return cv2.addWeighted(palette[regions], 0.6, grey, 0.4, 0.0)


def _mark_patch(picture: np.ndarray, explanation: Explanation) -> np.ndarray:
    """Outline the chosen patch, visible on dark and on light."""
    size = explanation.crop.shape[0] // explanation.attention.shape[0]
    row, column = explanation.patch
    corner, opposite = (column * size, row * size), ((column + 1) * size, (row + 1) * size)
    marked = cv2.rectangle(picture.copy(), corner, opposite, (0, 0, 0), 4)
    return cv2.rectangle(marked, corner, opposite, (255, 255, 255), 2)


_WIDTH, _GAP, _MARGIN = 300, 16, 20  # of a tile, between tiles, around all
_HEADING, _TITLE, _SCALE, _LEGEND = 38, 44, 28, 28  # heights
_INK, _PALE, _LINE, _PAPER = (30, 30, 34), (110, 110, 118), (200, 200, 206), (255, 255, 255)


def draw_panel(
    rows: Sequence[tuple[str, Sequence[Tile]]], classes: Sequence[VocabularyClass] = ()
) -> np.ndarray:
    """Lay out rows of tiles under headings; below, the colours of classes: uint8 (H, W, 3) RGB.

    All pictures have the same shape.
    """
    columns = max(len(tiles) for _, tiles in rows)
    width = columns * (_WIDTH + _GAP) - _GAP
    parts = []
    for heading, tiles in rows:
        drawn = [_draw_tile(tile) for tile in tiles]
        part = Image.new('RGB', (width, _HEADING + max(tile.height for tile in drawn)), _PAPER)
        _write(part, (0, 0), heading, 22)
        ImageDraw.Draw(part).line((0, _HEADING - 8, width, _HEADING - 8), _LINE)
        for column, tile in enumerate(drawn):
            part.paste(tile, (column * (_WIDTH + _GAP), _HEADING))
        parts.append(part)
    if classes:
        parts.append(_draw_legend(classes, width))
    height = sum(part.height + _MARGIN for part in parts) + _MARGIN
    panel = Image.new('RGB', (width + 2 * _MARGIN, height), _PAPER)
    top = _MARGIN
    for part in parts:
        panel.paste(part, (_MARGIN, top))
        top += part.height + _MARGIN
    return np.asarray(panel)


def _draw_tile(tile: Tile) -> Image.Image:
    picture = Image.fromarray(tile.picture)
    height = round(picture.height * _WIDTH / picture.width)
    drawn = Image.new('RGB', (_WIDTH, _TITLE + height + (_SCALE if tile.scale else 0)), _PAPER)
    _write(drawn, (0, 0), tile.title, 17)
    _write(drawn, (0, 21), tile.caption, 14, _PALE)
    drawn.paste(picture.resize((_WIDTH, height), Image.Resampling.LANCZOS), (0, _TITLE))
    if tile.scale:
        top = _TITLE + height
        gradient = _heat_colors(np.linspace(0, 1, _WIDTH)[None].repeat(8, 0))
        drawn.paste(Image.fromarray(gradient), (0, top + 4))
        low, high = (f'{value:.3g}' for value in tile.scale)
        _write(drawn, (0, top + 12), low, 12, _PALE)
        _write(drawn, (_WIDTH - text_mask(high, 12).shape[1], top + 12), high, 12, _PALE)
    return drawn


def _draw_legend(classes: Sequence[VocabularyClass], width: int) -> Image.Image:
    """Colours and names, in as many lines as they need."""
    places, left, line = [], 0, 0
    for entry in classes:
        length = 23 + text_mask(legend_name(entry), 15).shape[1]
        if left and left + length > width:
            left, line = 0, line + 1
        places.append((left, line * _LEGEND))
        left += length + 24
    legend = Image.new('RGB', (width, (line + 1) * _LEGEND), _PAPER)
    for entry, (left, top) in zip(classes, places, strict=True):
        ImageDraw.Draw(legend).rectangle((left, top + 2, left + 16, top + 18), entry.color)
        _write(legend, (left + 23, top), legend_name(entry), 15)
    return legend


def _write(
    picture: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int] = _INK,
) -> None:
    """Write text, in any script, with its upper left corner at a place (x, y)."""
    picture.paste(color, place, Image.fromarray(text_mask(text, size)))
