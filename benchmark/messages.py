"""What reading an image and making each output costs the node, in milliseconds: medians.

`source tools/env.sh && python benchmark/messages.py`
"""

import argparse
import statistics

import cv2
import numpy as np
import torch
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from cliptrase_ros.benchmark.timing import interleaved
from cliptrase_ros.messages.depth import depth_in_metres, labelled_points
from cliptrase_ros.messages.images import (
    check_compressed_stream,
    check_image,
    compress_picture,
    decompress_to_rgb,
)
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.ros.conversions import MAKER, points_message, to_rgb
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import class_mask
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

CLASSES = 20


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
    result = Segmentation(label, confidence, vocabulary)
    header = Header()
    raw = MAKER.make_image(picture, 'rgb8', header)
    bgr = MAKER.make_image(picture[..., ::-1], 'bgr8', header)
    jpeg = CompressedImage(header=header, format='jpeg', data=compress_picture(picture))
    png = CompressedImage(
        header=header, format='png', data=cv2.imencode('.png', picture)[1].tobytes()
    )
    millimetres = generator.integers(500, 9000, (height, width)).astype(np.uint16)
    depth = MAKER.make_image(millimetres, '16UC1', header)
    rays = model_rays(CameraModel(width, width, width / 2, height / 2), width, height)

    def labelled() -> LabelledPicture:
        # Anew, because it keeps what was found in it.
        return LabelledPicture(header, picture, result)

    def points():
        array = labelled_points(depth_in_metres(depth), rays, picture, label, confidence)
        return points_message(array, header)

    return {
        'check raw': lambda: check_image(raw),
        'check jpeg': lambda: check_compressed_stream(jpeg),
        'read rgb8': lambda: to_rgb(raw),
        'read bgr8': lambda: to_rgb(bgr),
        'read jpeg': lambda: decompress_to_rgb(jpeg),
        'read png': lambda: decompress_to_rgb(png),
        **{
            topic: lambda make=make: make(MAKER, labelled())
            for topic, (_, make) in CAMERA_OUTPUTS.items()
        },
        'mask/CLASS': lambda: MAKER.make_image(class_mask(result, 'thing 3'), 'mono8', header),
        'points': points,
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repetitions', type=int, default=30)
    arguments = parser.parse_args()
    sizes = ((480, 640), (1080, 1920))
    cpu, repetitions = torch.device('cpu'), arguments.repetitions
    taken = [interleaved(cases(*size), repetitions, cpu) for size in sizes]
    print(f'{"ms":18}' + ''.join(f'{f"{width} x {height}":>14}' for height, width in sizes))
    for name in taken[0]:
        medians = (statistics.median(of_size[name]) for of_size in taken)
        print(f'{name:18}' + ''.join(f'{ms:14.3f}' for ms in medians))


if __name__ == '__main__':
    main()
