"""Pictures of a camera's video, message by message, without any ROS.

One message holds what one image was encoded to, and needs the messages before it. `video_packet`
reads a message, `VideoDecoder` has the state of one camera's stream.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from cliptrase_ros.messages.bitstreams import (
    BitstreamError,
    FrameNumbers,
    PacketContent,
    look_into,
)
from cliptrase_ros.messages.images import MAX_PIXELS, MAX_SIDE, ImageError, check_size
from cliptrase_ros.messages.type_names import Message

# What encoders of a codec are called (libx264, hevc_nvenc), and what FFmpeg calls its decoder.
_CODECS = (
    (re.compile(r'h\.?264|x264|avc'), 'h264'),
    (re.compile(r'h\.?265|x265|hevc'), 'hevc'),
    (re.compile(r'av1'), 'libdav1d'),
    (re.compile(r'vp9'), 'vp9'),
)

# Codecs of which a frame alone does not say how it is encoded.
_WITH_PARAMETER_SETS = ('h264', 'hevc')

# Decoders hold back fewer frames: of a packet that went in before those nothing comes any more.
_MAX_DELAY = 32
# Larger gaps between the numbers of packets are those of another stream.
_MAX_GAP = 10_000
# Parameter sets that come in messages of their own are shorter.
_MAX_HEAD = 65536
# FFmpeg takes memory for widths that are multiples of this.
_ROUNDING = 64


class NoPictureError(ImageError):
    """A packet as good as any that gave no picture: the message says which frames it would need."""


@dataclass(frozen=True)
class PacketHeader:
    """Stands for the std_msgs/Header that a message does not have."""

    stamp: Message
    frame_id: str


@dataclass(frozen=True)
class VideoPacket:
    """What a message of a video holds.

    Attributes:
        header: std_msgs/Header of the message, or what stands for one.
        codec: FFmpeg's name of the decoder.
        received_ns: When it came or was recorded, nanoseconds.
        sequence: Number that the middleware gave the message, one more for each that is published;
            0 where that is not known.
        number: The same of the publisher, which may count otherwise; None where it gives none.
    """

    header: Message
    codec: str
    data: bytes
    received_ns: int = 0
    sequence: int = 0
    number: int | None = None


def video_packet(
    message: Message, received_ns: int = 0, sequence: int = 0, max_pixels: int = MAX_PIXELS
) -> VideoPacket:
    """Read an FFMPEGPacket of ffmpeg_image_transport_msgs or a CompressedVideo of foxglove_msgs.

    Raises:
        ImageError: No data, a codec that is not known, or a size that is not believed.
    """
    if hasattr(message, 'format'):
        name, number = message.format, None
        header = PacketHeader(message.timestamp, message.frame_id)
    else:
        # ENCODER, or CODEC;FORMAT;FORMAT;ENCODING: how pictures were made ready for it.
        name, number, header = message.encoding, message.pts, message.header
        # Some publishers fill in no size.
        if message.width or message.height:
            check_size(max(0, message.width), max(0, message.height), max_pixels)
    codec = next((c for p, c in _CODECS if p.search(name.lower().partition(';')[0])), None)
    if codec is None:
        raise ImageError(
            f'video encoded as {name[:40]!r} is not known; publish one of h264, h265, av1, vp9'
        )
    if not len(message.data):
        raise ImageError('0 bytes of video')
    return VideoPacket(header, codec, bytes(message.data), received_ns, sequence, number)


@dataclass(frozen=True)
class VideoPicture:
    """A decoded image, not yet in colours.

    Attributes:
        header: Of the packet that it came from.
    """

    header: Message
    _frame: Any

    def to_rgb(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, contiguous."""
        return frame_to_rgb(self._frame)


#: A packet, and its picture or why there is none.
Settled: TypeAlias = tuple[VideoPacket, VideoPicture | ImageError]


def frame_to_rgb(frame: Any) -> np.ndarray:
    """Colours of PyAV's VideoFrame, uint8 (H, W, 3) RGB."""
    # Older versions of PyAV take the frame's colour space into account only if told.
    rgb = frame.reformat(format='rgb24', src_colorspace=frame.colorspace, dst_colorspace='ITU601')
    return rgb.to_ndarray()


class VideoDecoder:
    """Decodes the packets of one camera, which have to come in the order they were published.

    Every packet is settled once, by its picture or by an `ImageError`: at once, or, where pictures
    were encoded in another order than they are shown (B-frames), with a later packet. The stream
    begins at a key frame. Where a frame is missing that others need, or is damaged, it goes on at
    the next one: no picture is made of frames that are not there.

    That frames are missing is known by the numbers of the messages, where the middleware or the
    publisher counts them; of H.264 by the numbers of the frames; of H.265, and mostly of AV1,
    because decoding fails. Of VP9 it is not known without numbers of the messages.

    Args:
        max_pixels: Of the largest picture for which memory is taken.

    Attributes:
        lost: How many frames have not come, as far as that is known.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS):
        self.lost = 0
        self._max_pixels = max_pixels
        self._codec = ''
        # FFmpeg's decoder; None while a key frame has to come first, and why.
        self._context: Any = None
        self._waits = 'no key frame has come yet'
        # The parameter sets that came last, and what came without a frame, to go before the next.
        self._parameters = b''
        self._head = b''
        self._before: VideoPacket | None = None
        self._step = 0
        self._has_b_frames = False
        self._frame_numbers = FrameNumbers()
        # What has gone in and not come out, by the time that FFmpeg is told.
        self._inside: dict[int, VideoPacket] = {}
        self._time = 0

    def decode(self, packet: VideoPacket) -> list[Settled]:
        """Take the next packet; returns what is settled, in the order in which it is shown."""
        settled: list[Settled] = []
        if packet.codec != self._codec:
            settled += self.skip(f'the video changed to {packet.codec}')
            self._codec, self._has_b_frames = packet.codec, False
            self._parameters = self._head = b''
            self._frame_numbers = FrameNumbers()
        data, self._head = self._head + packet.data, b''
        try:
            content = look_into(packet.codec, data)
        except BitstreamError as error:
            settled += self._restart('a packet before could not be read')
            reason = ImageError(f'{len(packet.data)} bytes of {packet.codec}: {error}')
            return [*settled, (packet, reason)]
        if self._is_missing_frames(packet, content):
            settled += self._restart('frames before it are lost')
        if not content.has_frame:
            if packet.codec in _WITH_PARAMETER_SETS and len(data) < _MAX_HEAD:
                self._head = data
            no_frame = NoPictureError('parameters of the video alone, without a frame')
            return [*settled, (packet, no_frame)]
        self._parameters = content.parameters or self._parameters
        if self._context is None:
            try:
                data = self._begin(packet, content, data)
            except ImageError as error:
                return [*settled, (packet, error)]
        return settled + self._feed(packet, data)

    def finish(self) -> list[Settled]:
        """Settle what is still inside; the next packet has to be a key frame."""
        return self._restart('the video ended before')

    def skip(self, reason: str) -> list[Settled]:
        """Settle what is inside, and go on at the next key frame: packets are left out here."""
        self._before = None
        self._frame_numbers.forget_latest()
        return self._restart(reason)

    def _begin(self, packet: VideoPacket, content: PacketContent, data: bytes) -> bytes:
        """Make a decoder for a key frame and what follows; returns what to begin with.

        Raises:
            ImageError: It is no key frame, or cannot be decoded by itself.
        """
        if not content.is_key:
            raise NoPictureError(f'{self._waits}; the video goes on at the next key frame')
        if packet.codec in _WITH_PARAMETER_SETS and not self._parameters:
            raise ImageError(
                f'key frame of {packet.codec} without its parameter sets; have the encoder send '
                'them with every key frame (not in a "global header")'
            )
        try:
            import av

            context = av.CodecContext.create(packet.codec, 'r')
        except ImportError:
            raise ImageError('video needs `pip install "av>=14.1"`') from None
        except ValueError as error:
            raise ImageError(f'the FFmpeg of this PyAV has no decoder {packet.codec}') from error
        # By itself, frames would be decoded in several threads, each later by as many frames.
        context.thread_count = 1
        # It rounds widths up before it compares; `_picture` looks at what comes out.
        context.options = {'max_pixels': str(self._max_pixels + _ROUNDING * MAX_SIDE)}
        if packet.codec == 'hevc':
            # Otherwise it makes up frames that are missing. H.264's decoder marks such pictures.
            context.options |= {'err_detect': 'explode'}
        self._context = context
        return data if content.parameters else self._parameters + data

    def _is_missing_frames(self, packet: VideoPacket, content: PacketContent) -> bool:
        """Count frames that have not come; returns whether later ones may need them."""
        before, self._before = self._before, packet
        by_message = 0
        if before is not None:
            if before.sequence and packet.sequence:
                by_message = packet.sequence - before.sequence - 1
            if before.number is not None and packet.number is not None:
                step = packet.number - before.number
                # Others give times, and packets of B-frames come in another order than they count.
                if self._step == 1 and not self._has_b_frames:
                    by_message = max(by_message, step - 1)
                self._step = step
        if not 0 < by_message < _MAX_GAP:
            by_message = 0
        by_frame = self._frame_numbers.count_missing(content)
        self.lost += by_message or by_frame
        return by_frame > 0 if self._frame_numbers.are_known else by_message > 0

    def _feed(self, packet: VideoPacket, data: bytes) -> list[Settled]:
        from av import Packet
        from av.error import FFmpegError

        fed = Packet(data)
        fed.pts = self._time
        self._inside[self._time] = packet
        self._time += 1
        try:
            frames = self._context.decode(fed)
        except FFmpegError as error:
            del self._inside[fed.pts]
            settled = self._restart('a frame before it could not be decoded')
            reason = ImageError(
                f'{len(packet.data)} bytes of {self._codec} cannot be decoded: they are damaged, '
                f'need frames that are lost, or ask for more than {self._max_pixels / 1e6:g} '
                f'megapixels ({error.strerror})'
            )
            return [*settled, (packet, reason)]
        self._has_b_frames = self._context.has_b_frames > 0
        settled = self._settle(frames)
        for time in [t for t in self._inside if t < self._time - _MAX_DELAY]:
            settled.append((self._inside.pop(time), NoPictureError('no picture came of it')))
        return settled

    def _settle(self, frames: Iterable[Any]) -> list[Settled]:
        settled: list[Settled] = []
        for frame in frames:
            packet = self._inside.pop(frame.pts, None)
            if packet is None:
                continue
            if frame.is_corrupt:
                # Later ones would be made of it, and not be marked.
                settled.append((packet, ImageError('a damaged frame, decoded in part')))
                settled += self._restart('a frame before it was damaged', drain=False)
            else:
                settled.append((packet, self._picture(packet, frame)))
        return settled

    def _picture(self, packet: VideoPacket, frame: Any) -> VideoPicture | ImageError:
        try:
            check_size(frame.width, frame.height, self._max_pixels)
        except ImageError as error:
            return error
        return VideoPicture(packet.header, frame)

    def _restart(self, reason: str, drain: bool = True) -> list[Settled]:
        """Settle what is inside; a key frame has to come next.

        Not even the decoder is kept: H.264's is not quite itself after an error.
        """
        context, self._context = self._context, None
        settled: list[Settled] = []
        if context is not None:
            self._waits = reason
            if drain and self._inside:
                from av.error import FFmpegError

                with contextlib.suppress(FFmpegError):
                    settled = self._settle(context.decode(None))
        settled += [(packet, NoPictureError(reason)) for packet in self._inside.values()]
        self._inside.clear()
        return settled
