"""What can still be read of SQLite files that were cut short or damaged.

A recorder that was killed leaves a file shorter than its own header says; ordinary readers refuse
it as a whole.
"""

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import apsw
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)

from cliptrase_ros.bag.types import DEFINITION_FORMATS, BreakError, profiles_of


class _StrictVfs(apsw.VFS):
    """Opens files that seem as long as they claim, and fail where they are not.

    By itself SQLite refuses a file that is too short, or takes zeros for what is missing.
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

    Also reads what a write-ahead log beside the file holds.

    Attributes:
        connections: Topics as rosbags' readers have them.
        reason: Why nothing follows the messages, '' if they are complete; it is known only when
            `messages` has ended.

    Raises:
        BreakError: Nothing can be read.
    """

    def __init__(self, path: Path):
        self.reason = ''
        self._strict: _StrictVfs | None = None
        try:
            self._database = self._connect(path)
            self.connections = self._read_topics()
        except Exception as error:
            # Not only errors of SQLite: in damage that it does not notice, names may not be text.
            raise BreakError(str(error)) from error

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Messages of some topics: connection, log time in nanoseconds, data."""
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
            # Bytes of a page and number of pages, where SQLite's file format has them.
            (page_size,) = struct.unpack_from('>H', head, 16)
            (pages,) = struct.unpack_from('>I', head, 28)
            claimed = (65536 if page_size == 1 else page_size) * pages
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
                name: MessageDefinition(DEFINITION_FORMATS[encoding], text)
                for name, encoding, text in rows
                if encoding in DEFINITION_FORMATS
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
                    ConnectionExtRosbag2(form, profiles_of(qos)),
                    self,
                )
            )
        return connections
