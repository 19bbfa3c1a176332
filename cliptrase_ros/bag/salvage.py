"""What can still be read of storage files that were cut short or damaged.

A recorder that was killed leaves an MCAP file without its index, or an SQLite file shorter than
its own header says; ordinary readers refuse both as a whole.
"""

import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import apsw
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
)
from rosbags.rosbag2.metadata import parse_qos
from rosbags.rosbag2.storage_mcap import decompress

MCAP_MAGIC = b'\x89MCAP0\r\n'
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END, _FOOTER = 0x03, 0x04, 0x05, 0x06, 0x0F, 0x02
# Channel, sequence number, log time, publish time.
_MESSAGE_HEAD = struct.Struct('<HIQQ')
_FORMATS = {
    'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL,
    'omgidl': MessageDefinitionFormat.IDL,
}


class BreakError(Exception):
    """The file cannot be read any further; the message says where and why."""


@dataclass(frozen=True)
class _Record:
    op: int
    body: bytes


class SalvagedMcap:
    """The records of an MCAP file from its beginning up to the break.

    `connections` and `reason` (why nothing follows; '' if the data are complete) are known after
    construction, which reads through the file once. Raises BreakError if it is no MCAP file.
    """

    def __init__(self, path: Path):
        self._path = path
        self.reason = ''
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        channels: dict[int, Connection] = {}
        counts = Counter()
        try:
            for record in self._records():
                if record.op == _MESSAGE:
                    counts[_MESSAGE_HEAD.unpack_from(record.body)[0]] += 1
                else:
                    self._describe(record, channels)
        except BreakError as error:
            self.reason = str(error)
            if not channels:
                raise
        self.connections = [c._replace(msgcount=counts[c.id]) for c in channels.values()]

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Messages in the order of the file: connection, log time in nanoseconds, data."""
        wanted = {connection.id: connection for connection in connections}
        try:
            for record in self._records():
                if record.op == _MESSAGE:
                    channel, _, stamp, _ = _MESSAGE_HEAD.unpack_from(record.body)
                    if channel in wanted:
                        yield wanted[channel], stamp, record.body[_MESSAGE_HEAD.size :]
        except BreakError:
            return

    def close(self) -> None:
        """Nothing is kept open."""

    def _records(self) -> Iterator[_Record]:
        size = self._path.stat().st_size
        with self._path.open('rb') as file:
            if file.read(len(MCAP_MAGIC)) != MCAP_MAGIC:
                raise BreakError('it is empty' if size == 0 else 'it does not begin as MCAP does')
            for record in _scan(file, size):
                if record.op == _CHUNK:
                    yield from _unpack(record.body, file.tell())
                elif record.op in (_DATA_END, _FOOTER):
                    return
                else:
                    yield record
        raise BreakError(f'it ends at byte {size} without the end mark of MCAP')

    def _describe(self, record: _Record, channels: dict[int, Connection]) -> None:
        try:
            if record.op == _SCHEMA:
                self._read_schema(record.body)
            elif record.op == _CHANNEL:
                connection = self._read_channel(record.body)
                channels.setdefault(connection.id, connection)
        except Exception as error:
            # Chunks need not carry a checksum, so anything may stand in a damaged one.
            raise BreakError(f'the description of a topic is damaged ({error})') from error

    def _read_schema(self, body: bytes) -> None:
        reader = BytesIO(body)
        (number,) = struct.unpack('<H', reader.read(2))
        name, encoding, data = (_string(reader) for _ in range(3))
        form = _FORMATS.get(encoding.decode(), MessageDefinitionFormat.NONE)
        text = data.decode(errors='replace') if form is not MessageDefinitionFormat.NONE else ''
        self._schemas[number] = (name.decode(), MessageDefinition(form, text))

    def _read_channel(self, body: bytes) -> Connection:
        reader = BytesIO(body)
        number, schema = struct.unpack('<HH', reader.read(4))
        topic, encoding, metadata = (_string(reader) for _ in range(3))
        fields, profiles = BytesIO(metadata), []
        while fields.tell() < len(metadata):
            key, value = _string(fields), _string(fields)
            if key == b'offered_qos_profiles':
                profiles = _profiles(value.decode())
        nothing = MessageDefinition(MessageDefinitionFormat.NONE, '')
        message_type, definition = self._schemas.get(schema, ('', nothing))
        return Connection(
            number,
            topic.decode(),
            message_type,
            definition,
            '',
            0,
            ConnectionExtRosbag2(encoding.decode(), profiles),
            self,
        )


def _scan(file: BinaryIO, size: int) -> Iterator[_Record]:
    while (position := file.tell()) < size:
        head = file.read(9)
        if len(head) < 9:
            raise BreakError(f'it breaks off at byte {position}')
        op, length = struct.unpack('<BQ', head)
        if length > size - position - 9:
            raise BreakError(f'it breaks off at byte {position}, within a record')
        if op == _MESSAGE and length < _MESSAGE_HEAD.size:
            raise BreakError(f'the message at byte {position} is damaged')
        yield _Record(op, file.read(length))


def _unpack(chunk: bytes, end: int) -> Iterator[_Record]:
    try:
        reader = BytesIO(chunk)
        _, _, size, checksum = struct.unpack('<QQQI', reader.read(28))
        compression = _string(reader).decode()
        (length,) = struct.unpack('<Q', reader.read(8))
        content = decompress(reader.read(length), compression, size, checksum)
    except Exception as error:
        # Whatever the decompressors make of damaged data.
        raise BreakError(f'the chunk before byte {end} is damaged ({error})') from error
    yield from _scan(BytesIO(content), len(content))


def _profiles(text: str) -> list[Qos]:
    try:
        return parse_qos(text)
    except Exception:
        # Without its quality of service a topic is still worth having.
        return []


def _string(reader: BytesIO) -> bytes:
    head = reader.read(4)
    length = struct.unpack('<I', head)[0] if len(head) == 4 else -1
    text = reader.read(max(length, 0))
    if len(text) != length:
        raise BreakError('a record contradicts its own length')
    return text


class _StrictVfs(apsw.VFS):
    """Files that seem as long as they claim, and fail where they are not.

    SQLite refuses a file that is too short, or takes zeros for what is missing.
    """

    def __init__(self, size: int, claimed: int):
        self.name = f'cliptrase_{id(self)}'
        self._size, self._claimed = size, claimed
        super().__init__(self.name, '')

    def xOpen(self, name, flags):
        return _StrictFile(name, flags, self._size, self._claimed)


class _StrictFile(apsw.VFSFile):
    def __init__(self, name, flags, size: int, claimed: int):
        self._size, self._claimed = size, claimed
        super().__init__('', name, flags)

    def xFileSize(self):
        return self._claimed

    def xRead(self, amount, offset):
        if offset + amount > self._size:
            raise apsw.IOError(f'the file ends at byte {self._size}')
        return super().xRead(amount, offset)


class SalvagedSqlite:
    """The messages of an SQLite file in the order of writing, up to the break.

    Also reads what a write-ahead log beside the file holds. Raises BreakError if nothing can
    be read. `reason` is complete only after `messages` has ended.
    """

    def __init__(self, path: Path):
        self.reason = ''
        self._strict: _StrictVfs | None = None
        try:
            self._database = self._connect(path)
            self.connections = self._read_topics()
        except Exception as error:
            # SQLite says what it finds broken; what it does not find need not even be text.
            raise BreakError(str(error)) from error

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Messages in the order of the file: connection, log time in nanoseconds, data."""
        wanted = {connection.id: connection for connection in connections}
        read = 0
        try:
            rows = self._database.execute(
                'SELECT topic_id, timestamp, data FROM messages ORDER BY id'
            )
            for topic, stamp, data in rows:
                if not (isinstance(stamp, int) and isinstance(data, bytes)):
                    self.reason = f'it breaks off after message {read}, which is damaged'
                    return
                read += 1
                if topic in wanted:
                    yield wanted[topic], stamp, data
        except apsw.Error as error:
            self.reason = f'it breaks off after message {read} ({error})'

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _connect(self, path: Path) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        with path.open('rb') as file:
            head, size = file.read(100), path.stat().st_size
        if len(head) == 100:
            # From the format of SQLite's files: bytes of a page (1 is 65536), and pages.
            page, pages = (
                struct.unpack_from('>H', head, 16)[0],
                struct.unpack_from('>I', head, 28)[0],
            )
            claimed = (65536 if page == 1 else page) * pages
            if claimed > size:
                self._strict = _StrictVfs(size, claimed)
                uri = f'{path.absolute().as_uri()}?immutable=1'
                return apsw.Connection(uri, flags, vfs=self._strict.name)
        return apsw.Connection(f'{path.absolute().as_uri()}?mode=ro', flags)

    def _read_topics(self) -> list[Connection]:
        def has(table: str, column: str) -> bool:
            columns = self._database.execute(f'PRAGMA table_info({table})')
            return any(row[1] == column for row in columns)

        definitions = {}
        if has('message_definitions', 'encoded_message_definition'):
            rows = self._database.execute(
                'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
            )
            definitions = {
                name: MessageDefinition(_FORMATS[encoding], text)
                for name, encoding, text in rows
                if encoding in _FORMATS
            }
        profiles = 'offered_qos_profiles' if has('topics', 'offered_qos_profiles') else "''"
        rows = self._database.execute(
            f'SELECT id, name, type, serialization_format, {profiles} FROM topics ORDER BY id'
        )
        nothing = MessageDefinition(MessageDefinitionFormat.NONE, '')
        connections = []
        for number, name, message_type, form, qos in rows:
            if not all(isinstance(text, str) for text in (name, message_type, form)):
                raise BreakError('its list of topics is damaged')
            connections.append(
                Connection(
                    number,
                    name,
                    message_type,
                    definitions.get(message_type, nothing),
                    '',
                    0,
                    ConnectionExtRosbag2(form, _profiles(qos)),
                    self,
                )
            )
        return connections
