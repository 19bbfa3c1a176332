"""Which topics of a recording are labelled, and under what names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.reader import BagError, BagReader, Topic
from cliptrase_ros.bag.types import COMPRESSED_IMAGE, IMAGE
from cliptrase_ros.image_messages import check_compressed, check_image

#: Name of the node whose topics are added.
DEFAULT_NODE = '/cliptrase'

_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)


@dataclass(frozen=True)
class BagCamera:
    """An image topic of a recording and the camera name its labels go under."""

    name: str
    topic: Topic


def choose_cameras(
    reader: BagReader, wanted: Sequence[str], typestore: Typestore, node: str = DEFAULT_NODE
) -> list[BagCamera]:
    """Choose the image topics to label.

    wanted: `TOPIC` or `TOPIC=NAME` each; empty for every topic that holds pictures, raw rather
    than compressed where there are both of one camera, and nothing of the node itself.
    Raises BagError: a topic that is not there, or that holds no pictures; none found.
    """
    images = {topic.name: topic for topic in reader.topics.values() if topic.type in _IMAGE_TYPES}
    named = [entry.partition('=') for entry in wanted]
    if wanted:
        chosen = [(_wanted_topic(reader, images, name), given) for name, _, given in named]
    else:
        found = {n: t for n, t in images.items() if not n.startswith(f'{node}/')}
        chosen = [
            (topic, '')
            for name, topic in found.items()
            if not (topic.type == COMPRESSED_IMAGE and name.rpartition('/')[0] in found)
        ]
    cameras: list[BagCamera] = []
    reasons = []
    for topic, given in chosen:
        if reason := _no_pictures(reader.first(topic), topic, typestore):
            reasons.append(f'{topic.name}: {reason}')
            continue
        name = given or _free_name(camera_name(topic.name), {c.name for c in cameras})
        if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', name) or name in {c.name for c in cameras}:
            raise BagError(
                f'camera name {name!r} is taken, or not made of letters, digits and underscores'
            )
        cameras.append(BagCamera(name, topic))
    if wanted and reasons:
        raise BagError('; '.join(reasons))
    if not cameras:
        raise BagError(
            f'no topic with pictures found; {"; ".join(reasons)}'
            if reasons
            else f'no image topic found; the topics are {_listed(reader)}'
        )
    _refuse_clashes(reader, cameras, node)
    return cameras


def camera_name(topic: str) -> str:
    """Camera name for an image topic: `/front/color/image_raw/compressed` is `front_color`."""
    parts = [part for part in topic.split('/') if part]
    if len(parts) > 1 and parts[-1] == 'compressed':
        parts.pop()
    if len(parts) > 1 and parts[-1].startswith('image'):
        parts.pop()
    name = re.sub(r'[^A-Za-z0-9_]', '_', '_'.join(parts))
    return name if re.match(r'[A-Za-z_]', name) else f'_{name}'


def _free_name(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f'{name}_{number}', number + 1
    return free


def _wanted_topic(reader: BagReader, images: dict[str, Topic], name: str) -> Topic:
    if name in images:
        return images[name]
    for topic in reader.topics.values():
        if topic.name == name:
            raise BagError(f'{name} holds {topic.type}, which is no image')
    raise BagError(f'there is no topic {name}; the topics are {_listed(reader)}')


def _listed(reader: BagReader) -> str:
    return ', '.join(f'{topic.name} ({topic.type})' for topic in reader.topics.values())


def _no_pictures(data: bytes | None, topic: Topic, typestore: Typestore) -> str:
    if data is None:
        return 'it has no messages'
    if topic.serialization != 'cdr':
        return f'it is serialised as {topic.serialization}; only cdr can be read'
    try:
        message = typestore.deserialize_cdr(data, topic.type)
        (check_image if topic.type == IMAGE else check_compressed)(message)
    except Exception as error:
        # The library raises what it likes over data that are no message.
        return f'its first message is no picture ({error})'
    return ''


def _refuse_clashes(reader: BagReader, cameras: Sequence[BagCamera], node: str) -> None:
    there = {name for name, _ in reader.topics}
    outputs = ('label', 'label_info', 'masks', 'overlay')
    names = ['vocabulary', *(f'{c.name}/{output}' for c in cameras for output in outputs)]
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
