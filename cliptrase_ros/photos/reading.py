"""Pixels of photos, videos and webcams."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from cliptrase_ros.photos.sources import Source
from cliptrase_ros.rate_limit import RateLimit


class UnreadableError(Exception):
    """A photo, video or webcam that cannot be read; the message says why."""


@dataclass(frozen=True)
class Frame:
    """One picture.

    picture: uint8 (H, W, 3) RGB, upright. number: its place in a video, from 0; None for a photo.
    time_s: seconds from the beginning of a video; None for a photo.
    """

    source: Source
    picture: np.ndarray
    number: int | None = None
    time_s: float | None = None


def read_photo(path: Path) -> np.ndarray:
    """Pixels of a photo as uint8 (H, W, 3) RGB, turned upright as its EXIF data say.

    Of several images in a file the first counts; 16 bits are scaled to 8. Raises UnreadableError.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith('I;16') or upright.mode == 'I':
                # Pillow would clip what does not fit into 8 bits.
                values = np.asarray(upright).clip(0, 65535)
                grey = np.round(values * (255 / 65535)).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(upright.convert('RGB'))
    except Exception as error:
        # Pillow's decoders raise nearly anything over damaged files.
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UnreadableError(reason) from error


def read_video(source: Source, rate: float = 0.0) -> Iterator[Frame]:
    """Frames of a video or webcam, at most so many a second of its own time; 0 = all.

    Raises UnreadableError: before the first frame, or where a video breaks off early.
    """
    location = source.location if source.kind == 'webcam' else str(source.location)
    capture = cv2.VideoCapture(location)
    try:
        if not capture.isOpened():
            raise UnreadableError(f'OpenCV cannot open this {source.kind}')
        per_second = _frames_per_second(capture)
        expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        limit = RateLimit(rate)
        number = 0
        begin = time.monotonic()
        # Taken off, not decoded, where the rate leaves it out.
        while capture.grab():
            time_s = number / per_second if source.kind == 'video' else time.monotonic() - begin
            if limit.takes(round(time_s * 1e9)):
                read, pixels = capture.retrieve()
                if not read:
                    break
                yield Frame(source, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), number, time_s)
            number += 1
        if number == 0:
            raise UnreadableError('it has no frame that can be decoded')
        # Containers often count one or two frames more than there are.
        if source.kind == 'video' and number < 0.9 * expected:
            raise UnreadableError(f'it breaks off after frame {number} of {expected}')
    finally:
        capture.release()


def count_frames(source: Source, rate: float = 0.0) -> int | None:
    """About how many frames `read_video` will give; None if that cannot be known."""
    if source.kind != 'video':
        return None
    capture = cv2.VideoCapture(str(source.location))
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if count <= 0:
            return None
        per_second = _frames_per_second(capture)
        return count if not 0 < rate < per_second else max(1, round(count * rate / per_second))
    finally:
        capture.release()


def frames_per_second(source: Source) -> float:
    """Frame rate of a video, 1/s; 25 where it does not say."""
    capture = cv2.VideoCapture(str(source.location))
    try:
        return _frames_per_second(capture)
    finally:
        capture.release()


def _frames_per_second(capture: cv2.VideoCapture) -> float:
    per_second = capture.get(cv2.CAP_PROP_FPS)
    return per_second if 0 < per_second <= 1000 else 25.0
