"""What can be told of a packet of video without decoding it: microseconds, a few bytes read.

H.264 and H.265 as Annex B (units after start codes), AV1 as open bitstream units (section 5.2),
VP9 as frames, as they are in messages.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_START_CODE = b'\0\0\1'

# Types of units of H.264 and H.265.
_H264_FRAME, _H264_KEY, _H264_PARAMETERS = range(1, 6), (5,), 7
_HEVC_FRAME, _HEVC_KEY, _HEVC_PARAMETERS = range(32), range(16, 24), 33
# Of AV1: a frame, its header alone, and the header of the sequence.
_AV1_FRAME, _AV1_PARAMETERS = (3, 6), 1

# Headers end within so many bytes.
_HEADER = 64

# Profiles of H.264 whose parameters tell the format of chroma.
_CHROMA_PROFILES = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)


class BitstreamError(ValueError):
    """A packet that is not laid out as its codec has it."""


@dataclass(frozen=True)
class PacketContent:
    """What a packet holds.

    Attributes:
        has_frame: Whether there is a frame, or a part of one.
        is_key: Whether decoding can begin here, given the parameter sets.
        parameters: Of H.264 and H.265, what comes before the frame, b'' without parameter sets.
        sequence: H.264's sequence parameter set, b'' without; no start code before it.
        slice: The same of the first slice of H.264, its beginning.
    """

    has_frame: bool
    is_key: bool
    parameters: bytes = b''
    sequence: bytes = b''
    slice: bytes = b''


def look_into(codec: str, data: bytes) -> PacketContent:
    """Look for frames, key frames and parameters.

    Args:
        codec: h264, hevc, libdav1d or vp9, as FFmpeg calls the decoders.

    Raises:
        BitstreamError: The packet is not laid out as its codec has it.
    """
    if codec == 'vp9':
        return _look_into_vp9(data)
    if codec == 'libdav1d':
        types = set(_av1_units(data))
        return PacketContent(bool(types.intersection(_AV1_FRAME)), _AV1_PARAMETERS in types)
    if codec == 'hevc':
        return _look_into_hevc(data)
    return _look_into_h264(data)


def _look_into_h264(data: bytes) -> PacketContent:
    sequence = b''
    for begin in _units(data):
        kind = data[begin] & 31
        if kind == _H264_PARAMETERS:
            sequence = _unescaped(data, begin)
        elif kind in _H264_FRAME:
            # Encoders that never send a whole key frame, but refresh a picture part by part, send
            # the parameters where that begins.
            is_key = kind in _H264_KEY or bool(sequence)
            before = data[: begin - 3] if sequence else b''
            return PacketContent(True, is_key, before, sequence, _unescaped(data, begin))
    return PacketContent(False, False, data if sequence else b'', sequence)


def _look_into_hevc(data: bytes) -> PacketContent:
    has_parameters = False
    for begin in _units(data):
        kind = data[begin] >> 1 & 63
        if kind == _HEVC_PARAMETERS:
            has_parameters = True
        elif kind in _HEVC_FRAME:
            before = data[: begin - 3] if has_parameters else b''
            return PacketContent(True, kind in _HEVC_KEY, before)
    return PacketContent(False, False, data if has_parameters else b'')


def _look_into_vp9(data: bytes) -> PacketContent:
    bits = _Bits(data[:1])
    if bits.read(2) != 2:
        raise BitstreamError('no frame of VP9')
    # Profiles of 3 have a bit more.
    profile = bits.read(1) | bits.read(1) << 1
    bits.read(profile == 3)
    shows_earlier, is_key = bits.read(1), not bits.read(1)
    return PacketContent(True, is_key and not shows_earlier)


def _units(data: bytes) -> Iterator[int]:
    """Where the units of H.264 or H.265 begin."""
    begin = data.find(_START_CODE)
    if begin < 0 or data[:begin].strip(b'\0'):
        raise BitstreamError(
            'no start code at its beginning: publish Annex B, as encoders do unless they write '
            'into a file (bit stream filter h264_mp4toannexb or hevc_mp4toannexb)'
        )
    while begin >= 0 and begin + 3 < len(data):
        yield begin + 3
        begin = data.find(_START_CODE, begin + 3)


def _unescaped(data: bytes, begin: int) -> bytes:
    return data[begin : begin + _HEADER].replace(b'\0\0\3', b'\0\0')


def _av1_units(data: bytes) -> Iterator[int]:
    """Types of the units of AV1."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        yield head >> 3 & 15
        if head & 0x80:
            raise BitstreamError('no units of AV1')
        if not head & 2:
            # Without a size: the last one.
            return
        size = 0
        for place in range(8):
            if at >= len(data):
                raise BitstreamError('units of AV1 that are cut short')
            byte = data[at]
            at += 1
            size |= (byte & 127) << 7 * place
            if byte < 128:
                break
        at += size
    if at > len(data):
        raise BitstreamError('units of AV1 that are cut short')


class FrameNumbers:
    """Whether frames of H.264 are missing that others need, by the numbers they have."""

    def __init__(self):
        self._bits = 0
        self._skipped_bits = 0
        self._latest: int | None = None

    @property
    def are_known(self) -> bool:
        """Whether the stream has said how frames are numbered."""
        return self._bits > 0

    def forget_latest(self) -> None:
        """The next frame need not be the one after the latest."""
        self._latest = None

    def count_missing(self, content: PacketContent) -> int:
        """How many frames are missing before that of a packet."""
        try:
            if content.sequence:
                self._bits, self._skipped_bits = _frame_number_bits(content.sequence)
            if not content.slice or not self._bits:
                return 0
            head = content.slice[0]
            bits = _Bits(content.slice[1:])
            for _ in range(3):  # first macroblock, type of slice, picture parameter set
                bits.read_number()
            bits.read(self._skipped_bits)
            number = bits.read(self._bits)
        except BitstreamError:
            # Whoever decodes it will say what is wrong.
            return 0
        before = self._latest
        if head >> 5 & 3:  # others need this one
            self._latest = number
        if before is None or head & 31 in _H264_KEY or number == before:
            return 0
        return (number - before - 1) % (1 << self._bits)


def _frame_number_bits(sequence: bytes) -> tuple[int, int]:
    """Bits of a frame's number and before it, by a sequence parameter set; 0 if it has gaps."""
    profile, skipped = sequence[1] if len(sequence) > 3 else 0, 0
    bits = _Bits(sequence[4:])
    bits.read_number()
    if profile in _CHROMA_PROFILES:
        if bits.read_number() == 3:
            skipped = 2 * bits.read(1)
        bits.read_number()
        bits.read_number()
        bits.read(1)
        if bits.read(1):
            # Scaling lists, which robots' encoders do not send: not worth reading them.
            return 0, 0
    length = bits.read_number() + 4
    order = bits.read_number()
    if order == 0:
        bits.read_number()
    elif order == 1:
        bits.read(1)
        bits.read_number()
        bits.read_number()
        for _ in range(min(bits.read_number(), 255)):
            bits.read_number()
    bits.read_number()
    may_have_gaps = bits.read(1)
    return (0 if may_have_gaps or length > 16 else length), skipped


class _Bits:
    """Reads bits, the highest of a byte first; raises BitstreamError at the end."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data, 'big')
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise BitstreamError('cut short')
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def read_number(self) -> int:
        """Read a number of Exp-Golomb's code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
