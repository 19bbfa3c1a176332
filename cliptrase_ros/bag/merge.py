"""A recording and the labels of its images, which lie in another one, put together."""

import heapq
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.reader import BagReader
from cliptrase_ros.bag.writer import new_recording


@dataclass(frozen=True)
class MergeSummary:
    """What came of it.

    Attributes:
        messages: Number of those of the recording.
        labels: Number of those of the labels.
        strangers: How many of the latter have times that no message of the recording has.
        not_kept: What of them the storage has no place for, '' if nothing.
    """

    messages: int
    labels: int
    strangers: int
    not_kept: str


def merge_bags(
    reader: BagReader,
    labels: BagReader,
    destination: Path,
    storage: str | None = None,
    compress: bool | None = None,
) -> MergeSummary:
    """Write a recording with everything of the input, and the messages of its labels.

    Messages come in the order of log time, and at equal times those of the input first, so that
    labels follow their image.

    Args:
        reader: The input.
        labels: What was written with `BagSettings.sidecar`.
        destination: Folder of the new recording. It appears, complete, at the very end.
        storage: 'mcap' or 'sqlite3', None for that of the input.
        compress: None as the input is.

    Raises:
        BagError: A topic is in both, the input holds no messages, or the destination could not be
            written.
    """
    both = sorted({name for name, _ in reader.topics} & {name for name, _ in labels.topics})
    if both:
        raise BagError(
            f'{", ".join(both)}: in the recording as well as among the labels; either they are '
            'merged already, or label again under another name (--node /NAME)'
        )
    counts: Counter[str] = Counter()
    topics = {name for name, _ in reader.topics}
    strangers, latest_ns = 0, None
    with new_recording(destination, reader, storage, compress) as writer:
        for topic in (*reader.topics.values(), *labels.topics.values()):
            writer.add_topic(topic)
        for message in heapq.merge(
            reader.messages(), labels.messages(), key=lambda message: message.stamp_ns
        ):
            writer.copy(message)
            counts[message.topic.name] += 1
            if message.topic.name in topics:
                latest_ns = message.stamp_ns
            else:
                strangers += message.stamp_ns != latest_ns
        messages = sum(counts[name] for name in topics)
        if messages == 0:
            raise BagError('the recording holds no messages')
        writer.copy_extras(reader)
    return MergeSummary(messages, counts.total() - messages, strangers, writer.not_kept())
