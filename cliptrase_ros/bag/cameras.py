"""Which topics of a recording are labelled, and under what names."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.reader import BagReader, FoundMessage, Topic
from cliptrase_ros.bag.types import CAMERA_TOPICS, VOCABULARY_TOPIC
from cliptrase_ros.messages.images import MEASUREMENTS, check_compressed, check_image
from cliptrase_ros.messages.transports import TRANSPORTS, VIDEO_TYPES, raw_topic
from cliptrase_ros.messages.type_names import CLASS_MASKS, IMAGE
from cliptrase_ros.messages.video import video_packet

#: Name of the node whose topics are added.
DEFAULT_NODE = '/cliptrase'

# The first of them that a camera has is labelled.
_IMAGE_TYPES = tuple(TRANSPORTS.values())


@dataclass(frozen=True)
class BagCamera:
    """An image topic of a recording and the camera name its labels go under."""

    name: str
    topic: Topic


@dataclass
class CameraChoice:
    """The cameras of a recording, and the image topics that are none.

    Attributes:
        left_out: Why there is nothing to label, by topic.
        refused: Number of images and the first reason, by topic of images none of which can be
            labelled.
    """

    cameras: list[BagCamera] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)


def choose_cameras(
    reader: BagReader, wanted: Sequence[str], node: str = DEFAULT_NODE
) -> CameraChoice:
    """Choose the image topics to label.

    Args:
        wanted: `TOPIC` or `TOPIC=NAME` each. Empty for every camera that has pictures, raw rather
            than compressed and that rather than video, and nothing that is labels already.

    Raises:
        BagError: A topic that is not there or holds no pictures, or no topic with pictures at all.
    """
    images = {topic.name: topic for topic in reader.topics.values() if topic.type in _IMAGE_TYPES}
    choice = CameraChoice()
    if wanted:
        for entry in wanted:
            name, _, given = entry.partition('=')
            topic = _find_wanted_topic(reader, images, name)
            if reason := _look_for_pictures(reader, topic).reason:
                choice.left_out[name] = reason
            else:
                choice.cameras.append(_make_camera(topic, given, choice.cameras))
        if choice.left_out:
            raise BagError(_join_reasons(choice.left_out))
    else:
        _choose_all(reader, [t for t in images.values() if not _is_output(reader, t, node)], choice)
    if not choice.cameras:
        reasons = choice.left_out | {name: reason for name, (_, reason) in choice.refused.items()}
        raise BagError(
            f'no topic with pictures found; {_join_reasons(reasons)}'
            if reasons
            else f'no image topic found; the topics are {_list_topics(reader)}'
        )
    _refuse_clashes(reader, choice.cameras, node)
    return choice


def _choose_all(reader: BagReader, topics: Sequence[Topic], choice: CameraChoice) -> None:
    looks = {topic.name: _look_for_pictures(reader, topic) for topic in topics}
    raw = {topic.name for topic in topics if topic.type == IMAGE}
    best: dict[str, Topic] = {}
    for topic in sorted(topics, key=lambda topic: _IMAGE_TYPES.index(topic.type)):
        if not looks[topic.name].reason:
            best.setdefault(_images_of(topic, raw), topic)
    for topic in topics:
        name, look, labelled = topic.name, looks[topic.name], best.get(_images_of(topic, raw))
        if topic is labelled:
            choice.cameras.append(_make_camera(topic, '', choice.cameras))
        elif labelled and _is_before(labelled, topic):
            choice.left_out[name] = f'{labelled.name} is labelled'
        elif look.refused and not labelled:
            choice.refused[name] = (look.refused, look.reason)
        else:
            choice.left_out[name] = look.reason


def _images_of(topic: Topic, raw: Collection[str]) -> str:
    """What topics that hold the same images have in common: the topic of the raw ones."""
    beside, _, _ = topic.name.rpartition('/')
    return beside if topic.type != IMAGE and beside in raw else raw_topic(topic.name)


def _is_before(first: Topic, second: Topic) -> bool:
    return _IMAGE_TYPES.index(first.type) <= _IMAGE_TYPES.index(second.type)


def _is_output(reader: BagReader, topic: Topic, node: str) -> bool:
    """Whether a topic is what this node publishes, or one of another name."""
    beside = f'{topic.name.rpartition("/")[0]}/masks'
    return topic.name.startswith(f'{node}/') or (beside, CLASS_MASKS) in reader.topics


def _make_camera(topic: Topic, given: str, cameras: Sequence[BagCamera]) -> BagCamera:
    taken = {camera.name for camera in cameras}
    name = given or _free_name(camera_name(topic.name), taken)
    if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name) or name in taken:
        raise BagError(
            f'camera name {name!r} is taken, or not made of letters, digits and underscores'
        )
    return BagCamera(name, topic)


def _look_for_pictures(reader: BagReader, topic: Topic) -> FoundMessage:
    # Not only the first message counts: drivers may send an empty or odd one when they start.
    if topic.type == IMAGE:
        return reader.find(topic, check_image, lambda image: MEASUREMENTS.match(image.encoding))
    if topic.type in VIDEO_TYPES:
        return reader.find(topic, video_packet)
    # Only `format` is checked, and all messages of a topic have the same.
    return reader.find(topic, check_compressed, lambda image: True)


def _join_reasons(reasons: Mapping[str, str]) -> str:
    return '; '.join(f'{name}: {reason}' for name, reason in reasons.items())


def camera_name(topic: str) -> str:
    """Camera name for an image topic: `/front/color/image_raw/compressed` is `front_color`."""
    parts = [part for part in raw_topic(topic).split('/') if part]
    if len(parts) > 1 and parts[-1].startswith('image'):
        parts.pop()
    name = re.sub(r'[^A-Za-z0-9_]', '_', '_'.join(parts))
    return name if re.match(r'[A-Za-z_]', name) else f'_{name}'


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f'{name}_{number}', number + 1
    return free


def _find_wanted_topic(reader: BagReader, images: dict[str, Topic], name: str) -> Topic:
    if name in images:
        return images[name]
    for topic in reader.topics.values():
        if topic.name == name:
            raise BagError(f'{name} holds {topic.type}, which is no image')
    raise BagError(f'there is no topic {name}; the topics are {_list_topics(reader)}')


def _list_topics(reader: BagReader) -> str:
    return ', '.join(f'{topic.name} ({topic.type})' for topic in reader.topics.values())


def _refuse_clashes(reader: BagReader, cameras: Sequence[BagCamera], node: str) -> None:
    there = {name for name, _ in reader.topics}
    names = [VOCABULARY_TOPIC, *(f'{c.name}/{output}' for c in cameras for output in CAMERA_TOPICS)]
    clashes = sorted(there & {f'{node}/{name}' for name in names})
    if clashes:
        raise BagError(
            f'the recording already has {", ".join(clashes)}; have the new topics under another '
            'name (--node /NAME)'
        )


def check_node(node: str) -> None:
    """Refuse what is no full name of a node. Raises BagError."""
    if not re.fullmatch(r'(/[A-Za-z_][A-Za-z0-9_]*)+', node):
        raise BagError(f'the node is {node!r}; it must be a full name such as /cliptrase')


def check_destination(source: Path, destination: Path) -> None:
    """Refuse a destination that exists or lies within the recording. Raises BagError."""
    if destination.exists() or destination.is_symlink():
        raise BagError(f'{destination} exists already; remove it or choose another name')
    if source.resolve() in destination.resolve().parents:
        raise BagError(f'{destination} lies within the recording {source}')
    try:
        destination.name.encode()
    except UnicodeEncodeError as error:
        raise BagError(
            f'{destination} is a name that metadata.yaml cannot have, not being UTF-8'
        ) from error
