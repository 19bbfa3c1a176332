"""Writing recordings: rosbags' writer, with the official library for MCAP files.

That keeps what rosbags' own leaves out: publish times, sequence numbers, attachments, metadata.
"""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mcap.records import Attachment, Metadata
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer, WriterError

from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.mcap_file import HASH_KEY, QOS_KEY, ROSBAG2_METADATA
from cliptrase_ros.bag.reader import BagMessage, BagReader, Topic

# For types of which no definition is known: rosbags insists on a hash.
_UNKNOWN_HASH = f'RIHS01_{"0" * 64}'


class _McapStorage:
    """An MCAP file, in the form rosbags' writer has its storages.

    Attributes:
        topics: Those of another recording, by name and type, with what MCAP said of them there.
        sent: Of the next message, publish time (None for its log time) and sequence number.
    """

    def __init__(self, path: Path, compression: CompressionMode):
        self.path = path / f'{path.name}.mcap'
        self.topics: dict[tuple[str, str], Topic] = {}
        self.sent: tuple[int | None, int] = None, 0
        self._file = self.path.open('xb')
        packed = compression is CompressionMode.STORAGE
        self.mcap = McapWriter(
            self._file, compression=CompressionType.ZSTD if packed else CompressionType.NONE
        )
        self.mcap.start('ros2')
        # Ids by message type. MCAP has 0 for topics without a schema, whose type is ''.
        self._schemas = {'': 0}
        self._channels: dict[int, int] = {}

    def add_msgtype(self, connection: Connection) -> None:
        topic = self.topics.get((connection.topic, connection.msgtype))
        definition = connection.msgdef
        encoding, data = f'ros2{definition.format.name.lower()}', definition.data.encode()
        if topic and topic.schema and topic.schema.data:
            encoding, data = topic.schema.encoding, topic.schema.data
        if connection.msgtype:
            number = self.mcap.register_schema(connection.msgtype, encoding, data)
            self._schemas[connection.msgtype] = number

    def add_connection(self, connection: Connection, offered_qos_profiles: str) -> None:
        topic = self.topics.get((connection.topic, connection.msgtype))
        metadata = {HASH_KEY: '' if connection.digest == _UNKNOWN_HASH else connection.digest}
        metadata |= topic.metadata if topic else {}
        if offered_qos_profiles:
            metadata[QOS_KEY] = offered_qos_profiles
        self._channels[connection.id] = self.mcap.register_channel(
            connection.topic,
            connection.ext.serialization_format,
            self._schemas[connection.msgtype],
            metadata,
        )

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        publish_ns, sequence = self.sent
        self.sent = None, 0
        publish_ns = timestamp if publish_ns is None else publish_ns
        self.mcap.add_message(self._channels[connection.id], timestamp, data, publish_ns, sequence)

    def close(self, version: int, metadata: str) -> None:
        self.mcap.add_metadata(ROSBAG2_METADATA, {'serialized_metadata': metadata})
        self.mcap.finish()
        self._file.close()

    def abort(self) -> None:
        self._file.close()


class BagWriter(Writer):
    """Writes a recording that has another one in it.

    Args:
        path: Folder, which must not exist yet.
        storage: 'mcap' or 'sqlite3'.
        compress: Whether to compress with zstd: chunks of MCAP, messages of SQLite.
    """

    STORAGE_PLUGINS = {  # noqa: RUF012
        **Writer.STORAGE_PLUGINS,
        StoragePlugin.MCAP: _McapStorage,
    }

    def __init__(self, path: Path, storage: str, compress: bool):
        plugin = StoragePlugin[storage.upper()]
        super().__init__(path, version=Writer.VERSION_LATEST, storage_plugin=plugin)
        if compress:
            mode = CompressionMode.STORAGE if storage == 'mcap' else CompressionMode.MESSAGE
            self.set_compression(mode, CompressionFormat.ZSTD)
        self._copies: dict[tuple[str, str], Connection] = {}
        self._sent_lost = 0
        self._extras_lost: list[str] = []

    def add_topic(self, topic: Topic) -> None:
        """Add a topic of another recording, whose messages are to be copied."""
        if isinstance(self.storage, _McapStorage):
            self.storage.topics[topic.name, topic.type] = topic
        self._copies[topic.name, topic.type] = self.add_connection(
            topic.name,
            topic.type,
            msgdef=topic.definition,
            rihs01=topic.type_hash or _UNKNOWN_HASH,
            serialization_format=topic.serialization,
            offered_qos_profiles=topic.qos,
        )

    def copy(self, message: BagMessage) -> None:
        """Write a message of another recording."""
        if isinstance(self.storage, _McapStorage):
            self.storage.sent = message.publish_ns, message.sequence
        elif message.publish_ns not in (None, message.stamp_ns) or message.sequence:
            self._sent_lost += 1
        connection = self._copies[message.topic.name, message.topic.type]
        self.write(connection, message.stamp_ns, message.data)

    def copy_extras(self, reader: BagReader) -> None:
        """Write attachments, metadata and custom data of another recording."""
        for key, value in reader.custom_data.items():
            self.set_custom_data(key, value)
        for extra in reader.extras():
            self._copy_extra(extra)

    def _copy_extra(self, extra: Attachment | Metadata) -> None:
        if not isinstance(self.storage, _McapStorage):
            self._extras_lost.append(extra.name)
        elif isinstance(extra, Attachment):
            self.storage.mcap.add_attachment(
                extra.create_time, extra.log_time, extra.name, extra.media_type, extra.data
            )
        else:
            self.storage.mcap.add_metadata(extra.name, extra.metadata)

    def not_kept(self) -> str:
        """What of the other recording the storage has no place for; '' if nothing."""
        lost = []
        if self._sent_lost:
            lost.append(f'publish times and sequence numbers of {self._sent_lost} messages')
        if self._extras_lost:
            lost.append(f'attachments and metadata ({", ".join(self._extras_lost)})')
        return ' and '.join(lost)


@contextlib.contextmanager
def new_recording(
    destination: Path, like: BagReader, storage: str | None = None, compress: bool | None = None
) -> Iterator[BagWriter]:
    """A recording to write that appears, complete, when all has gone well; or else not at all.

    Args:
        destination: Its folder.
        like: The input, which says what is not given.
        storage: 'mcap' or 'sqlite3'.

    Raises:
        BagError: It could not be written.
    """
    try:
        with (
            _all_or_nothing(destination) as folder,
            BagWriter(
                folder,
                storage or like.storage,
                like.compressed if compress is None else compress,
            ) as writer,
        ):
            yield writer
    except (OSError, sqlite3.Error, WriterError) as error:
        raise BagError(f'{destination} could not be written: {error}') from error


@contextlib.contextmanager
def _all_or_nothing(destination: Path) -> Iterator[Path]:
    """A folder to write to that takes its place when all has gone well, and vanishes otherwise."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The writer names its files after the folder, so it has the final name from the beginning.
    hidden = tempfile.mkdtemp(
        prefix=f'.{destination.name}.', suffix='.partial', dir=destination.parent
    )
    try:
        folder = Path(hidden) / destination.name
        yield folder
        if destination.exists():
            raise BagError(f'{destination} has come into being meanwhile')
        folder.rename(destination)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
