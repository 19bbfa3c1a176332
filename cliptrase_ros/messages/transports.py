"""How image_transport calls the topics of one camera, and what comes on each."""

from cliptrase_ros.messages.type_names import (
    COMPRESSED_IMAGE,
    COMPRESSED_VIDEO,
    FFMPEG_PACKET,
    IMAGE,
)

#: Types of messages by transport. All but raw images come on TOPIC/TRANSPORT.
TRANSPORTS = {
    'raw': IMAGE,
    'compressed': COMPRESSED_IMAGE,
    'ffmpeg': FFMPEG_PACKET,
    'foxglove': COMPRESSED_VIDEO,
}

#: The same of depth images.
DEPTH_TRANSPORTS = {'raw': IMAGE, 'compressedDepth': COMPRESSED_IMAGE}

#: Types of the messages of which one alone may be no picture.
VIDEO_TYPES = (FFMPEG_PACKET, COMPRESSED_VIDEO)


def raw_topic(topic: str) -> str:
    """Topic of the raw images beside a topic of any transport."""
    base, _, transport = topic.rpartition('/')
    known = {*TRANSPORTS, *DEPTH_TRANSPORTS} - {'raw'}
    return base if base and transport in known else topic


def camera_info_topic(topic: str) -> str:
    """Topic of camera_info as image_transport has it: beside the raw images of a topic."""
    return f'{raw_topic(topic).rpartition("/")[0]}/camera_info'


def topic_of(raw: str, transport: str) -> str:
    """Topic of a transport beside that of the raw images."""
    return raw if transport == 'raw' else f'{raw}/{transport}'
