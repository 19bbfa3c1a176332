"""MCAP files: by their index where it is complete, else from the beginning up to the break.

A recorder that was killed leaves a file without an index, which ordinary readers refuse as a whole.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

from mcap.exceptions import EndOfFile
from mcap.reader import SeekingReader
from mcap.records import (
    Attachment,
    Channel,
    Chunk,
    DataEnd,
    Footer,
    McapRecord,
    Message,
    Metadata,
    Schema,
)
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.summary import Summary
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)

from cliptrase_ros.bag.types import DEFINITION_FORMATS, BreakError, profiles_of

MCAP_MAGIC = b'\x89MCAP0\r\n'
#: What a channel's metadata call the quality of service, and the hash of the type.
QOS_KEY, HASH_KEY = 'offered_qos_profiles', 'topic_type_hash'
#: What rosbag2 calls the metadata that it writes itself.
ROSBAG2_METADATA = 'rosbag2'


class McapFile:
    """An MCAP file. Without a complete index it is read through once to begin with.

    Attributes:
        connections: Topics as rosbags' readers have them.
        compressed: Whether chunks are.
        reason: Why nothing follows the messages, '' if they are complete; it is known only when
            `messages` or `extras` has ended.

    Raises:
        BreakError: It is no MCAP file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._size = path.stat().st_size
        self.reason = ''
        self.compressed = False
        self.channels: dict[int, Channel] = {}
        self.schemas: dict[int, Schema] = {}
        # Attachments and metadata, and where they are in a file that has an index: place, length.
        self._extras: list[Attachment | Metadata] = []
        self._extra_places: list[tuple[int, int]] = []
        self._file = path.open('rb')
        try:
            if self._file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                raise BreakError(
                    'it is empty' if not self._size else 'it does not begin as MCAP does'
                )
            self._file.seek(0)
            self._reader = SeekingReader(
                self._file, validate_crcs=True, record_size_limit=self._size
            )
            self._index = self._complete_index()
            counts = self._read_through() if self._index is None else self._read_index(self._index)
        except BaseException:
            self.close()
            raise
        self.connections = [
            self._connection(channel, counts.get(channel.id, 0))
            for channel in self.channels.values()
        ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes, int, int]]:
        """Messages of some topics, by log time; in the order of a file without a complete index.

        Yields:
            Connection, log time (ns), data, publish time (ns), sequence number.
        """
        wanted = {connection.id: connection for connection in connections}
        read = 0
        try:
            for record in self._records() if self._index is None else self._by_time(connections):
                if isinstance(record, Message) and record.channel_id in wanted:
                    read += 1
                    yield (
                        wanted[record.channel_id],
                        *(record.log_time, record.data, record.publish_time, record.sequence),
                    )
        except BreakError as error:
            self.reason = str(error)
            return
        if self._index is not None and len(wanted) == len(self.channels):
            counted = self._index.statistics.message_count
            if read < counted:
                self.reason = f'{read} messages could be read, its index counts {counted}'

    def extras(self) -> Iterator[Attachment | Metadata]:
        """Attachments and metadata. One that is damaged is left out, and `reason` says so."""
        yield from self._extras
        for place, length in self._extra_places:
            try:
                self._file.seek(place)
                content = BytesIO(self._file.read(length))
                record = next(StreamReader(content, skip_magic=True).records)
                if not isinstance(record, Attachment | Metadata):
                    raise BreakError('it is another record')
            except Exception as error:
                # Anything may stand in a damaged file or index.
                self.reason = (
                    f'the attachment or metadata at byte {place} is damaged ({_describe(error)})'
                )
            else:
                yield record

    def _complete_index(self) -> Summary | None:
        try:
            index = self._reader.get_summary()
        except Exception:
            # Whatever the library makes of a damaged file; reading through it says more.
            return None
        counts = index.statistics if index else None
        complete = (
            counts
            and index.chunk_indexes
            and counts.chunk_count == len(index.chunk_indexes)
            and counts.channel_count == len(index.channels)
            and counts.attachment_count == len(index.attachment_indexes)
            and counts.metadata_count == len(index.metadata_indexes)
            and {c.schema_id for c in index.channels.values()} <= {0, *index.schemas}
        )
        return index if complete else None

    def _read_index(self, index: Summary) -> dict[int, int]:
        """Take what the index says. Returns the number of messages by channel."""
        self.channels, self.schemas = index.channels, index.schemas
        extras = (*index.attachment_indexes, *index.metadata_indexes)
        self._extra_places = sorted((extra.offset, extra.length) for extra in extras)
        self.compressed = any(chunk.compression for chunk in index.chunk_indexes)
        return index.statistics.channel_message_counts

    def _read_through(self) -> dict[int, int]:
        """Find out what an index would have said. Returns the number of messages by channel."""
        counts: Counter[int] = Counter()
        try:
            for record in self._records():
                if isinstance(record, Message):
                    counts[record.channel_id] += 1
                elif isinstance(record, Schema):
                    self.schemas.setdefault(record.id, record)
                elif isinstance(record, Channel):
                    self.channels.setdefault(record.id, record)
                elif isinstance(record, Attachment | Metadata):
                    self._extras.append(record)
        except BreakError as error:
            self.reason = str(error)
            if not self.channels:
                raise
        return counts

    def _records(self) -> Iterator[McapRecord]:
        """Records in the order of the file, up to its index. Raises BreakError at damage."""
        with self._path.open('rb') as file:
            records = StreamReader(file, emit_chunks=True, record_size_limit=self._size).records
            while True:
                place = file.tell()
                try:
                    record = next(records)
                    contents = [record]
                    if isinstance(record, Chunk):
                        self.compressed = self.compressed or bool(record.compression)
                        contents = breakup_chunk(record, validate_crc=True)
                except Exception as error:
                    # The library raises what it likes over damage.
                    if isinstance(error, EndOfFile) and file.tell() == self._size:
                        raise BreakError(f'it breaks off at byte {self._size}') from error
                    raise BreakError(
                        f'what begins at byte {place} is damaged ({_describe(error)})'
                    ) from error
                if isinstance(record, DataEnd | Footer):
                    return
                yield from contents

    def _by_time(self, connections: Collection[Connection]) -> Iterator[Message]:
        topics = {connection.topic for connection in connections}
        try:
            for _, _, message in self._reader.iter_messages(topics):
                yield message
        except Exception as error:
            # The library has read the chunk as a whole before it looks into it.
            raise BreakError(
                f'the chunk that ends at byte {self._file.tell()} is damaged ({_describe(error)})'
            ) from error

    def _connection(self, channel: Channel, count: int) -> Connection:
        schema = self.schemas.get(channel.schema_id)
        form = DEFINITION_FORMATS.get(
            schema.encoding if schema else '', MessageDefinitionFormat.NONE
        )
        text = '' if form is MessageDefinitionFormat.NONE else schema.data.decode(errors='replace')
        return Connection(
            channel.id,
            channel.topic,
            schema.name if schema else '',
            MessageDefinition(form, text),
            channel.metadata.get(HASH_KEY, ''),
            count,
            ConnectionExtRosbag2(
                channel.message_encoding, profiles_of(channel.metadata.get(QOS_KEY, ''))
            ),
            self,
        )


def _describe(error: Exception) -> str:
    """What an exception says, or what it is called where it says nothing."""
    return str(error) or type(error).__name__
