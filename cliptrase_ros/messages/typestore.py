"""Types of messages as rosbags has them, for recordings and for the bytes of the middleware."""

from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from cliptrase_ros.messages.maker import MessageMaker
from cliptrase_ros.messages.type_names import LABEL_INFO

_PACKAGE = 'cliptrase_ros'
_OWN = ('ClassMask', 'ClassMasks', 'Vocabulary', 'VocabularyClass')
# Definitions of another package, which need not be installed where recordings are labelled.
_VISION_MSGS = {
    'vision_msgs/msg/VisionClass': 'uint16 class_id\nstring class_name\n',
    LABEL_INFO: 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n',
}


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
