"""Reading rosbag2 recordings: folders or single files, MCAP or SQLite, compressed, damaged."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml
from mcap.records import Attachment, Metadata, Schema
from rosbags.interfaces import Connection, MessageDefinitionFormat, Qos
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_types_from_idl, get_types_from_msg
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.folder import BagError, Description, find_files, storage_of
from cliptrase_ros.bag.mcap_file import ROSBAG2_METADATA, McapFile
from cliptrase_ros.bag.sqlite_salvage import SalvagedSqlite
from cliptrase_ros.bag.types import BreakError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
# builtin_interfaces/Time counts seconds in 31 bits.
_END_OF_TIME_NS = 2**31 * 1_000_000_000
_IDL_RULE = '=' * 80 + '\n'


@dataclass(frozen=True)
class Topic:
    """A topic of a recording.

    Attributes:
        type: As in `sensor_msgs/msg/Image`.
        definition: Text of the message definition, '' if the recording has none.
        type_hash: RIHS01 (REP 2011), '' if unknown.
        serialization: 'cdr' for nearly all.
        qos: Offered profiles, with which the topic is to be played.
        count: Messages, None if unknown. It is what the file says, which may be wrong.
        metadata: What an MCAP file says of the topic besides.
    """

    name: str
    type: str
    definition: str
    type_hash: str
    serialization: str
    qos: tuple[Qos, ...]
    count: int | None
    schema: Schema | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class BagMessage(NamedTuple):
    """A message of a recording.

    Attributes:
        stamp_ns: Log time, nanoseconds.
        data: The message, serialised.
        publish_ns: Publish time, nanoseconds; None where the storage has no place for it.
        sequence: As MCAP has it; 0 where the storage has no place for it.
    """

    topic: Topic
    stamp_ns: int
    data: bytes
    publish_ns: int | None = None
    sequence: int = 0


@dataclass(frozen=True)
class FoundMessage:
    """What came of looking for a message.

    Attributes:
        message: None if there is none.
        refused: How many messages would not do.
        reason: Why there is none, '' if there is one.
    """

    message: object | None
    refused: int
    reason: str


class BagReader:
    """A recording, a folder or a single file, opened: a context manager.

    Attributes:
        typestore: What messages are deserialised with.
        topics: By name and type, in the order of the files.
        damage: What is missing or could not be read, a sentence each; it grows while messages are
            read.
        notes: What is not as metadata.yaml says, though nothing is missing, a sentence each.
        storage: 'mcap' or 'sqlite3'.
        compressed: Whether messages, chunks or files are.
        custom_data: Of the metadata.

    Raises:
        BagError: Nothing can be read at all.
    """

    def __init__(self, path: Path, typestore: Typestore):
        self.damage: list[str] = []
        self.notes: list[str] = []
        self.custom_data: dict[str, str] = {}
        self.storage = 'mcap'
        self.compressed = False
        self.topics: dict[tuple[str, str], Topic] = {}
        self.typestore = typestore
        self._described = False
        self._hashes: dict[str, str] = {}
        self._counted: int | None = None
        # By their names.
        self._readers: dict[str, Reader | McapFile | SalvagedSqlite] = {}
        self._stack = ExitStack()
        try:
            self._open(path)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> 'BagReader':
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def messages(self, wanted: Collection[Topic] | None = None) -> Iterator[BagMessage]:
        """Messages of every topic, or of those wanted, file after file by log time.

        Where a file is damaged, the rest of it is missing and `damage` says so.
        """
        names = None if wanted is None else {(topic.name, topic.type) for topic in wanted}
        read = 0
        for name, reader in self._readers.items():
            connections = [
                connection
                for connection in reader.connections
                if names is None or (connection.topic, connection.msgtype) in names
            ]
            if not connections:
                continue
            try:
                # MCAP has publish time and sequence number as well.
                for connection, stamp, data, *sent in reader.messages(connections):
                    if data[:4] == _ZSTD_MAGIC:
                        data = zstd.decompress(data)
                    if not 0 <= stamp < _END_OF_TIME_NS:
                        raise BreakError(f'time {stamp}')
                    read += 1
                    topic = self.topics[connection.topic, connection.msgtype]
                    yield BagMessage(topic, stamp, data, *sent)
            except Exception as error:
                # Whatever the storage, its decompressor or its database make of damage.
                self._note(f'{name}: damaged, the rest of it is missing ({error})')
            if reason := getattr(reader, 'reason', ''):
                self._note(f'{name}: {reason}')
        if names is None and self._counted is not None and read != self._counted:
            sentence = f'{read} messages could be read, metadata.yaml counts {self._counted}'
            self._note(sentence, self.damage if read < self._counted else self.notes)

    def find(
        self,
        topic: Topic,
        check: Callable[[object], None],
        settles: Callable[[object], bool] = lambda message: False,
    ) -> FoundMessage:
        """Find the first usable message of a topic; no more are read than that takes.

        Args:
            check: Raises for a message that is not usable.
            settles: Whether such a message shows that no message of the topic is.
        """
        refused, reason = 0, ''
        for message in self.messages([topic]):
            content = None
            try:
                if topic.serialization != 'cdr':
                    raise ValueError(f'serialised as {topic.serialization}; only cdr can be read')
                content = self.typestore.deserialize_cdr(message.data, topic.type)
                check(content)
            except Exception as error:
                # The library raises what it likes over data that are no message.
                if content is not None and settles(content):
                    return FoundMessage(None, 0, str(error))
                refused, reason = refused + 1, reason or str(error)
            else:
                return FoundMessage(content, refused, '')
        return FoundMessage(None, refused, reason or 'it has no messages')

    def extras(self) -> Iterator[Attachment | Metadata]:
        """Attachments and metadata of MCAP files, without what rosbag2 itself writes there."""
        for name, reader in self._readers.items():
            if isinstance(reader, McapFile):
                for extra in reader.extras():
                    if isinstance(extra, Attachment) or extra.name != ROSBAG2_METADATA:
                        yield extra
                if reader.reason:
                    self._note(f'{name}: {reader.reason}')

    def _note(self, sentence: str, notes: list[str] | None = None) -> None:
        notes = self.damage if notes is None else notes
        if sentence not in notes:
            notes.append(sentence)

    def _open(self, path: Path) -> None:
        try:
            files = find_files(path)
        except OSError as error:
            raise BagError(f'{path} cannot be read: {error.strerror}') from error
        self.damage += files.damage
        self.notes += files.notes
        self._add_description(files.description)
        self._described = bool(files.description.names)
        self._counted = files.description.message_count
        for file in files.paths:
            storage = storage_of(file)
            if storage is None:
                raise BagError(f'{file} is neither .mcap nor .db3, nor one of them with .zstd')
            self.storage = storage
            try:
                reader = self._open_file(file)
            except BreakError as error:
                self._note(f'{file.name}: nothing of it can be read ({error})')
                continue
            except OSError as error:
                raise BagError(f'{file} cannot be read: {error}') from error
            if any(c.ext.serialization_format == 'ros1' for c in reader.connections):
                name = file.name.partition('.')[0]
                raise BagError(
                    f'{file} is a recording of ROS 1; convert the .bag it was made from: '
                    f'rosbags-convert --src {name}.bag --dst {name}'
                )
            self._readers[file.name] = reader
            for connection in reader.connections:
                self._add_topic(connection, reader)
        if not self.topics:
            reasons = '; '.join(self.damage) or 'it has no topics'
            raise BagError(f'nothing can be read of {path}: {reasons}')

    def _open_file(self, path: Path) -> Reader | McapFile | SalvagedSqlite:
        name = path.name
        if path.suffix == '.zstd':
            self.compressed = True
            path = self._unpack(path)
        if self.storage == 'mcap':
            file = McapFile(path)
            self._stack.callback(file.close)
            if not self._described:
                self._read_description(file)
            self.compressed |= file.compressed
            return file
        log = path.with_name(f'{path.name}-wal')
        if log.is_file() and log.stat().st_size:
            self._note(f'{name}: the recorder was stopped before it could tidy up')
            return self._salvage(path)
        try:
            return self._stack.enter_context(Reader(path))
        except PermissionError:
            raise
        except Exception:
            # Whatever the library makes of a damaged file; a closer look says more.
            return self._salvage(path)

    def _salvage(self, path: Path) -> SalvagedSqlite:
        salvaged = SalvagedSqlite(path)
        self._stack.callback(salvaged.close)
        return salvaged

    def _add_description(self, description: Description) -> None:
        self.compressed |= description.compressed
        self.custom_data |= description.custom_data
        self._hashes |= description.hashes

    def _read_description(self, file: McapFile) -> None:
        """Take what rosbag2 has written into a file."""
        for extra in file.extras():
            if isinstance(extra, Metadata) and extra.name == ROSBAG2_METADATA:
                # A recording is worth having without.
                with suppress(Exception):
                    text = extra.metadata['serialized_metadata']
                    self._add_description(Description.of(yaml.safe_load(text)))

    def _unpack(self, path: Path) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        target = Path(folder) / path.stem
        with (
            path.open('rb') as source,
            zstd.open(source, 'rb') as unpacked,
            target.open('wb') as out,
        ):
            try:
                shutil.copyfileobj(unpacked, out)
            except (EOFError, zstd.ZstdError) as error:
                self._note(f'{path.name}: its compression breaks off ({error})')
        return target

    def _add_topic(self, connection: Connection, reader: object) -> None:
        key = (connection.topic, connection.msgtype)
        known = self.topics.get(key)
        schema, metadata = None, {}
        if isinstance(reader, McapFile):
            channel = reader.channels[connection.id]
            schema, metadata = reader.schemas.get(channel.schema_id), channel.metadata
        definition = connection.msgdef
        text = '' if definition.format is MessageDefinitionFormat.NONE else definition.data
        if not text and known:
            text = known.definition
        if not text and connection.msgtype in self.typestore.fielddefs:
            text, _ = self.typestore.generate_msgdef(connection.msgtype, ros_version=2)
        count = None if isinstance(reader, SalvagedSqlite) else connection.msgcount
        if known:
            count = None if count is None or known.count is None else known.count + count
        profiles = [*(known.qos if known else ())]
        profiles += [q for q in connection.ext.offered_qos_profiles if q not in profiles]
        self.topics[key] = Topic(
            connection.topic,
            connection.msgtype,
            text,
            connection.digest
            or self._hashes.get(connection.msgtype)
            or self._compute_hash(connection, text),
            connection.ext.serialization_format,
            tuple(profiles),
            count,
            known.schema if known else schema,
            {**metadata, **(known.metadata if known else {})},
        )

    def _compute_hash(self, connection: Connection, text: str) -> str:
        store = Typestore()
        try:
            if not text.startswith(_IDL_RULE):
                store.register(get_types_from_msg(text, connection.msgtype))
            else:
                for part in text.split(_IDL_RULE)[1:]:
                    store.register(get_types_from_idl(part.partition('\n')[2]))
            return store.hash_rihs01(connection.msgtype)
        except Exception:
            # A definition the library cannot parse: the messages are copied all the same.
            return ''
