"""What is written for each picture: label image, overlay, areas, confidences, run lengths."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cliptrase_ros.image_messages import run_lengths
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary

_JPEG_QUALITY = 90


def write_label(path: Path, segmentation: Segmentation) -> None:
    """Write class ids as a palette PNG in the classes' colours; 255 = unlabelled. OSError."""
    image = Image.fromarray(segmentation.label)
    image.putpalette(segmentation.vocabulary.palette.ravel().tolist())
    _replace(path, lambda temporary: image.save(temporary, format='PNG'))


def write_overlay(path: Path, overlay: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB as JPEG. Raises OSError."""
    image = Image.fromarray(overlay)
    _replace(path, lambda temporary: image.save(temporary, format='JPEG', quality=_JPEG_QUALITY))


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON. Raises OSError."""
    text = json.dumps(content, ensure_ascii=False, indent=1)
    _replace(path, lambda temporary: temporary.write_text(f'{text}\n', encoding='utf-8'))


def _replace(path: Path, write) -> None:
    # A reader never meets half a file, and what a link points to is not written to.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.partial')
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class OverlayVideo:
    """An MP4 of overlays; its frames must be of one size. Raises OSError."""

    def __init__(self, path: Path, per_second: float, height: int, width: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        # MPEG-4 halves colours, so sides are even.
        self._size = (width + width % 2, height + height % 2)
        code = cv2.VideoWriter_fourcc(*'mp4v')
        self._writer = cv2.VideoWriter(str(path), code, per_second, self._size)
        if not self._writer.isOpened():
            raise OSError(f'{path} cannot be written as MP4 by this OpenCV')

    def write(self, overlay: np.ndarray) -> None:
        """Add a frame: uint8 (H, W, 3) RGB."""
        width, height = self._size
        below, right = height - overlay.shape[0], width - overlay.shape[1]
        frame = cv2.copyMakeBorder(overlay, 0, below, 0, right, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()


def describe_vocabulary(vocabulary: Vocabulary) -> dict:
    """Classes and background as they stand in the JSON file."""
    return {
        'classes': [
            {'id': c.id, 'name': c.name, 'synonyms': list(c.synonyms), 'color': list(c.color)}
            for c in vocabulary.classes
        ],
        'background': list(vocabulary.background),
        'unlabelled': UNLABELLED,
    }


def describe_segmentation(segmentation: Segmentation, coco: bool = False) -> dict:
    """Size, and per class present its area, share and confidence.

    coco: whether to add each class's mask as COCO run lengths.
    """
    height, width = segmentation.label.shape
    classes = []
    for present in classes_present(segmentation):
        entry = {
            'id': present.entry.id,
            'name': present.entry.name,
            'area': present.area,
            'share': round(present.area / (height * width), 6),
            'confidence': round(present.confidence, 4),
        }
        if coco:
            entry['segmentation'] = coco_run_lengths(segmentation.label == present.entry.id)
        classes.append(entry)
    unlabelled = height * width - sum(entry['area'] for entry in classes)
    return {'height': height, 'width': width, 'unlabelled_area': unlabelled, 'classes': classes}


def coco_run_lengths(mask: np.ndarray) -> dict:
    """A mask as COCO's compressed run lengths, as pycocotools reads them.

    mask: bool (H, W). Returns `size`, [H, W], and `counts`, a string.
    """
    lengths = run_lengths(mask.ravel(order='F')).astype(np.int64)
    # Columns resemble the columns before, so COCO stores differences from the run two before.
    differences = lengths.copy()
    differences[3:] -= lengths[1:-2]
    text = bytearray()
    for value in differences.tolist():
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(48 + (bits | 0x20 if more else bits))
    return {'size': list(mask.shape), 'counts': text.decode('ascii')}
