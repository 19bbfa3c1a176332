"""Drawing: a label image over its picture, with a legend."""

import unicodedata

import cv2
import numpy as np

from cliptrase_ros.segmentation.vocabulary import Vocabulary

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(
    image: np.ndarray,
    label: np.ndarray,
    vocabulary: Vocabulary,
    opacity: float = 0.55,
    legend: bool = True,
) -> np.ndarray:
    """Blend a picture with the colours of its classes and name those present.

    image: uint8 (H, W, 3) RGB. label: uint8 (H, W) of ids of `vocabulary`, 255 = unlabelled;
    unlabelled pixels keep the picture. opacity: of the colours, 0..1.
    Returns a new uint8 (H, W, 3) RGB array.
    """
    colors = cv2.LUT(cv2.merge([label] * 3), vocabulary.palette[None])
    blended = cv2.addWeighted(image, 1.0 - opacity, colors, opacity, 0.0)
    known = np.zeros(256, np.uint8)
    known[vocabulary.ids] = 1
    overlay = image.copy()
    cv2.copyTo(blended, cv2.LUT(label, known), overlay)
    if legend:
        counts = np.bincount(label.ravel(), minlength=256)
        present = [c for c in vocabulary.classes if counts[c.id]]
        _draw_legend(overlay, sorted(present, key=lambda c: -counts[c.id]))
    return overlay


def _draw_legend(image: np.ndarray, classes: list) -> None:
    # Readable on a thumbnail and not gigantic on 4K.
    scale = float(np.clip(image.shape[0] / 900.0, 0.35, 1.6))
    thickness = max(1, round(1.2 * scale))
    line = max(12, round(34 * scale))
    rows = max(1, (image.shape[0] - line // 2) // line)
    shown = classes[:rows] if len(classes) <= rows else classes[: rows - 1]
    names = [(c.color, _ascii(c.name)) for c in shown]
    if len(shown) < len(classes):
        names.append(((128, 128, 128), f'+{len(classes) - len(shown)} more'))
    if not names:
        return
    swatch, margin = round(line * 0.7), line // 4
    width = max(cv2.getTextSize(text, _FONT, scale, thickness)[0][0] for _, text in names)
    right = min(image.shape[1], swatch + width + 3 * margin)
    bottom = min(image.shape[0], line * len(names) + margin)
    image[:bottom, :right] = image[:bottom, :right] // 3
    for row, (color, text) in enumerate(names):
        top = row * line + margin
        cv2.rectangle(image, (margin, top), (margin + swatch, top + swatch), color, cv2.FILLED)
        cv2.putText(
            image,
            text,
            (2 * margin + swatch, top + swatch),
            _FONT,
            scale,
            (255, 255, 255),
            thickness,
            cv2.LINE_AA,
        )


def _ascii(text: str) -> str:
    # OpenCV's fonts have no other letters; accents are dropped, the rest shows as '?'.
    plain = ''.join(c for c in unicodedata.normalize('NFKD', text) if not unicodedata.combining(c))
    return plain.encode('ascii', 'replace').decode()
