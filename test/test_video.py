"""Video messages decoded one after the other, whole, cut, damaged and lying."""

import random
import re
import time

import numpy as np
import pytest
from video_streams import (
    ENCODERS,
    GOP,
    Packet,
    av,
    compressed_video,
    encode,
    ffmpeg_packet,
    picture,
)

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.video import (
    NoPictureError,
    VideoDecoder,
    VideoPicture,
    video_packet,
)

CODECS = tuple(ENCODERS)
KINDS = (ffmpeg_packet, compressed_video)


def settle(packets, codec, make=compressed_video, sequences=None, decoder=None):
    """Whatever comes of packets, each once: number of the packet, and picture or error."""
    decoder = decoder or VideoDecoder()
    settled = []
    for place, packet in enumerate(packets):
        sequence = sequences[place] if sequences else 0
        settled += decoder.decode(video_packet(make(packet, codec), sequence=sequence))
    settled += decoder.finish()
    numbers = [packet.header.stamp.sec - 1000 for packet, _ in settled]
    assert sorted(numbers) == sorted(packet.number for packet in packets)
    return [(number, outcome) for number, (_, outcome) in zip(numbers, settled, strict=True)]


def pictures(settled):
    """Of the packets that gave some, by their numbers, in order."""
    return {number: o.to_rgb() for number, o in settled if isinstance(o, VideoPicture)}


def reasons(settled):
    return {number: str(o) for number, o in settled if isinstance(o, ImageError)}


def difference(pixels, number):
    """Mean difference to the picture that was encoded: a few levels, if nothing is missing."""
    return np.abs(pixels.astype(int) - picture(number, *pixels.shape[:2])).mean()


def assert_right(found):
    assert {number: difference(pixels, number) for number, pixels in found.items()} == {
        number: pytest.approx(0, abs=9) for number in found
    }


@pytest.mark.parametrize('make', KINDS)
@pytest.mark.parametrize('codec', CODECS)
def test_each_packet_gives_its_picture_at_once(codec, make):
    decoder = VideoDecoder()
    for packet in encode(codec):
        message = make(packet, codec)
        ((_, outcome),) = decoder.decode(video_packet(message))
        assert outcome.header.stamp == getattr(message, 'timestamp', None) or message.header.stamp
        assert outcome.header.frame_id == 'front'
        pixels = outcome.to_rgb()
        assert pixels.shape == (64, 96, 3) and pixels.dtype == np.uint8
        assert_right({packet.number: pixels})
    assert decoder.finish() == [] and decoder.lost == 0


@pytest.mark.parametrize(
    ('encoding', 'codec'),
    [
        ('h264;yuv420p;bgr8;bgr8', 'h264'),
        ('H.264', 'h264'),
        ('h264_nvenc', 'h264'),
        ('libx264rgb', 'h264'),
        ('hevc_vaapi', 'hevc'),
        ('h265', 'hevc'),
        ('libaom-av1', 'libdav1d'),
        ('librav1e', 'libdav1d'),
        ('vp9', 'vp9'),
    ],
)
def test_codec_by_the_names_of_encoders(encoding, codec):
    packet = encode('h264')[0]
    assert video_packet(ffmpeg_packet(packet, 'h264', encoding=encoding)).codec == codec


def test_pictures_that_come_later_have_the_header_of_their_packet():
    packets = encode('h264', b_frames=2)
    order = [packet.number for packet in packets]
    assert order != sorted(order)
    for make in KINDS:
        decoder = VideoDecoder()
        settled = settle(packets, 'h264', make, decoder=decoder)
        assert [number for number, _ in settled] == sorted(order)
        assert_right(pictures(settled))
        assert decoder.lost == 0


@pytest.mark.parametrize('codec', CODECS)
def test_a_stream_begins_at_its_next_key_frame(codec):
    settled = settle(encode(codec)[3:], codec)
    assert list(pictures(settled)) == list(range(GOP, 2 * GOP))
    assert_right(pictures(settled))
    assert all(isinstance(o, NoPictureError) for n, o in settled if n < GOP)
    assert 'no key frame has come yet' in reasons(settled)[3]


@pytest.mark.parametrize('b_frames', [0, 2])
@pytest.mark.parametrize('codec', ['h264', 'h265'])
def test_no_picture_is_made_of_frames_that_are_lost(codec, b_frames):
    if codec == 'h265' and av.library_versions['libavcodec'] < (62,):
        pytest.skip('FFmpeg before 8 (PyAV before 16) makes up frames of H.265 that are lost')
    packets = encode(codec, b_frames=b_frames)
    whole = pictures(settle(packets, codec))
    for lost in range(1, len(packets) - 1):
        settled = settle(packets[:lost] + packets[lost + 1 :], codec)
        for number, pixels in pictures(settled).items():
            assert np.array_equal(pixels, whole[number]), (lost, number)


@pytest.mark.parametrize('codec', CODECS)
def test_frames_that_the_middleware_counts_are_missed(codec):
    packets, numbers = encode(codec), range(1, 2 * GOP + 1)
    gone = (3, 4)
    kept = [p for p in packets if p.number not in gone]
    decoder = VideoDecoder()
    settled = settle(kept, codec, sequences=[numbers[p.number] for p in kept], decoder=decoder)
    assert decoder.lost == 2
    assert list(pictures(settled)) == [0, 1, 2, *range(GOP, 2 * GOP)]
    assert_right(pictures(settled))


@pytest.mark.parametrize('codec', ['h264', 'vp9'])
def test_frames_that_the_publisher_counts_are_missed(codec):
    kept = [p for p in encode(codec) if p.number != 4]
    decoder = VideoDecoder()
    settled = settle(kept, codec, ffmpeg_packet, decoder=decoder)
    assert decoder.lost == 1
    assert list(pictures(settled)) == [0, 1, 2, 3, *range(GOP, 2 * GOP)]
    assert 'lost' in reasons(settled)[5]


def test_times_instead_of_numbers_are_no_gaps():
    def in_microseconds(packet, codec):
        return ffmpeg_packet(packet, codec, pts=33_333 * packet.number)

    decoder = VideoDecoder()
    settled = settle(encode('vp9'), 'vp9', in_microseconds, decoder=decoder)
    assert decoder.lost == 0 and len(pictures(settled)) == 2 * GOP


def test_resolution_and_codec_change_in_the_middle():
    decoder, shapes, kinds = VideoDecoder(), [], KINDS * 4
    for make, codec in zip(kinds, (*CODECS, *CODECS), strict=True):
        for size in ((64, 96), (96, 64)):
            settled = settle(encode(codec, GOP, *size), codec, make, decoder=decoder)
            assert_right(pictures(settled))
            shapes += [pixels.shape[:2] for pixels in pictures(settled).values()]
    assert shapes == GOP * [(64, 96)] + GOP * [(96, 64)] + shapes[2 * GOP :]
    assert len(shapes) == 8 * 2 * GOP


def test_a_picture_refreshed_part_by_part_begins_where_it_is_whole():
    """Encoders may send no key frame at all, against bursts of data."""
    packets = encode('h264', 4 * GOP, **{'x264-params': 'intra-refresh=1'})
    settled = settle(packets[3:], 'h264')
    assert pictures(settled) and min(pictures(settled)) > GOP
    assert_right(pictures(settled))


def units(data):
    """Units of H.264 or H.265, without their start codes."""
    return [unit for unit in re.split(b'\0\0\0?\1', data) if unit]


def joined(parts):
    return b''.join(b'\0\0\0\1' + part for part in parts)


@pytest.mark.parametrize('codec', ['h264', 'h265'])
def test_parameter_sets_that_are_lacking_and_come_later(codec):
    first, *rest = encode(codec)
    frame = units(first.data)[-1]
    parameters = units(first.data)[:-1]
    settled = settle([Packet(0, joined([frame])), *rest[: GOP - 1]], codec)
    assert 'without its parameter sets' in reasons(settled)[0]
    assert not pictures(settled)
    apart = [Packet(-1, joined(parameters)), Packet(0, joined([frame])), *rest]
    settled = settle(apart, codec)
    assert list(reasons(settled)) == [-1]
    assert_right(pictures(settled))


def bits(*fields):
    """Numbers of H.264's parameter sets: (value, bits), or a value in Exp-Golomb's code."""
    text = ''
    for field in fields:
        value, width = field if isinstance(field, tuple) else (field + 1, 0)
        digits = f'{value:b}'
        text += digits.zfill(width) if width else '0' * (len(digits) - 1) + digits
    text += '1'
    text += '0' * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, 'big')


def test_a_stream_that_claims_gigabytes_takes_none():
    # Baseline, level 5.1, parameter set 0, frame numbers of 4 bits, order 2, one reference, no
    # gaps, 4095 x 4095 macroblocks, whole frames, inference, no cropping, no usage information.
    claim = bits((66, 8), (0, 8), (51, 8), 0, 0, 2, 1, (0, 1), 4094, 4094, *[(1, 1), (1, 1)])
    own = units(encode('h264')[0].data)
    own[0] = b'\x67' + claim
    begin = time.monotonic()
    settled = settle([Packet(0, joined(own)), *encode('h264')[1:]], 'h264')
    assert time.monotonic() - begin < 2
    assert 'more than 64 megapixels' in reasons(settled)[0]
    assert list(pictures(settled)) == list(range(GOP, 2 * GOP))


@pytest.mark.parametrize('codec', CODECS)
def test_larger_pictures_than_allowed_are_refused_and_smaller_ones_decoded(codec):
    decoder = VideoDecoder(max_pixels=64 * 96)
    settled = settle(encode(codec, GOP, 128, 128), codec, decoder=decoder)
    assert '0.006144 megapixels' in reasons(settled)[0] and not pictures(settled)
    assert len(pictures(settle(encode(codec, GOP), codec, decoder=decoder))) == GOP


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'data': np.empty(0, np.uint8)}, '0 bytes'),
        ({'encoding': 'mjpeg'}, "'mjpeg' is not known"),
        ({'encoding': ''}, 'not known'),
        ({'width': 2**31 - 1, 'height': 2**31 - 1}, 'megapixels'),
        ({'width': -5}, '0 x 64'),
    ],
)
def test_messages_that_cannot_be_used(changes, reason):
    with pytest.raises(ImageError, match=reason):
        video_packet(ffmpeg_packet(encode('h264')[0], 'h264', **changes))


@pytest.mark.parametrize(
    ('codec', 'data', 'reason'),
    [
        ('h264', b'\0\0\1\x45' + b'\x65' * 40, 'cannot be decoded|without its parameter'),
        ('h264', b'\0\0\0\x29\x65' + b'x' * 40, 'Annex B'),
        ('h265', b'hello', 'Annex B'),
        ('av1', b'\x0a\xff\xff', 'cut short'),
        ('vp9', b'\0hello', 'no frame of VP9'),
    ],
)
def test_data_that_are_no_video_cost_themselves(codec, data, reason):
    decoder = VideoDecoder()
    bad = settle([Packet(99, data)], codec, decoder=decoder)
    assert re.search(reason, reasons(bad)[99])
    assert len(pictures(settle(encode(codec), codec, decoder=decoder))) == 2 * GOP


@pytest.mark.parametrize('codec', ['h264', 'av1'])
def test_a_frame_cut_short_gives_no_picture_nor_do_those_that_need_it(codec):
    packets = encode(codec).copy()
    packets[3] = Packet(3, packets[3].data[: len(packets[3].data) // 2])
    settled = settle(packets, codec)
    assert list(pictures(settled)) == [0, 1, 2, *range(GOP, 2 * GOP)]
    assert not isinstance(dict(settled)[3], NoPictureError)
    assert_right(pictures(settled))


def test_whatever_comes_every_packet_is_settled_once():
    """Nothing is raised, and nothing hangs."""
    chance = random.Random(7)
    for _ in range(40):
        codec, decoder = chance.choice(CODECS), VideoDecoder(max_pixels=100_000)
        packets = []
        for packet in encode(codec, b_frames=2 if codec == 'h264' else 0):
            data = bytearray(packet.data)
            kind = chance.random()
            if kind < 0.2:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            elif kind < 0.3:
                data = data[: 1 + chance.randrange(len(data))]
            elif kind < 0.4:
                data = b'\0\0\1' + chance.randbytes(30)
            packets.append(Packet(packet.number, bytes(data)))
        settle(packets, codec, chance.choice(KINDS), decoder=decoder)
        assert len(pictures(settle(encode(codec), codec, decoder=decoder))) == 2 * GOP
