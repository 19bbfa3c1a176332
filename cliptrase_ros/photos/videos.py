"""Frames of videos and webcams, each with its own time."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cliptrase_ros.photos.reading import UnreadableError
from cliptrase_ros.streams.rate_limit import RateLimit

# A video may end so many seconds before the time its header says.
_END_S = 0.5


@dataclass(frozen=True)
class VideoFrame:
    """One frame.

    picture: uint8 (H, W, 3) RGB, upright. number: its place in the video, from 0. time_s: seconds
    from the first frame on, more for every frame.
    """

    picture: np.ndarray
    number: int
    time_s: float


def read_video(path: Path, rate: float = 0.0) -> Iterator[VideoFrame]:
    """Frames of a video, at most so many a second of its own time; 0 = all.

    Frames that are damaged are left out. Raises UnreadableError: before the first frame, or at
    the end if the video breaks off early or frames were damaged.
    """
    with _open(path) as (container, stream):
        stream.thread_type = 'AUTO'
        period = longest = 1 / _rate(stream)
        decoding = _Decoding(container, stream)
        limit = RateLimit(rate)
        number, begin, time_s = -1, None, -period
        for number, frame in enumerate(decoding.frames()):
            last_s = time_s
            own_s = None if frame.pts is None else float(frame.pts * stream.time_base)
            begin = own_s if begin is None else begin
            # Raw streams have no times, and in joined ones they begin again.
            time_s = last_s + period if own_s is None else own_s - begin
            if time_s <= last_s:
                time_s = last_s + period
            longest = max(longest, time_s - last_s)
            if frame.is_corrupt:
                decoding.damaged += 1
            elif limit.takes(round(time_s * 1e9)):
                yield VideoFrame(_picture(frame), number, time_s)
        if number < 0:
            raise UnreadableError('it has no frame that can be decoded')
        duration_s = _duration_s(container, stream)
        # The last frame may be meant to be seen as long as any other.
        if duration_s is not None and decoding.end_s < duration_s - max(_END_S, longest):
            raise UnreadableError(
                f'it breaks off after {decoding.end_s:.1f} of {duration_s:.1f} s, '
                f'{number + 1} frames'
            )
        if decoding.damaged:
            raise UnreadableError(f'{decoding.damaged} of its frames are damaged')


def read_webcam(number: int, rate: float = 0.0) -> Iterator[VideoFrame]:
    """Frames of a webcam, at most so many a second, until it gives no more.

    Raises UnreadableError.
    """
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise UnreadableError('OpenCV cannot open this webcam')
        limit = RateLimit(rate)
        begin = time.monotonic()
        taken = 0
        # Taken off, not decoded, where the rate leaves it out.
        while capture.grab():
            time_s = time.monotonic() - begin
            if limit.takes(round(time_s * 1e9)):
                read, pixels = capture.retrieve()
                if not read:
                    break
                yield VideoFrame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), taken, time_s)
            taken += 1
        if taken == 0:
            raise UnreadableError('it gives no frame')
    finally:
        capture.release()


def count_frames(path: Path, rate: float = 0.0) -> int | None:
    """About how many frames `read_video` will give; None if that cannot be known."""
    try:
        with _open(path) as (container, stream):
            seconds = (container.duration or 0) / 1e6
            count = stream.frames or seconds * _rate(stream)
            if rate and seconds:
                count = min(count, seconds * rate)
            return math.ceil(count) or None
    except UnreadableError:
        return 1  # that is given up


def is_video(path: Path) -> bool:
    """Whether a file is a video by its content, whatever its name."""
    try:
        with _open(path):
            return True
    except UnreadableError:
        return False


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple]:
    """An open container and its video stream, of PyAV. Raises UnreadableError."""
    try:
        import av
        from av.stream import Disposition
    except ImportError:
        raise UnreadableError('videos need `pip install "av>=14.1"`') from None
    try:
        # Of a relative path such as `12:30.mp4`, FFmpeg would take 12 for a protocol.
        container = av.open(str(path.absolute()), metadata_errors='replace')
    except av.error.FFmpegError as error:
        reason = error.strerror
        if reason.startswith('Invalid data') and _is_mp4(path):
            reason = 'it is an MP4 without its index, as when a recording was cut off'
        raise UnreadableError(reason) from error
    with container:
        stream = container.streams.best('video')
        # FFmpeg opens text as what a terminal would show, and pictures.
        text_or_picture = container.format.name.endswith(('tty', 'image2', '_pipe'))
        if stream is None or text_or_picture or stream.disposition & Disposition.attached_pic:
            raise UnreadableError('there is no video in it')
        yield container, stream


def _is_mp4(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(8)[4:] == b'ftyp'


class _Decoding:
    """Decodes a video, and notes what is missing.

    damaged: how many frames could not be decoded. end_s: where its data end, by its own times.
    """

    def __init__(self, container, stream):
        self.damaged = 0
        self.end_s = 0.0
        self._container = container
        self._stream = stream

    def frames(self) -> Iterator:
        from av.error import FFmpegError

        for packet in self._packets():
            # One that is cut off would cost the frames that the decoder still holds back. In
            # streams that may be joined, the first after a joint is marked as well, but whole.
            if packet is not None and packet.is_corrupt and not _has_joints(self._container):
                self.damaged += 1
                continue
            try:
                yield from self._stream.decode(packet)
            except FFmpegError:
                self.damaged += 1

    def _packets(self) -> Iterator:
        """Packets of the video; the last, which is empty, makes the decoder give what it holds."""
        from av.error import FFmpegError

        # Where the length of the video is not known, but that of the whole is.
        others = [] if self._stream.duration else self._container.streams.audio
        try:
            for packet in self._container.demux(self._stream, *others):
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self.end_s = max(self.end_s, float(end))
                if packet.stream is self._stream:
                    yield packet
        except FFmpegError:
            self.damaged += 1
            yield None


def _rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _has_joints(container) -> bool:
    """Whether times may begin again within this kind of container, such as MPEG-TS."""
    from av.format import Flags

    return bool(container.format.flags & Flags.ts_discont.value)


def _duration_s(container, stream) -> float | None:
    """How long a video is as its header says; None where that is guessed from what there is."""
    from av.format import Flags

    if _has_joints(container) or container.format.flags & Flags.no_timestamps.value:
        return None
    if container.format.name == 'avi' and stream.frames:
        # Its duration is guessed where the file is shorter than it should be.
        return stream.frames / _rate(stream)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _picture(frame) -> np.ndarray:
    # Older versions of PyAV take the frame's colour space into account only if told.
    rgb = frame.reformat(format='rgb24', src_colorspace=frame.colorspace, dst_colorspace='ITU601')
    picture = rgb.to_ndarray()
    matrix = frame.side_data.get('DISPLAYMATRIX')
    if matrix is None:
        return picture
    # Where a pixel's column and row go, each as factors of column and row.
    to_column, to_row = np.frombuffer(matrix, np.int32)[:6].reshape(2, 3)[:, :2].T
    if abs(to_column[1]) > abs(to_column[0]):
        picture, to_column, to_row = picture.swapaxes(0, 1), to_column[::-1], to_row[::-1]
    if to_column[0] < 0:
        picture = picture[:, ::-1]
    if to_row[1] < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
