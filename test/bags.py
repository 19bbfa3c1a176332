"""Small recordings for tests, written with the library alone."""

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed; `make test` brings it')
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

START = 1_700_000_000_000_000_000
STEP = 100_000_000
ODD_TYPE = 'my_robot_msgs/msg/Odd'
ODD_DEFINITION = 'std_msgs/Header header\nuint8[<=5] numbers\nstring<=9 word\n'


def store():
    typestore = get_typestore(Stores.LATEST)
    typestore.register(get_types_from_msg(ODD_DEFINITION, ODD_TYPE))
    return typestore


STORE = store()


def qos(durability=QosDurability.VOLATILE, reliability=QosReliability.BEST_EFFORT, depth=5):
    forever = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        reliability,
        durability,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )


def make(message_type, **fields):
    return STORE.types[message_type](**fields)


def header(stamp, frame='camera'):
    time = make('builtin_interfaces/msg/Time', sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make('std_msgs/msg/Header', stamp=time, frame_id=frame)


def picture(seed, height=48, width=64):
    """Blocks of a few colours, uint8 (H, W, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def image(pixels, encoding='rgb8', stamp=START, padding=0, frame='front', channels=None):
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return make(
        'sensor_msgs/msg/Image',
        header=header(stamp, frame),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.ravel(),
    )


def compressed(pixels, stamp=START, suffix='.png', format='rgb8; png compressed bgr8'):
    _, data = cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return make(
        'sensor_msgs/msg/CompressedImage',
        header=header(stamp, 'rear'),
        format=format,
        data=data.ravel(),
    )


def contents(frames=4):
    """(topic, type, qos, [(stamp, message)]) of a robot with two cameras and a depth image."""
    front, rear, depth, odd = [], [], [], []
    for i in range(frames):
        stamp = START + i * STEP
        front.append((stamp, image(picture(i), stamp=stamp, padding=5)))
        rear.append((stamp, compressed(picture(50 + i, 32, 48), stamp=stamp + 7)))
        metres = np.full((24, 32), 1000 + i, np.uint16)
        depth.append((stamp, image(metres, '16UC1', stamp)))
        values = np.arange(i % 5, dtype=np.uint8)
        odd.append(
            (stamp + 1, make(ODD_TYPE, header=header(stamp), numbers=values, word='ä' * (i % 4)))
        )
    text = make('std_msgs/msg/String', data='<robot/>')
    latched = qos(QosDurability.TRANSIENT_LOCAL, QosReliability.RELIABLE, 1)
    return [
        ('/robot_description', 'std_msgs/msg/String', [latched], [(START - 5, text)]),
        ('/front/image_raw', 'sensor_msgs/msg/Image', [qos()], front),
        ('/rear/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', [qos(depth=9)], rear),
        ('/front/depth/image_raw', 'sensor_msgs/msg/Image', [], depth),
        ('/odd', ODD_TYPE, [qos(), latched], odd),
    ]


def write_bag(
    path,
    topics=None,
    storage='mcap',
    compression=CompressionMode.NONE,
    custom=(('site', 'hall 3'),),
):
    """Write a recording; messages of equal time follow each other in the order of the topics."""
    topics = contents() if topics is None else topics
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression is not CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    for key, value in custom:
        writer.set_custom_data(key, value)
    with writer:
        connections = [
            writer.add_connection(name, kind, typestore=STORE, offered_qos_profiles=profiles)
            for name, kind, profiles, _ in topics
        ]
        rows = [
            (stamp, place, message)
            for place, (_, _, _, messages) in enumerate(topics)
            for stamp, message in messages
        ]
        for stamp, place, message in sorted(rows, key=lambda row: row[:2]):
            kind = topics[place][1]
            data = message if isinstance(message, bytes) else STORE.serialize_cdr(message, kind)
            writer.write(connections[place], stamp, bytes(data))
    return path
