"""What is written for each picture: label image, overlay, areas, confidences, run lengths."""

import contextlib
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from cliptrase_ros.messages.masks import run_lengths
from cliptrase_ros.photos.whole_files import whole_file
from cliptrase_ros.segmentation.instances import Instance
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary

if TYPE_CHECKING:
    # What only reads results needs no PyTorch.
    from cliptrase_ros.segmentation.segmenter import Segmentation

_JPEG_QUALITY = 90
# Unit of time, seconds: frames of all usual rates last whole numbers of it, and MPEG-4 allows at
# most 65535 units a second.
_TICK = Fraction(1, 60000)
# Encoders of FFmpeg, the better first, with options. Browsers play H.264.
_ENCODERS = {'libx264': {'crf': '20', 'preset': 'veryfast'}, 'mpeg4': {'q': '4'}}


def write_label(path: Path, segmentation: 'Segmentation') -> None:
    """Write class ids as a palette PNG in the classes' colours; 255 is unlabelled."""
    write_png(path, segmentation.label, segmentation.vocabulary.palette)


def write_png(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write pixels, uint8 (H, W) or (H, W, 3).

    Args:
        palette: RGB of values, uint8 (256, 3), for pixels that are no colours.
    """
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    with whole_file(path) as temporary:
        image.save(temporary, format='PNG')


def write_overlay(path: Path, overlay: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB as JPEG."""
    with whole_file(path) as temporary:
        Image.fromarray(overlay).save(temporary, format='JPEG', quality=_JPEG_QUALITY)


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON."""
    # Names of files need not be text in any encoding.
    text = json.dumps(content, ensure_ascii=False, indent=1).encode('utf-8', 'backslashreplace')
    with whole_file(path) as temporary:
        temporary.write_bytes(text + b'\n')


class OverlayVideo:
    """An MP4 of overlays, each shown at its own time; they must be of one size.

    It appears when it is closed. Everything raises OSError or, over what cannot be encoded, PyAV's
    errors.
    """

    def __init__(self, path: Path, height: int, width: int):
        import av

        self._file = contextlib.ExitStack()
        temporary = self._file.enter_context(whole_file(path))
        self._container = av.open(str(temporary.absolute()), 'w', format='mp4')
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        stream = self._container.add_stream(encoder, options=_ENCODERS[encoder])
        # There is one colour for every 2 x 2 pixels, so that sides have to be even.
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = _TICK
        stream.codec_context.colorspace = 5  # BT.601, which FFmpeg makes of RGB
        self._stream = stream
        # Of the latest frame, in ticks: when it is shown, and how long.
        self._shown_at = -1
        self._duration = round(1 / 25 / _TICK)

    def write(self, overlay: np.ndarray, time_s: float) -> None:
        """Add uint8 (H, W, 3) RGB, shown so many seconds from the beginning."""
        import av

        below = self._stream.height - overlay.shape[0]
        right = self._stream.width - overlay.shape[1]
        padded = cv2.copyMakeBorder(overlay, 0, below, 0, right, cv2.BORDER_REPLICATE)
        frame = av.VideoFrame.from_ndarray(padded, format='rgb24')
        # Times may differ by less than a tick, and must not be equal.
        frame.pts = max(round(time_s / _TICK), self._shown_at + 1)
        frame.time_base = _TICK
        if self._shown_at >= 0:
            self._duration = frame.pts - self._shown_at
        self._shown_at = frame.pts
        self._encode(frame)

    def close(self) -> None:
        """Finish the file."""
        with self._file:
            self._encode(None)
            self._container.close()

    def _encode(self, frame) -> None:
        for packet in self._stream.encode(frame):
            # Counts for the last frame alone, whose end no other frame sets.
            packet.duration = self._duration
            self._container.mux(packet)


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


def describe_segmentation(
    segmentation: 'Segmentation',
    coco: bool = False,
    instances: Sequence[Instance] = (),
    ids: Sequence[int] = (),
) -> dict:
    """Size of an image, and area, share and confidence of every class present.

    Args:
        coco: Whether to add each class's mask as COCO run lengths, and the instances.
        ids: Of the instances.
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
    described = {
        'height': height,
        'width': width,
        'unlabelled_area': unlabelled,
        'classes': classes,
    }
    if coco:
        described['instances'] = list(map(_describe_instance, instances, ids))
    return described


def _describe_instance(instance: Instance, number: int) -> dict:
    """An instance as an annotation of COCO."""
    return {
        'id': number,
        'category_id': instance.entry.id,
        'bbox': list(instance.box),
        'area': instance.area,
        'iscrowd': 0,
        'score': round(instance.confidence, 4),
        'segmentation': coco_run_lengths(instance.numbers == instance.number),
    }


def coco_run_lengths(mask: np.ndarray) -> dict:
    """A mask, bool (H, W), as COCO's compressed run lengths, as pycocotools reads them.

    Returns:
        `size`, [H, W], and `counts`, a string.
    """
    lengths = run_lengths(mask.ravel(order='F')).astype(np.int64)
    # A column resembles the one before it, and so a run the second one before it.
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
