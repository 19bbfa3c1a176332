"""Types and names of what stands in a bag."""

from pathlib import Path

from rosbags.interfaces import (
    MessageDefinitionFormat,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2.metadata import parse_qos
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cliptrase_ros.messages.type_names import LABEL_INFO

#: Topics of a camera, NODE/CAMERA/ before them: names by id, and some of `CAMERA_OUTPUTS`.
LABEL_INFO_TOPIC = 'label_info'
CAMERA_TOPICS = ('label', LABEL_INFO_TOPIC, 'masks', 'overlay')
#: The topic of the node itself, NODE/ before it.
VOCABULARY_TOPIC = 'vocabulary'

#: How message definitions are written, by what rosbag2 calls it.
DEFINITION_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
}

_PACKAGE = 'cliptrase_ros'
_OWN = ('ClassMask', 'ClassMasks', 'Vocabulary', 'VocabularyClass')
# Definitions of another package, which need not be installed where recordings are labelled.
_VISION_MSGS = {
    'vision_msgs/msg/VisionClass': 'uint16 class_id\nstring class_name\n',
    LABEL_INFO: 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n',
}
_INFINITE = QosTime(9223372036, 854775807)


class BreakError(Exception):
    """The file cannot be read any further; the message says where and why."""


def profiles_of(text: str) -> list[Qos]:
    """Quality of service as a file has it in YAML."""
    try:
        return parse_qos(text)
    except Exception:
        # Without its quality of service a topic is still worth having.
        return []


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

    Raises:
        FileNotFoundError: This package's message definitions are not installed.
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
    # Where pip installs them, where they are in the source tree, and where colcon installs them.
    candidates = [package / 'message_definitions' / file, package.parent / 'msg' / file]
    candidates += [folder / 'share' / _PACKAGE / 'msg' / file for folder in package.parents]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f'{file} of {_PACKAGE} is not installed beside {package}')
