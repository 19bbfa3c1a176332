"""Which files a recording consists of, and what its metadata.yaml says of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import yaml

_STORAGES = {'.mcap': 'mcap', '.db3': 'sqlite3'}
_ROS1_MAGIC = b'#ROSBAG V'


class BagError(Exception):
    """A recording that cannot be read or written; the message says which and why."""


@dataclass
class Description:
    """What metadata.yaml says, which rosbag2 writes into an MCAP file as well.

    Attributes:
        names: Of the files, as they stand there.
        custom_data: What the user had the recorder write.
        hashes: Type description hash by message type, '' where there is none.
        compressed: Whether messages are, each by itself.
        message_count: None if unknown.
    """

    names: list[str] = field(default_factory=list)
    custom_data: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    compressed: bool = False
    message_count: int | None = None

    @classmethod
    def of(cls, information: Mapping) -> 'Description':
        """Take from `rosbag2_bagfile_information`.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: It is no such thing.
        """
        custom_data = information.get('custom_data') or {}
        topics = [
            entry['topic_metadata'] for entry in information.get('topics_with_message_count') or ()
        ]
        count = information.get('message_count')
        return cls(
            [str(PurePath(name)) for name in information['relative_file_paths']],
            {str(key): str(value) for key, value in custom_data.items()},
            {topic['type']: topic.get('type_description_hash') or '' for topic in topics},
            # Of mode `file` nothing is said here: the names of the files show it.
            str(information.get('compression_mode')).lower() == 'message',
            count if isinstance(count, int) else None,
        )


@dataclass
class BagFiles:
    """The files of a recording, in order.

    Attributes:
        notes: Where the folder differs from metadata.yaml and nothing is lost by it, a sentence
            each.
        damage: What is missing, a sentence each.
    """

    paths: list[Path]
    description: Description = field(default_factory=Description)
    notes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def storage_of(path: Path) -> str | None:
    """'mcap' or 'sqlite3' by the name of a file, compressed or not; None for others."""
    return _STORAGES.get(PurePath(_unpacked(path.name)).suffix)


def find_files(path: Path) -> BagFiles:
    """Find the files of a recording: a folder or a single file.

    What is in the folder counts: files that metadata.yaml knows by another name are taken all
    the same.

    Raises:
        BagError: No recording, or one of ROS 1.
        OSError: It cannot be read.
    """
    if not path.exists():
        raise BagError(f'{path} does not exist')
    if path.is_file():
        _refuse_ros1(path)
        return BagFiles([path])
    metadata = path / 'metadata.yaml'
    if not metadata.exists():
        missing = 'metadata.yaml is missing: the recording was not ended in order'
        return BagFiles(_files_in(path), damage=[missing])
    try:
        whole = yaml.safe_load(metadata.read_text(encoding='utf-8'))
        description = Description.of(whole['rosbag2_bagfile_information'])
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        damaged = f'metadata.yaml is damaged ({type(error).__name__}: {reason})'
        return BagFiles(_files_in(path), damage=[damaged])
    return _match_files(path, description)


def _match_files(folder: Path, description: Description) -> BagFiles:
    """The files of a folder that metadata.yaml names, or all where it names others."""
    files = BagFiles(_files_in(folder), description)
    there = {_unpacked(path.name): path for path in files.paths}
    named = []
    missing = []
    for given in description.names:
        exact = folder / PurePath(given).name
        path = exact if exact.is_file() else there.get(_unpacked(exact.name))
        if path is None:
            missing.append(given)
            continue
        named.append(path)
        # Early versions of rosbag2 wrote it as from the folder above.
        places = (folder / given, folder.resolve().parent / given)
        if not any(place.exists() and place.samefile(path) for place in places):
            files.notes.append(f'metadata.yaml names {given}; {path.name} of the folder is read')
    known = {_unpacked(path.name) for path in named}
    others = [path.name for name, path in there.items() if name not in known]
    if named and not (missing and others):
        files.paths = named
        files.damage = [f'{name} is missing, though metadata.yaml names it' for name in missing]
        files.notes += [f'{name} is left out: metadata.yaml does not name it' for name in others]
    else:
        # All files, in the order of their numbers, because metadata.yaml names others or none.
        names = ', '.join(missing) or 'no file'
        sentence = f'metadata.yaml names {names}; {", ".join(others)} of the folder is read'
        (files.notes if len(others) >= len(missing) else files.damage).append(sentence)
    return files


def _files_in(folder: Path) -> list[Path]:
    def number(path: Path) -> tuple[int, str]:
        # NAME_10 comes after NAME_9.
        digits = re.search(r'_(\d+)\.[^_]*$', path.name)
        return (int(digits[1]) if digits else 0, path.name)

    # Other systems leave hidden companions of a file, of the same suffix.
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith('.')]
    known = sorted((path for path in files if storage_of(path)), key=number)
    # A recorder that is stopped while it compresses leaves both, and the unpacked one is whole.
    whole = {path.name for path in known}
    known = [p for p in known if p.name == _unpacked(p.name) or _unpacked(p.name) not in whole]
    if not known:
        for file in files:
            _refuse_ros1(file)
        raise BagError(f'{folder} is no recording: it has no .mcap and no .db3 file')
    return known


def _unpacked(name: str) -> str:
    return name.removesuffix('.zstd')


def _refuse_ros1(path: Path) -> None:
    with path.open('rb') as file:
        begins = file.read(len(_ROS1_MAGIC))
    if path.suffix == '.bag' or begins == _ROS1_MAGIC:
        raise BagError(
            f'{path} is a recording of ROS 1; convert it first: rosbags-convert --src {path} '
            f'--dst {path.with_suffix("")}'
        )
