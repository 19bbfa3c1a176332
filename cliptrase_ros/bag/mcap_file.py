"""MCAP files: by their index where it is complete, else from the beginning up to the break.

A recorder that was killed leaves a file without an index, which ordinary readers refuse as a whole.
"""

import heapq
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Attachment, Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.summary import Summary
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2.storage_mcap import decompress

from cliptrase_ros.bag.salvage import DEFINITION_FORMATS, BreakError, profiles_of

MCAP_MAGIC = b'\x89MCAP0\r\n'
#: What a channel's metadata call the quality of service, and the hash of the type.
QOS_KEY, HASH_KEY = 'offered_qos_profiles', 'topic_type_hash'
#: What rosbag2 calls the metadata that it writes itself.
ROSBAG2_METADATA = 'rosbag2'

_RECORDS = {
    Opcode.SCHEMA: Schema,
    Opcode.CHANNEL: Channel,
    Opcode.ATTACHMENT: Attachment,
    Opcode.METADATA: Metadata,
}


class _Raw(NamedTuple):
    position: int
    op: int
    body: bytes


class McapFile:
    """An MCAP file.

    connections: as rosbags' readers have them. channels, schemas: of the file, by their ids.
    compressed: whether chunks are. reason: why nothing follows the messages, '' if they are
    complete; it grows while messages are read. Without a complete index the file is read through
    once to begin with. Raises BreakError if it is no MCAP file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._size = path.stat().st_size
        self.reason = ''
        self.compressed = False
        self.channels: dict[int, Channel] = {}
        self.schemas: dict[int, Schema] = {}
        self._extras: list[int] = []
        self._index = self._complete_index()
        if self._index is None:
            counts = self._read_through()
        else:
            self.channels, self.schemas = self._index.channels, self._index.schemas
            indexes = (*self._index.attachment_indexes, *self._index.metadata_indexes)
            self._extras = sorted(index.offset for index in indexes)
            self.compressed = any(chunk.compression for chunk in self._index.chunk_indexes)
            counts = self._index.statistics.channel_message_counts
        self.connections = [
            self._connection(channel, counts.get(channel.id, 0))
            for channel in self.channels.values()
        ]

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes, int, int]]:
        """Messages: connection, log time in nanoseconds, data, publish time, sequence number.

        By log time, or in the order of the file where it has no complete index.
        """
        wanted = {connection.id: connection for connection in connections}
        read = 0
        try:
            messages = self._in_order_of_file() if self._index is None else self._by_time(wanted)
            for message in messages:
                if message.channel_id in wanted:
                    read += 1
                    yield (
                        wanted[message.channel_id],
                        *(message.log_time, message.data, message.publish_time, message.sequence),
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
        with self._path.open('rb') as file:
            for position in self._extras:
                try:
                    record = _parse(self._read_at(file, position))
                    if not isinstance(record, Attachment | Metadata):
                        raise BreakError('it is another record')
                except BreakError as error:
                    self.reason = (
                        f'the attachment or metadata at byte {position} is damaged ({error})'
                    )
                else:
                    yield record

    def _complete_index(self) -> Summary | None:
        try:
            with self._path.open('rb') as file:
                index = SeekingReader(file).get_summary()
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

    def _read_through(self) -> Counter:
        """Fill in what an index would have said. Returns the number of messages by channel."""
        counts = Counter()
        try:
            for raw in self._records():
                record = _parse(raw)
                if isinstance(record, Message):
                    counts[record.channel_id] += 1
                elif isinstance(record, Schema):
                    self.schemas.setdefault(record.id, record)
                elif isinstance(record, Channel):
                    self.channels.setdefault(record.id, record)
                elif record is not None:
                    self._extras.append(raw.position)
        except BreakError as error:
            self.reason = str(error)
            if not self.channels:
                raise
        return counts

    def _in_order_of_file(self) -> Iterator[Message]:
        for raw in self._records():
            if raw.op == Opcode.MESSAGE:
                yield _parse(raw)

    def _records(self) -> Iterator[_Raw]:
        with self._path.open('rb') as file:
            if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                raise BreakError(
                    'it is empty' if self._size == 0 else 'it does not begin as MCAP does'
                )
            for raw in _scan(file, self._size):
                if raw.op == Opcode.CHUNK:
                    yield from self._unpack(raw)
                elif raw.op in (Opcode.DATA_END, Opcode.FOOTER):
                    return
                else:
                    yield raw
        raise BreakError(f'it ends at byte {self._size} without the end mark of MCAP')

    def _by_time(self, wanted: Mapping[int, Connection]) -> Iterator[Message]:
        chunks = [
            chunk
            for chunk in self._index.chunk_indexes
            # Without offsets nothing is known of what is in it.
            if not chunk.message_index_offsets or wanted.keys() & chunk.message_index_offsets.keys()
        ]
        waiting: list[tuple[int, int, int, Message]] = []
        broken = None
        with self._path.open('rb') as file:
            for chunk in sorted(chunks, key=lambda c: (c.message_start_time, c.chunk_start_offset)):
                # What the next chunks have cannot come before.
                begin = (chunk.message_start_time, chunk.chunk_start_offset)
                while waiting and waiting[0][:2] < begin:
                    yield heapq.heappop(waiting)[-1]
                try:
                    for raw in self._unpack(self._read_at(file, chunk.chunk_start_offset)):
                        if raw.op == Opcode.MESSAGE:
                            message = _parse(raw)
                            order = (message.log_time, chunk.chunk_start_offset, raw.position)
                            heapq.heappush(waiting, (*order, message))
                except BreakError as error:
                    broken = error
                    break
        while waiting:
            yield heapq.heappop(waiting)[-1]
        if broken:
            raise broken

    def _read_at(self, file: BinaryIO, position: int) -> _Raw:
        # Anything may stand in a damaged index.
        if position < self._size:
            file.seek(position)
            return next(_scan(file, self._size))
        raise BreakError(f'its index names byte {position}, beyond its end')

    def _unpack(self, raw: _Raw) -> Iterator[_Raw]:
        """Records in a chunk."""
        try:
            chunk = Chunk.read(_Exact(BytesIO(raw.body)))
            self.compressed = self.compressed or bool(chunk.compression)
            content = decompress(
                *(chunk.data, chunk.compression, chunk.uncompressed_size, chunk.uncompressed_crc)
            )
        except Exception as error:
            # Whatever the decompressors make of damaged data.
            raise BreakError(f'the chunk at byte {raw.position} is damaged ({error})') from error
        yield from _scan(BytesIO(content), len(content))

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


class _Exact(ReadDataStream):
    """What a record consists of, which must be as long as it says."""

    def read(self, length: int) -> bytes:
        try:
            data = super().read(length)
        except EndOfFile:
            data = b''
        if len(data) != length:
            raise EndOfFile('it contradicts its own length')
        return data


def _scan(file: BinaryIO, size: int) -> Iterator[_Raw]:
    while (position := file.tell()) < size:
        head = file.read(9)
        if len(head) < 9:
            raise BreakError(f'it breaks off at byte {position}')
        op, length = struct.unpack('<BQ', head)
        if length > size - position - 9:
            raise BreakError(f'it breaks off at byte {position}, within a record')
        yield _Raw(position, op, file.read(length))


def _parse(raw: _Raw) -> McapRecord | None:
    stream = _Exact(BytesIO(raw.body))
    try:
        if raw.op == Opcode.MESSAGE:
            return Message.read(stream, len(raw.body))
        return _RECORDS[raw.op].read(stream) if raw.op in _RECORDS else None
    except Exception as error:
        # Chunks need not carry a checksum, so anything may stand in a damaged one.
        raise BreakError(f'the record at byte {raw.position} is damaged ({error})') from error
