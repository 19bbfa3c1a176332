"""What is written for each picture: label image, overlay, areas, confidences, run lengths."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cliptrase_ros.messages.masks import run_lengths
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary

_JPEG_QUALITY = 90
# Times of the usual frame rates are whole numbers of these, and MPEG-4 counts to 65535 a second.
_TICK = Fraction(1, 60000)
# Encoders of FFmpeg, the better first, with options. Browsers play H.264.
_ENCODERS = {'libx264': {'crf': '20', 'preset': 'veryfast'}, 'mpeg4': {'q': '4'}}


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
    # Names of files need not be text in any encoding.
    text = json.dumps(content, ensure_ascii=False, indent=1).encode('utf-8', 'backslashreplace')
    _replace(path, lambda temporary: temporary.write_bytes(text + b'\n'))


def _replace(path: Path, write) -> None:
    # A reader never meets half a file, and what a link points to is not written to.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f'.{path.name}.partial')


class OverlayVideo:
    """An MP4 of overlays, each shown at its own time; they must be of one size.

    It appears when it is closed. Raises OSError or, over what cannot be encoded, PyAV's errors.
    """

    def __init__(self, path: Path, height: int, width: int):
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._temporary = _temporary(path)
        self._container = av.open(str(self._temporary.absolute()), 'w', format='mp4')
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        stream = self._container.add_stream(encoder, options=_ENCODERS[encoder])
        # Colours are halved, so sides are even.
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.time_base = _TICK
        stream.codec_context.colorspace = 5  # BT.601, which FFmpeg makes of RGB
        self._stream = stream
        self._last = -1
        self._step = round(1 / 25 / _TICK)

    def write(self, overlay: np.ndarray, time_s: float) -> None:
        """Add a frame: uint8 (H, W, 3) RGB, shown from time_s on."""
        import av

        below = self._stream.height - overlay.shape[0]
        right = self._stream.width - overlay.shape[1]
        padded = cv2.copyMakeBorder(overlay, 0, below, 0, right, cv2.BORDER_REPLICATE)
        frame = av.VideoFrame.from_ndarray(padded, format='rgb24')
        # Times that differ by less than can be written would be the same.
        frame.pts = max(round(time_s / _TICK), self._last + 1)
        frame.time_base = _TICK
        if self._last >= 0:
            self._step = frame.pts - self._last
        self._last = frame.pts
        self._encode(frame)

    def close(self) -> None:
        """Finish the file."""
        try:
            self._encode(None)
            self._container.close()
            self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _encode(self, frame) -> None:
        for packet in self._stream.encode(frame):
            # Counts for the last one, which no other follows.
            packet.duration = self._step
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
