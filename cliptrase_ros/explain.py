"""Why a patch gets its label: what it attends to in plain CLIP and what the method makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cliptrase_ros.evaluation.class_indices import label_by_method
from cliptrase_ros.segmentation.lettering import text_mask
from cliptrase_ros.segmentation.method.clustering import cluster_maps, dbscan, dbscan_parameters
from cliptrase_ros.segmentation.model import preprocessing
from cliptrase_ros.segmentation.model.correlation import denoise_correlation
from cliptrase_ros.segmentation.model.preprocessing import Framing, framing_of
from cliptrase_ros.segmentation.overlay import draw_overlay, legend_name
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.run.pipeline import largest_enlarged
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter
from cliptrase_ros.segmentation.settings import Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import VocabularyClass, class_color


@dataclass(frozen=True)
class Explanation:
    """The stages of the method as one patch of an image of N = h w patches sees them.

    window: uint8 (H, W, 3) RGB, what the network sees. patch: (row, column) in the grid.
    cls_attention, attention: float32 (h, w), what the [CLS] token and the patch attend to in the
    last block of plain CLIP, mean over heads; with the attention to [CLS] they add up to 1.
    recovered, denoised: float32 (h, w), the patch's correlation before and after denoising.
    clusters: int64 (h, w), -1 = noise. regions: int64 (H, W), each pixel's cluster; None where
    there is no cluster.
    """

    window: np.ndarray
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
    """Run the published method on an image and keep what concerns the patch at a pixel.

    image: uint8 (H, W, 3) RGB. at: (x, y) in its pixels. settings: of these, preset and
    resolution say what the network sees. Raises ValueError for a pixel that it does not see.
    """
    backbone = segmenter.pipeline.backbone
    framing = framing_of(
        settings.method.frame, image.shape[:2], settings.resolution, backbone.patch_size
    )
    row, column = patch_at(at, framing, backbone.patch_size)
    frames = torch.from_numpy(image.copy())[None].to(segmenter.device)
    window = preprocessing.network_input(frames, framing)
    pixels = segmenter.pipeline.normalise(window)

    dense, attention = backbone(pixels), backbone.attention(pixels)
    correlation = denoise_correlation(dense.correlation)
    clusters = dbscan(correlation, *dbscan_parameters(correlation.shape[-1]))
    count = int(clusters.max()) + 1
    regions = None
    if count:
        maps = cluster_maps(correlation, clusters, dense.grid, count)
        regions = largest_enlarged(maps, pixels.shape[-2:])[0].cpu().numpy()
    patch = row * dense.grid[1] + column

    def on_grid(row: Tensor) -> np.ndarray:
        return row.unflatten(-1, dense.grid).cpu().numpy()

    return Explanation(
        window[0].permute(1, 2, 0).cpu().numpy(),
        (row, column),
        on_grid(attention[0, 0, 1:]),
        on_grid(attention[0, 1 + patch, 1:]),
        on_grid(dense.correlation[0, 1 + patch, 1:]),
        on_grid(correlation[0, patch]),
        on_grid(clusters[0]),
        regions,
    )


def patch_at(at: tuple[int, int], framing: Framing, patch_size: int) -> tuple[int, int]:
    """(row, column) of the patch that holds a pixel (x, y) of the image. Raises ValueError."""
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


@dataclass(frozen=True)
class Tile:
    """One picture of a panel. picture: uint8 (H, W, 3) RGB. scale: ends of its colours, if any."""

    title: str
    caption: str
    picture: np.ndarray
    scale: tuple[float, float] | None = None


def tiles(explanation: Explanation) -> tuple[list[Tile], list[Tile]]:
    """Plain CLIP's pictures, and the method's."""
    e = explanation
    noise = int((e.clusters < 0).sum())
    count = int(e.clusters.max()) + 1
    marked = _mark(e.window.copy(), e)
    plain = [
        Tile('Image', 'and the chosen patch', marked),
        _heat(e, e.cls_attention, '[CLS] attends to', 'last block, mean over heads'),
        _heat(e, e.attention, 'The patch attends to', 'last block, mean over heads'),
    ]
    method = [
        _heat(e, e.recovered, 'Recovered', 'correlation of the patch with all'),
        _heat(e, e.denoised, 'Denoised', 'less that of [CLS], not below 0'),
        Tile(
            f'{count} cluster{"s" if count != 1 else ""}',
            f'{noise} of {e.clusters.size} patches in none',
            _mark(_draw_regions(e), e),
        ),
    ]
    return plain, method


def label_tiles(
    segmenter: Segmenter,
    explanation: Explanation,
    encoded: EncodedVocabulary,
    settings: SegmentationSettings,
) -> tuple[Tile, Tile, list[VocabularyClass]]:
    """Labels of what the network sees, by plain CLIP and by the settings' preset; their classes."""
    window = explanation.window
    settings = replace(settings, resolution=min(window.shape[:2]))
    drawn, present = [], set()
    plain = Method(settings.method.frame, recovery=False, clustering=False, denoising=False)
    captions = {'of plain CLIP': plain, f'of preset {settings.preset}': settings.method}
    for caption, method in captions.items():
        (label,) = label_by_method(segmenter, [window], encoded.table, settings, method)
        picture = draw_overlay(window, label, encoded.vocabulary, legend=False)
        drawn.append(Tile('Labels', caption, _mark(picture, explanation)))
        present |= set(np.unique(label).tolist())
    return *drawn, [entry for entry in encoded.vocabulary.classes if entry.id in present]


def _heat(explanation: Explanation, values: np.ndarray, title: str, caption: str) -> Tile:
    size = explanation.window.shape[1::-1]
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    enlarged = cv2.resize(scaled.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = _colors(enlarged)
    grey = cv2.cvtColor(cv2.cvtColor(explanation.window, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = cv2.addWeighted(heat, 0.75, grey, 0.25, 0.0)
    return Tile(title, caption, _mark(picture, explanation), (low, high))


def _colors(values: np.ndarray) -> np.ndarray:
    """RGB for values 0..1, dark to light."""
    bgr = cv2.applyColorMap(np.uint8(values.clip(0, 1) * 255), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _draw_regions(explanation: Explanation) -> np.ndarray:
    grey = cv2.cvtColor(explanation.window, cv2.COLOR_RGB2GRAY)
    grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    regions = explanation.regions
    if regions is None:
        return grey
    palette = np.array([class_color(index) for index in range(int(regions.max()) + 1)], np.uint8)
    return cv2.addWeighted(palette[regions], 0.6, grey, 0.4, 0.0)


def _mark(picture: np.ndarray, explanation: Explanation) -> np.ndarray:
    """Outline the chosen patch, visible on dark and on light."""
    size = explanation.window.shape[0] // explanation.attention.shape[0]
    row, column = explanation.patch
    corner, opposite = (column * size, row * size), ((column + 1) * size, (row + 1) * size)
    cv2.rectangle(picture, corner, opposite, (0, 0, 0), 4)
    cv2.rectangle(picture, corner, opposite, (255, 255, 255), 2)
    return picture


_TILE, _GAP, _MARGIN, _BAR, _NAME = 300, 16, 20, 8, 15
_INK, _PALE, _PAPER = (30, 30, 34), (110, 110, 118), (255, 255, 255)


def draw_panel(
    rows: Sequence[tuple[str, Sequence[Tile]]], classes: Sequence[VocabularyClass] = ()
) -> np.ndarray:
    """Lay out rows of tiles under headings; below, the colours of classes.

    Returns uint8 (H, W, 3) RGB.
    """
    height, width = rows[0][1][0].picture.shape[:2]
    tile_height = round(height * _TILE / width)
    # Room for the scales below, where there are any.
    row_heights = [
        82 + tile_height + (_BAR + 44 if any(tile.scale for tile in row) else 20) for _, row in rows
    ]
    columns = max(len(row) for _, row in rows)
    total_width = 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP
    legend = _legend_lines(classes, total_width - 2 * _MARGIN)
    total_height = 2 * _MARGIN + sum(row_heights) + 28 * len(legend)
    panel = Image.new('RGB', (total_width, total_height), _PAPER)
    draw = ImageDraw.Draw(panel)
    top = _MARGIN
    for (heading, row), row_height in zip(rows, row_heights, strict=True):
        draw.text((_MARGIN, top), heading, _INK, ImageFont.load_default(22))
        draw.line((_MARGIN, top + 30, total_width - _MARGIN, top + 30), (200, 200, 206), 1)
        for column, tile in enumerate(row):
            left = _MARGIN + column * (_TILE + _GAP)
            _draw_tile(panel, draw, tile, left, top + 38, tile_height)
        top += row_height
    for line in legend:
        for left, color, name in line:
            draw.rectangle((_MARGIN + left, top, _MARGIN + left + 16, top + 16), color)
            mask = Image.fromarray(text_mask(name, _NAME))
            # Its middle at that of the colour.
            place = (_MARGIN + left + 23, top + 8 - mask.height // 2)
            panel.paste(_INK, place, mask)
        top += 28
    return np.asarray(panel)


def _draw_tile(panel, draw, tile: Tile, left: int, top: int, height: int) -> None:
    draw.text((left, top), tile.title, _INK, ImageFont.load_default(17))
    draw.text((left, top + 21), tile.caption, _PALE, ImageFont.load_default(14))
    top += 44
    picture = Image.fromarray(tile.picture).resize((_TILE, height), Image.Resampling.LANCZOS)
    panel.paste(picture, (left, top))
    if tile.scale is None:
        return
    top += height + 4
    gradient = _colors(np.linspace(0, 1, _TILE, dtype=np.float32)[None].repeat(_BAR, 0))
    panel.paste(Image.fromarray(gradient), (left, top))
    font, (low, high) = ImageFont.load_default(13), (f'{value:.3g}' for value in tile.scale)
    draw.text((left, top + _BAR + 2), low, _PALE, font)
    draw.text((left + _TILE, top + _BAR + 2), high, _PALE, font, anchor='ra')


def _legend_lines(
    classes: Sequence[VocabularyClass], width: int
) -> list[list[tuple[int, tuple[int, int, int], str]]]:
    """Lines of (left, colour, name) that fit the width."""
    lines, left = [], width + 1
    for entry in classes:
        name = legend_name(entry)
        length = 23 + text_mask(name, _NAME).shape[1] + 24
        if left + length > width:
            lines.append([])
            left = 0
        lines[-1].append((left, entry.color, name))
        left += length
    return lines
