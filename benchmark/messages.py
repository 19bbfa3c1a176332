"""What reading an image and making each output costs the node, in milliseconds: medians.

`source tools/env.sh && python benchmark/messages.py`
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import cycle
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from cliptrase_ros.benchmark.timing import interleaved
from cliptrase_ros.messages.compressed_depth import decompress_depth
from cliptrase_ros.messages.depth import depth_in_metres, labelled_points
from cliptrase_ros.messages.ground import (
    cost_table,
    ground_costs,
    ground_depth,
    pose_of_body,
    view_ground,
)
from cliptrase_ros.messages.images import (
    check_compressed_stream,
    check_image,
    compress_picture,
    decompress_to_rgb,
)
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.messages.registration import register_depth
from cliptrase_ros.messages.video import VideoDecoder, VideoPacket
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import MAKER, points_message, to_rgb
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import class_mask, score_image
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.tracking import InstanceTracker

# The tests' encoder: the project only reads RVL.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent / 'test')]
from depth_streams import encode_depth  # noqa: E402

CLASSES = 20

#: Encoders as robots have them set, and the decoders of what they make.
ENCODERS = {
    'libx264': ('h264', {'preset': 'veryfast', 'tune': 'zerolatency'}),
    'libx265': (
        'hevc',
        {'preset': 'ultrafast', 'tune': 'zerolatency', 'x265-params': 'log-level=0'},
    ),
    'libsvtav1': ('libdav1d', {'preset': '10', 'svtav1-params': 'pred-struct=1'}),
}
#: Frames of a video that is decoded again and again, from one key frame to the next.
GOP = 30


def video_packets(encoder: str, picture: np.ndarray) -> list[VideoPacket]:
    """Packets of a video in which a picture moves."""
    codec, options = ENCODERS[encoder]
    context = av.CodecContext.create(encoder, 'w')
    context.height, context.width, context.pix_fmt = *picture.shape[:2], 'yuv420p'
    context.time_base, context.framerate, context.gop_size = Fraction(1, 30), 30, GOP
    context.max_b_frames, context.options = 0, options
    packets = []
    for number in range(GOP):
        moved = np.roll(picture, 3 * number, (0, 1))
        frame = av.VideoFrame.from_ndarray(moved, format='rgb24')
        frame.pts = number
        packets += context.encode(frame)
    packets += context.encode(None)
    return [VideoPacket(Header(), codec, bytes(packet)) for packet in packets]


def decode_each(encoder: str, picture: np.ndarray) -> Callable[[], object]:
    """Something that decodes the next packet whenever it is called."""
    packets, decoder = cycle(video_packets(encoder, picture)), VideoDecoder()
    return lambda: decoder.decode(next(packets))


def cases(height: int, width: int) -> dict:
    """What is timed, by name, for images of a size."""
    generator = np.random.default_rng(0)
    # Blobs, as labels and pictures have; noise would cost more and compress to nothing less.
    coarse = generator.integers(0, CLASSES, (height // 40, width // 40), np.uint8)
    label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    colours = generator.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    picture = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    confidence = generator.integers(0, 256, (height, width), np.uint8)
    vocabulary = parse_vocabulary([f'thing {i}' for i in range(CLASSES)])
    scores = generator.random((CLASSES + 5, 21, 28), np.float32)
    result = Segmentation(label, confidence, vocabulary, scores=scores)
    header = Header()
    raw = MAKER.make_image(picture, 'rgb8', header)
    bgr = MAKER.make_image(picture[..., ::-1], 'bgr8', header)
    jpeg = CompressedImage(header=header, format='jpeg', data=compress_picture(picture))
    png = CompressedImage(
        header=header, format='png', data=cv2.imencode('.png', picture)[1].tobytes()
    )
    # A slanted wall with noise of 2 mm and holes.
    rows, columns = np.indices((height, width))
    wall = 1500 + 2000 * columns / width + 500 * rows / height
    millimetres = (wall + generator.normal(0, 2, wall.shape)).astype(np.uint16)
    millimetres[generator.random(wall.shape) < 0.02] = 0
    depth = MAKER.make_image(millimetres, '16UC1', header)
    compressed_depth = {
        codec: CompressedImage(
            header=header,
            format=f'16UC1; compressedDepth {codec}',
            data=encode_depth(millimetres, codec),
        )
        for codec in ('png', 'rvl')
    }
    lens = CameraModel(width, width, width / 2, height / 2, (-0.2, 0.05, 0.001, 0.0, 0.0))
    half = CameraModel(width / 2, width / 2, width / 4, height / 4)
    small = depth_in_metres(MAKER.make_image(millimetres[::2, ::2], '16UC1', header))
    rays = model_rays(lens, width, height)

    def new_rays():
        model_rays.cache_clear()
        return model_rays(lens, width, height)

    (_, frame), *_ = VideoDecoder().decode(video_packets('libx264', picture)[0])
    seen = lens, width, height, pose_of_body(0, 0, 1, 0, 0.35, 0), 5.0, 0.05
    view = view_ground(*seen)
    costs = {f'thing {i}': i for i in range(10)}

    written = serialized.MAKER
    head = written.make_header(0, 'optical')
    tracker = InstanceTracker()

    def labelled() -> LabelledPicture:
        # Anew, because it keeps what was found in it.
        track = partial(tracker.track, time_ns=0)
        return LabelledPicture(head, picture, result, track=track)

    def points():
        array = labelled_points(depth_in_metres(depth), rays, picture, label, confidence)
        return points_message(array, header)

    def ground():
        cells = ground_costs(view, label, cost_table(costs, vocabulary))
        return serialized.serialize(written.make_grid(cells, view.cell_m, view.origin, head))

    def points_of_ground():
        depth = ground_depth(view, label, cost_table(costs, vocabulary))
        return points_message(labelled_points(depth, rays, picture, label, confidence), header)

    return {
        'check raw': lambda: check_image(raw),
        'check jpeg': lambda: check_compressed_stream(jpeg),
        'read rgb8': lambda: to_rgb(raw),
        'read bgr8': lambda: to_rgb(bgr),
        'read jpeg': lambda: decompress_to_rgb(jpeg),
        'read png': lambda: decompress_to_rgb(png),
        **{f'decode {encoder}': decode_each(encoder, picture) for encoder in ENCODERS},
        'video to rgb': frame.to_rgb,
        **{
            topic: lambda make=make: serialized.serialize(make(written, labelled()))
            for topic, (_, make) in CAMERA_OUTPUTS.items()
        },
        'mask/CLASS': lambda: MAKER.make_image(class_mask(result, 'thing 3'), 'mono8', header),
        'scores/PHRASE': lambda: MAKER.make_image(score_image(result, 'thing 3'), 'mono8', header),
        'detections_3d': lambda: serialized.serialize(
            written.make_detections_3d(labelled(), depth_in_metres(depth), rays)
        ),
        'points': points,
        'points: ground': points_of_ground,
        'ground': ground,
        'ground, new pose': lambda: view_ground(*seen),
        'depth 16UC1': lambda: depth_in_metres(depth),
        'depth png': lambda: decompress_depth(compressed_depth['png']),
        'depth rvl': lambda: decompress_depth(compressed_depth['rvl']),
        'depth of half': lambda: register_depth(small, half, lens, width, height),
        'rays of a lens': new_rays,
    }


def main() -> None:
    """Print a table."""
    os.environ.setdefault('SVT_LOG', '0')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repetitions', type=int, default=30)
    arguments = parser.parse_args()
    sizes = ((480, 640), (720, 1280), (1080, 1920))
    cpu, repetitions = torch.device('cpu'), arguments.repetitions
    taken = [interleaved(cases(*size), repetitions, cpu) for size in sizes]
    print(f'{"ms":18}' + ''.join(f'{f"{width} x {height}":>14}' for height, width in sizes))
    for name in taken[0]:
        medians = (statistics.median(of_size[name]) for of_size in taken)
        print(f'{name:18}' + ''.join(f'{ms:14.3f}' for ms in medians))


if __name__ == '__main__':
    main()
