"""Types of messages as rosbags has them, for recordings and for the bytes of the middleware."""

from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cliptrase_ros.messages.maker import MessageMaker
from cliptrase_ros.messages.type_names import (
    COMPRESSED_VIDEO,
    DETECTIONS,
    DETECTIONS_3D,
    FFMPEG_PACKET,
    LABEL_INFO,
)

_PACKAGE = 'cliptrase_ros'
_OWN = ('ClassMask', 'ClassMasks', 'Vocabulary', 'VocabularyClass')
# Definitions of other packages, which need not be installed where recordings are labelled.
_OTHERS = {
    LABEL_INFO: 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold',
    'vision_msgs/msg/VisionClass': 'uint16 class_id\nstring class_name',
    DETECTIONS: 'std_msgs/Header header\nvision_msgs/Detection2D[] detections',
    'vision_msgs/msg/Detection2D': 'std_msgs/Header header\n'
    'vision_msgs/ObjectHypothesisWithPose[] results\nvision_msgs/BoundingBox2D bbox\nstring id',
    'vision_msgs/msg/BoundingBox2D': 'vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y',
    'vision_msgs/msg/Pose2D': 'vision_msgs/Point2D position\nfloat64 theta',
    'vision_msgs/msg/Point2D': 'float64 x\nfloat64 y',
    DETECTIONS_3D: 'std_msgs/Header header\nvision_msgs/Detection3D[] detections',
    'vision_msgs/msg/Detection3D': 'std_msgs/Header header\n'
    'vision_msgs/ObjectHypothesisWithPose[] results\nvision_msgs/BoundingBox3D bbox\nstring id',
    'vision_msgs/msg/BoundingBox3D': 'geometry_msgs/Pose center\ngeometry_msgs/Vector3 size',
    'vision_msgs/msg/ObjectHypothesisWithPose': 'vision_msgs/ObjectHypothesis hypothesis\n'
    'geometry_msgs/PoseWithCovariance pose',
    'vision_msgs/msg/ObjectHypothesis': 'string class_id\nfloat64 score',
    FFMPEG_PACKET: 'std_msgs/Header header\nint32 width\nint32 height\nstring encoding\n'
    'uint64 pts\nuint8 flags\nbool is_bigendian\nuint8[] data',
    COMPRESSED_VIDEO: 'builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\n'
    'string format',
}


def make_typestore() -> Typestore:
    """Types of a ROS 2 distribution, of this package, and those of others that it reads or writes.

    Raises:
        FileNotFoundError: This package's message definitions are not installed.
    """
    store = get_typestore(Stores.LATEST)
    types = {}
    for name, text in _OTHERS.items():
        types.update(get_types_from_msg(text, name))
    for name in _OWN:
        text = definition_file(name).read_text(encoding='utf-8')
        types.update(get_types_from_msg(text, f'{_PACKAGE}/msg/{name}'))
    store.register({name: fields for name, fields in types.items() if name not in store.types})
    return store


def typestore_message_maker(typestore: Typestore) -> MessageMaker:
    """Make a maker of messages of a typestore's classes, to be serialised by it."""
    return MessageMaker(
        lambda message_type, **fields: typestore.types[message_type](**fields),
        lambda values: values,
    )


def definition_file(name: str) -> Path:
    """Path of the definition of a message of this package. Raises FileNotFoundError."""
    file = f'{name}.msg'
    package = Path(__file__).resolve().parent.parent
    # Where pip installs them, where they are in the source tree, and where colcon installs them.
    candidates = [package / 'message_definitions' / file, package.parent / 'msg' / file]
    candidates += [folder / 'share' / _PACKAGE / 'msg' / file for folder in package.parents]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f'{file} of {_PACKAGE} is not installed beside {package}')
