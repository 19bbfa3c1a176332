"""Reading rosbag2 recordings: folders or single files, MCAP or SQLite, compressed, damaged."""

import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml
from rosbags.interfaces import Connection, MessageDefinitionFormat, Qos
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_types_from_idl, get_types_from_msg
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.salvage import BreakError, SalvagedMcap, SalvagedSqlite

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_STORAGES = {'.mcap': 'mcap', '.db3': 'sqlite3'}
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
# builtin_interfaces/Time counts seconds in 31 bits.
_END_OF_TIME_NS = 2**31 * 1_000_000_000
_IDL_RULE = '=' * 80 + '\n'


class BagError(Exception):
    """A recording that cannot be read or written; the message says which and why."""


@dataclass(frozen=True)
class Topic:
    """A topic of a recording.

    type: as in `sensor_msgs/msg/Image`. definition: text of the message definition, '' if the
    recording has none. type_hash: RIHS01, '' if unknown. serialization: 'cdr' for nearly all.
    qos: offered profiles, with which the topic is to be played. count: messages, None if unknown.
    """

    name: str
    type: str
    definition: str
    type_hash: str
    serialization: str
    qos: tuple[Qos, ...]
    count: int | None


@dataclass(frozen=True)
class _File:
    name: str
    reader: Reader | SalvagedMcap | SalvagedSqlite


class BagReader:
    """A recording, opened: a context manager.

    topics: by (name, type), in the order of the files. damage: what is missing or could not be
    read, a sentence each; it grows while messages are read. storage: 'mcap' or 'sqlite3'.
    compressed: whether messages, chunks or files are. custom_data: of the metadata.
    Raises BagError if nothing can be read at all.
    """

    def __init__(self, path: Path, typestore: Typestore):
        self.damage: list[str] = []
        self.custom_data: dict[str, str] = {}
        self.storage = 'mcap'
        self.compressed = False
        self.topics: dict[tuple[str, str], Topic] = {}
        self._typestore = typestore
        self._hashes: dict[str, str] = {}
        self._expected: int | None = None
        self._files: list[_File] = []
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

    def messages(
        self, wanted: Collection[Topic] | None = None
    ) -> Iterator[tuple[Topic, int, bytes]]:
        """Messages of every topic, or of some: topic, log time in nanoseconds, data.

        File after file, by log time. Where a file is damaged, the rest of it is missing and
        `damage` says so.
        """
        names = None if wanted is None else {(topic.name, topic.type) for topic in wanted}
        read = 0
        for file in self._files:
            connections = [
                connection
                for connection in file.reader.connections
                if names is None or (connection.topic, connection.msgtype) in names
            ]
            if not connections:
                continue
            messages = file.reader.messages(connections)
            while True:
                try:
                    connection, stamp, data = next(messages)
                    if data[:4] == _ZSTD_MAGIC:
                        data = zstd.decompress(data)
                except StopIteration:
                    break
                except Exception as error:
                    # Whatever the storage, its decompressor or its database make of damage.
                    self._note(f'{file.name}: damaged, the rest of it is missing ({error})')
                    break
                if not 0 <= stamp < _END_OF_TIME_NS:
                    self._note(f'{file.name}: damaged, the rest of it is missing (time {stamp})')
                    break
                read += 1
                yield self.topics[connection.topic, connection.msgtype], stamp, data
            if reason := getattr(file.reader, 'reason', ''):
                self._note(f'{file.name}: {reason}')
        if names is None and self._expected is not None and read != self._expected:
            self._note(f'{read} messages could be read, metadata.yaml counts {self._expected}')

    def first(self, topic: Topic) -> bytes | None:
        """Data of the first message of a topic, None if there is none."""
        return next((data for _, _, data in self.messages([topic])), None)

    def _note(self, sentence: str) -> None:
        if sentence not in self.damage:
            self.damage.append(sentence)

    def _open(self, path: Path) -> None:
        try:
            paths = self._find_files(path)
        except OSError as error:
            raise BagError(f'{path} cannot be read: {error.strerror}') from error
        for file in paths:
            storage = _STORAGES.get(Path(file.name.removesuffix('.zstd')).suffix)
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
            self._files.append(_File(file.name, reader))
            for connection in reader.connections:
                self._add_topic(connection, counted=not isinstance(reader, SalvagedSqlite))
        if not self.topics:
            reasons = '; '.join(self.damage) or 'it has no topics'
            raise BagError(f'nothing can be read of {path}: {reasons}')

    def _find_files(self, path: Path) -> list[Path]:
        if path.suffix == '.bag' and path.is_file():
            raise BagError(
                f'{path} is a recording of ROS 1; convert it first: rosbags-convert --src {path} '
                f'--dst {path.with_suffix("")}'
            )
        if not path.exists():
            raise BagError(f'{path} does not exist')
        if path.is_file():
            return [path]
        metadata = path / 'metadata.yaml'
        if not metadata.exists():
            self._note('metadata.yaml is missing: the recording was not ended in order')
            return self._guess_files(path)
        try:
            information = yaml.safe_load(metadata.read_text(encoding='utf-8'))
            information = information['rosbag2_bagfile_information']
            names = [PurePath(name).name for name in information['relative_file_paths']]
            self.custom_data = {
                str(key): str(value)
                for key, value in (information.get('custom_data') or {}).items()
            }
            for entry in information.get('topics_with_message_count') or ():
                topic = entry['topic_metadata']
                self._hashes[topic['type']] = topic.get('type_description_hash') or ''
            self.compressed = bool(information.get('compression_format'))
            self._expected = information.get('message_count')
        except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
            reason = ' '.join(str(error).split())
            self._note(f'metadata.yaml is damaged ({type(error).__name__}: {reason})')
            return self._guess_files(path)
        for name in names:
            if not (path / name).is_file():
                self._note(f'{name} is missing, though metadata.yaml names it')
        return [path / name for name in names if (path / name).is_file()]

    @staticmethod
    def _guess_files(folder: Path) -> list[Path]:
        def number(path: Path) -> tuple[int, str]:
            # NAME_10 comes after NAME_9.
            digits = re.search(r'_(\d+)\.', path.name)
            return (int(digits[1]) if digits else 0, path.name)

        files = (path for path in folder.iterdir() if path.is_file())
        known = [p for p in files if Path(p.name.removesuffix('.zstd')).suffix in _STORAGES]
        if not known:
            raise BagError(f'{folder} is no recording: it has no .mcap and no .db3 file')
        return sorted(known, key=number)

    def _open_file(self, path: Path) -> Reader | SalvagedMcap | SalvagedSqlite:
        name = path.name
        if path.suffix == '.zstd':
            self.compressed = True
            path = self._unpack(path)
        log = path.with_name(f'{path.name}-wal')
        if log.is_file() and log.stat().st_size:
            self._note(f'{name}: the recorder was stopped before it could tidy up')
            return self._salvage(path)
        try:
            reader = self._stack.enter_context(Reader(path))
        except PermissionError:
            raise
        except Exception:
            # Whatever the library makes of a damaged file; a closer look says more.
            salvaged = self._salvage(path)
            if salvaged.reason:
                self._note(f'{name}: {salvaged.reason}')
            return salvaged
        if self.storage == 'mcap':
            chunks = reader.storage.chunks
            self.compressed = self.compressed or any(chunk.compression for chunk in chunks)
            if not chunks:
                # Without an index the library insists on messages in order of time.
                return self._salvage(path)
        return reader

    def _salvage(self, path: Path) -> SalvagedMcap | SalvagedSqlite:
        salvage = SalvagedMcap if path.suffix == '.mcap' else SalvagedSqlite
        salvaged = salvage(path)
        self._stack.callback(salvaged.close)
        return salvaged

    def _unpack(self, path: Path) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        target = Path(folder) / path.stem
        with (
            path.open('rb') as source,
            zstd.open(source, 'rb') as unpacked,
            target.open('wb') as out,
        ):
            try:
                while block := unpacked.read(1 << 20):
                    out.write(block)
            except (EOFError, zstd.ZstdError) as error:
                self._note(f'{path.name}: its compression breaks off ({error})')
        return target

    def _add_topic(self, connection: Connection, counted: bool) -> None:
        key = (connection.topic, connection.msgtype)
        known = self.topics.get(key)
        definition = connection.msgdef
        text = '' if definition.format is MessageDefinitionFormat.NONE else definition.data
        if not text and known:
            text = known.definition
        if not text and connection.msgtype in self._typestore.fielddefs:
            text, _ = self._typestore.generate_msgdef(connection.msgtype, ros_version=2)
        count = connection.msgcount if counted else None
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
