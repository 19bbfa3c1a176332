"""Drawing: a label image over its picture, with a legend, and boxes around instances."""

from collections.abc import Sequence

import cv2
import numpy as np

from cliptrase_ros.segmentation.instances import Instance
from cliptrase_ros.segmentation.lettering import can_be_drawn, line_height, text_mask
from cliptrase_ros.segmentation.vocabulary import Vocabulary, VocabularyClass


def draw_overlay(
    image: np.ndarray,
    label: np.ndarray,
    vocabulary: Vocabulary,
    opacity: float = 0.55,
    legend: bool = True,
    instances: Sequence[Instance] = (),
    ids: Sequence[int] = (),
) -> np.ndarray:
    """Blend a picture with the colours of its classes and name those present.

    Args:
        image: uint8 (H, W, 3) RGB.
        label: uint8 (H, W) of ids of `vocabulary`; where it is 255 (unlabelled), the picture stays.
        opacity: Of the colours, 0..1.
        legend: Whether classes are named in the upper left corner.
        instances: Those to draw a box around, with the name of the class and an id.
        ids: Of the instances.

    Returns:
        A new uint8 (H, W, 3) RGB array.
    """
    colors = cv2.LUT(cv2.merge([label] * 3), vocabulary.palette[None])
    blended = cv2.addWeighted(image, 1.0 - opacity, colors, opacity, 0.0)
    known = np.zeros(256, np.uint8)
    known[vocabulary.ids] = 1
    overlay = image.copy()
    cv2.copyTo(blended, cv2.LUT(label, known), overlay)
    _draw_boxes(overlay, instances, ids)
    if legend:
        counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()
        present = [c for c in vocabulary.classes if counts[c.id]]
        _draw_legend(overlay, sorted(present, key=lambda c: -counts[c.id]))
    return overlay


def legend_name(entry: VocabularyClass) -> str:
    """What a legend calls a class: its name, after its id where no font has all of its letters."""
    return entry.name if can_be_drawn(entry.name) else f'id {entry.id} {entry.name}'


def _draw_legend(image: np.ndarray, classes: Sequence[VocabularyClass]) -> None:
    """Name the classes present, which come the largest first, in the image itself."""
    size = _letter_size(image)
    line = line_height(size)
    swatch, margin = round(line * 0.7), line // 4
    # However many classes there are, a third of the picture's height stays free.
    rows = max(1, image.shape[0] * 2 // 3 // line)
    shown = classes[:rows] if len(classes) <= rows else classes[: rows - 1]
    # In the order of ids, because rows that change places from frame to frame cannot be read.
    names = [(c.color, legend_name(c)) for c in sorted(shown, key=lambda c: c.id)]
    if len(shown) < len(classes):
        names.append(((128, 128, 128), f'+{len(classes) - len(shown)} more'))
    if not names:
        return
    texts = [text_mask(text, size)[:, : image.shape[1] // 2] for _, text in names]
    right = swatch + 3 * margin + max(text.shape[1] for text in texts)
    box = image[: line * len(names) + margin, :right]
    box //= 3
    for row, ((color, _), text) in enumerate(zip(names, texts, strict=True)):
        top = row * line + margin
        box[top : top + swatch, margin : margin + swatch] = color
        # A little higher, so that letters stand beside the middle of their colour.
        place = box[top - margin // 2 :, 2 * margin + swatch :][:line, : text.shape[1]]
        _write(place, text, 255)


def _draw_boxes(image: np.ndarray, instances: Sequence[Instance], ids: Sequence[int]) -> None:
    """Draw a box in its class's colour around each instance, in the image itself."""
    size = _letter_size(image)
    line, thickness = line_height(size), 1 + min(image.shape[:2]) // 500
    for instance, number in zip(instances, ids, strict=True):
        x, y, width, height = instance.box
        color = instance.entry.color
        cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), color, thickness)
        text = text_mask(f'{legend_name(instance.entry)} {number}', size)
        # Above the box where there is room for it, and never out of the picture.
        top = y - line if y >= line else y
        left = max(0, min(x, image.shape[1] - text.shape[1]))
        place = image[top:, left:][:line, : text.shape[1]]
        place[:] = color
        is_bright = np.dot(color, (0.299, 0.587, 0.114)) > 127
        _write(place, text, 0 if is_bright else 255)


def _letter_size(image: np.ndarray) -> int:
    """Of letters that are readable on a thumbnail and not gigantic on 4K, pixels."""
    return 6 + round(min(image.shape[:2]) / 45)


def _write(place: np.ndarray, text: np.ndarray, grey: int) -> None:
    """Write a text of `text_mask` in a grey onto a part of an image, as far as it fits in."""
    ink = text[: place.shape[0], : place.shape[1], None].astype(np.uint16)
    place[:] = (place * (255 - ink) + grey * ink) // 255
