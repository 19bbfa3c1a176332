"""The messages of cameras as the bytes that the middleware carries.

rclpy would copy the pixels of each into a message of its own, and copy them once more to send it.
"""

import sys
from dataclasses import replace

import numpy as np

from cliptrase_ros.messages.type_names import COMPRESSED_IMAGE, IMAGE, Message
from cliptrase_ros.messages.typestore import make_typestore, typestore_message_maker

_TYPESTORE = make_typestore()
_NO_BYTES = np.empty(0, np.uint8)

#: Makes messages that `serialize` takes.
MAKER = typestore_message_maker(_TYPESTORE)


def type_name(message_class: type) -> str:
    """Name of the type of rclpy's messages of a class, as in `sensor_msgs/msg/Image`."""
    package, kind, *_ = message_class.__module__.split('.')
    return f'{package}/{kind}/{message_class.__name__}'


def deserialize(data: bytes, message_type: str) -> Message:
    """Read a message; numbers in sequences stay where they are, in `data`.

    Raises:
        ValueError: These bytes are no such message.
    """
    try:
        return _TYPESTORE.deserialize_cdr(memoryview(data), message_type)
    except Exception as error:
        # Whatever a length or a text in bytes of anybody's making leads to.
        raise ValueError(f'{len(data)} bytes that are no {message_type}: {error}') from error


def serialize(message: Message) -> bytes:
    """Write a message made by `MAKER`."""
    name = message.__msgtype__
    if name not in (IMAGE, COMPRESSED_IMAGE):
        return bytes(_TYPESTORE.serialize_cdr(message, name))
    # `data` comes last: its length and its bytes, which are copied once and not three times.
    head = _TYPESTORE.serialize_cdr(replace(message, data=_NO_BYTES), name)
    length = len(message.data).to_bytes(4, sys.byteorder)
    return b''.join((head[:-4], length, message.data))
