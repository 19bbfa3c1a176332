"""Types and names of what stands in a bag."""

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

#: Topics of a camera, NODE/CAMERA/ before them: names by id, and some of `CAMERA_OUTPUTS`.
LABEL_INFO_TOPIC = 'label_info'
CAMERA_TOPICS = ('label', LABEL_INFO_TOPIC, 'masks', 'detections', 'overlay')
#: The topic of the node itself, NODE/ before it.
VOCABULARY_TOPIC = 'vocabulary'

#: How message definitions are written, by what rosbag2 calls it.
DEFINITION_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
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
