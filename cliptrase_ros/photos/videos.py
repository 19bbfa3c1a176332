"""Frames of videos and webcams, each with its own time."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cliptrase_ros.messages.video import frame_to_rgb
from cliptrase_ros.photos.reading import UnreadableError
from cliptrase_ros.streams.rate_limit import RateLimiter

# A whole video may end so many seconds before the time that its header says.
_END_TOLERANCE_S = 0.5


@dataclass(frozen=True)
class VideoFrame:
    """One frame of a video or webcam.

    Attributes:
        picture: uint8 (H, W, 3) RGB, upright.
        number: Its place in the video, from 0.
        time_s: Seconds since the first frame, more for every frame.
    """

    picture: np.ndarray
    number: int
    time_s: float


def read_video(path: Path, rate: float = 0.0) -> Iterator[VideoFrame]:
    """Read the frames of a video; those that are damaged are left out.

    Args:
        rate: Most frames a second of the video's own time; 0 for all.

    Raises:
        UnreadableError: Before the first frame; or at the end, if the video breaks off early or
            frames were damaged.
    """
    with _open(path) as (container, stream):
        stream.thread_type = 'AUTO'
        period_s = longest_s = 1 / _frame_rate(stream)
        decoding = _Decoding(container, stream)
        limiter = RateLimiter()
        number, begin_s, time_s = -1, None, -period_s
        for number, frame in enumerate(decoding.frames()):
            last_s = time_s
            stamp_s = None if frame.pts is None else float(frame.pts * stream.time_base)
            begin_s = stamp_s if begin_s is None else begin_s
            # Raw streams have no times, and in joined ones they begin again.
            time_s = last_s if stamp_s is None else stamp_s - begin_s
            if time_s <= last_s:
                time_s = last_s + period_s
            longest_s = max(longest_s, time_s - last_s)
            if frame.is_corrupt:
                decoding.damaged += 1
            elif limiter.take(round(time_s * 1e9), rate):
                yield VideoFrame(_to_upright_rgb(frame), number, time_s)
        if number < 0:
            raise UnreadableError('it has no frame that can be decoded')
        duration_s = _duration_s(container, stream)
        # The last frame may be meant to be shown as long as any other.
        tolerance_s = max(_END_TOLERANCE_S, longest_s)
        if duration_s is not None and decoding.end_s < duration_s - tolerance_s:
            raise UnreadableError(
                f'it breaks off after {decoding.end_s:.1f} of {duration_s:.1f} s, '
                f'{number + 1} frames'
            )
        if decoding.damaged:
            raise UnreadableError(f'{decoding.damaged} of its frames are damaged')


def read_webcam(number: int, rate: float = 0.0) -> Iterator[VideoFrame]:
    """Read the frames of a webcam until it gives no more.

    Args:
        number: Of the webcam, as OpenCV counts.
        rate: Most frames a second; 0 for all.

    Raises:
        UnreadableError: It cannot be opened, or gives no frame.
    """
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise UnreadableError('OpenCV cannot open this webcam')
        limiter = RateLimiter()
        begin = time.monotonic()
        count = 0
        # Every frame is taken off the webcam; those that the rate leaves out are not decoded.
        while capture.grab():
            time_s = time.monotonic() - begin
            if limiter.take(round(time_s * 1e9), rate):
                was_read, pixels = capture.retrieve()
                if not was_read:
                    break
                yield VideoFrame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), count, time_s)
            count += 1
        if count == 0:
            raise UnreadableError('it gives no frame')
    finally:
        capture.release()


def count_frames(path: Path, rate: float = 0.0) -> int | None:
    """About how many frames `read_video` will give; None if that cannot be known."""
    try:
        with _open(path) as (container, stream):
            seconds = (container.duration or 0) / 1e6
            count = stream.frames or seconds * _frame_rate(stream)
            if rate and seconds:
                count = min(count, seconds * rate)
            return math.ceil(count) or None
    except UnreadableError:
        return 1  # as a photo: it is named as unreadable, once


def is_video(path: Path) -> bool:
    """Whether a file is a video by its content, whatever its name."""
    try:
        with _open(path):
            return True
    except UnreadableError:
        return False


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple]:
    """Open a video: PyAV's container and its video stream. Raises UnreadableError."""
    try:
        import av
        from av.stream import Disposition
    except ImportError:
        raise UnreadableError('videos need `pip install "av>=14.1"`') from None
    try:
        # FFmpeg would take the 12 of a relative path such as `12:30.mp4` for a protocol.
        container = av.open(str(path.absolute()), metadata_errors='replace')
    except av.error.FFmpegError as error:
        reason = error.strerror
        if reason.startswith('Invalid data') and _is_mp4(path):
            reason = 'it is an MP4 without its index, as when a recording was cut off'
        raise UnreadableError(reason) from error
    with container:
        stream = container.streams.best('video')
        # FFmpeg also opens pictures, and text as a video of a terminal that shows it.
        is_no_video = container.format.name.endswith(('tty', 'image2', '_pipe'))
        if stream is None or is_no_video or stream.disposition & Disposition.attached_pic:
            raise UnreadableError('there is no video in it')
        yield container, stream


def _is_mp4(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(8)[4:] == b'ftyp'


class _Decoding:
    """Decodes a video, and notes what is missing.

    Attributes:
        damaged: How many frames could not be decoded.
        end_s: Where its data end, seconds by its own times.
    """

    def __init__(self, container, stream):
        self.damaged = 0
        self.end_s = 0.0
        self._container = container
        self._stream = stream

    def frames(self) -> Iterator:
        from av.error import FFmpegError

        for packet in self._packets():
            # A packet that is cut off is left out: with it the decoder would drop the frames that
            # it still holds back. In streams that may be joined, the first packet after a joint is
            # marked as well although it is whole.
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

        # Where only the container says how long it is, its sound may be longer than the pictures,
        # and counts for where its data end.
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


def _frame_rate(stream) -> float:
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
        return stream.frames / _frame_rate(stream)
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration else None


def _to_upright_rgb(frame) -> np.ndarray:
    picture = frame_to_rgb(frame)
    matrix = frame.side_data.get('DISPLAYMATRIX')
    if matrix is None:
        return picture
    # The matrix says where a pixel goes: to which column and to which row, each by two factors, of
    # its own column and row.
    to_column, to_row = np.frombuffer(matrix, np.int32)[:6].reshape(2, 3)[:, :2].T
    if abs(to_column[1]) > abs(to_column[0]):
        picture, to_column, to_row = picture.swapaxes(0, 1), to_column[::-1], to_row[::-1]
    if to_column[0] < 0:
        picture = picture[:, ::-1]
    if to_row[1] < 0:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
