"""The node's messages as those of rosbags."""

from rosbags.typesys.store import Typestore

from cliptrase_ros.messages.maker import MessageMaker


def bag_message_maker(typestore: Typestore) -> MessageMaker:
    """Make a maker of messages of a typestore's classes, to be serialised by it."""
    return MessageMaker(
        lambda message_type, **fields: typestore.types[message_type](**fields),
        lambda values: values,
    )
