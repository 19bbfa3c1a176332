"""Messages as they stand in a bag: types, and what the node would have published."""

from pathlib import Path

import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cliptrase_ros.image_messages import mask_run_lengths
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import Vocabulary

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CLASS_MASKS = 'cliptrase_ros/msg/ClassMasks'
VOCABULARY = 'cliptrase_ros/msg/Vocabulary'
LABEL_INFO = 'vision_msgs/msg/LabelInfo'

_PACKAGE = 'cliptrase_ros'
_OWN = ('ClassMask', 'ClassMasks', 'Vocabulary', 'VocabularyClass')
# Of another package, which need not be installed where bags are labelled.
_VISION_MSGS = {
    'vision_msgs/msg/VisionClass': 'uint16 class_id\nstring class_name\n',
    LABEL_INFO: 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n',
}
_INFINITE = QosTime(9223372036, 854775807)


def output_qos(latched: bool) -> Qos:
    """Quality of service the node offers: reliable, keep last 1; latched: transient local."""
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _INFINITE,
        _INFINITE,
        QosLiveliness.AUTOMATIC,
        _INFINITE,
        False,
    )


def make_typestore() -> Typestore:
    """Types of a ROS 2 distribution, of vision_msgs/LabelInfo and of this package.

    Raises FileNotFoundError where this package's message definitions are not installed.
    """
    store = get_typestore(Stores.LATEST)
    types = {}
    for name, text in _VISION_MSGS.items():
        types.update(get_types_from_msg(text, name))
    for name in _OWN:
        text = definition_file(name).read_text(encoding='utf-8')
        types.update(get_types_from_msg(text, f'{_PACKAGE}/msg/{name}'))
    store.register({name: fields for name, fields in types.items() if name not in store.types})
    return store


def definition_file(name: str) -> Path:
    """Path of the definition of a message of this package. Raises FileNotFoundError."""
    file = f'{name}.msg'
    package = Path(__file__).resolve().parent.parent
    # As pip installs them, in the source tree, and as colcon installs them.
    candidates = [package / 'message_definitions' / file, package.parent / 'msg' / file]
    candidates += [folder / 'share' / _PACKAGE / 'msg' / file for folder in package.parents]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f'{file} of {_PACKAGE} is not installed beside {package}')


class MessageMaker:
    """Makes the node's messages, serialised.

    header: of a message of the same typestore; it is used unchanged.
    """

    def __init__(self, typestore: Typestore):
        self._store = typestore

    def header(self, stamp_ns: int, frame_id: str = ''):
        """Make a std_msgs/Header. stamp_ns: nanoseconds."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        time = self._make('builtin_interfaces/msg/Time', sec=seconds, nanosec=nanoseconds)
        return self._make('std_msgs/msg/Header', stamp=time, frame_id=frame_id)

    def image(self, pixels: np.ndarray, encoding: str, header) -> memoryview:
        """sensor_msgs/Image without row padding, serialised.

        pixels: uint8 (H, W) or (H, W, C).
        """
        pixels = np.ascontiguousarray(pixels)
        height, width = pixels.shape[:2]
        message = self._make(
            IMAGE,
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=pixels.nbytes // height,
            data=pixels.ravel(),
        )
        return self._serialise(message)

    def masks(self, segmentation: Segmentation, header) -> memoryview:
        """cliptrase_ros/ClassMasks of every class present, serialised."""
        masks = []
        for present in classes_present(segmentation):
            box, lengths = mask_run_lengths(segmentation.label == present.entry.id)
            masks.append(
                self._make(
                    'cliptrase_ros/msg/ClassMask',
                    class_id=present.entry.id,
                    class_name=present.entry.name,
                    confidence=present.confidence,
                    area=present.area,
                    roi=self._make(
                        'sensor_msgs/msg/RegionOfInterest',
                        x_offset=box.x_offset,
                        y_offset=box.y_offset,
                        height=box.height,
                        width=box.width,
                        do_rectify=False,
                    ),
                    run_lengths=lengths,
                )
            )
        height, width = segmentation.label.shape
        message = self._make(
            CLASS_MASKS,
            header=header,
            height=height,
            width=width,
            vocabulary_version=segmentation.vocabulary.version,
            masks=masks,
        )
        return self._serialise(message)

    def label_info(self, vocabulary: Vocabulary, threshold: float, header) -> memoryview:
        """vision_msgs/LabelInfo, serialised. threshold: least confidence, 0..1."""
        classes = [
            self._make('vision_msgs/msg/VisionClass', class_id=c.id, class_name=c.name)
            for c in vocabulary.classes
        ]
        return self._serialise(
            self._make(LABEL_INFO, header=header, class_map=classes, threshold=threshold)
        )

    def vocabulary(self, vocabulary: Vocabulary, header) -> memoryview:
        """cliptrase_ros/Vocabulary, serialised."""
        classes = [
            self._make(
                'cliptrase_ros/msg/VocabularyClass',
                id=c.id,
                name=c.name,
                synonyms=list(c.synonyms),
                color=self._make(
                    'std_msgs/msg/ColorRGBA',
                    **dict(zip('rgb', (value / 255.0 for value in c.color), strict=True)),
                    a=1.0,
                ),
            )
            for c in vocabulary.classes
        ]
        return self._serialise(
            self._make(
                VOCABULARY,
                header=header,
                version=vocabulary.version,
                classes=classes,
                background=list(vocabulary.background),
            )
        )

    def _make(self, message_type: str, **fields):
        return self._store.types[message_type](**fields)

    def _serialise(self, message) -> memoryview:
        return self._store.serialize_cdr(message, message.__msgtype__)
