"""What the images of a dataset are called."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

# Neither file systems nor shells, URLs or patterns of names mean anything by these.
_ODD = re.compile(r'[^\w.+=@,() -]')
# Windows takes these for devices, whatever their suffix.
_DEVICES = re.compile(r'(con|prn|aux|nul|(com|lpt)\d)(\.|$)', re.IGNORECASE)
# Bytes of a part of a path; most file systems take 255, with a tag and a suffix behind it.
_LONGEST_PART = 200


def portable_path(name: str) -> str:
    """A path below a dataset's folder for any name; '' for the folder itself."""
    parts = (part for part in PurePosixPath(name).parts if part != '.')
    return '/'.join(distinct_names([part])[0] for part in parts)


def distinct_names(names: Sequence[str], stems: Sequence[str] | None = None) -> list[str]:
    """Names that every file system takes, and none for the same as another.

    A name is kept where it can be. What had to be changed, and all that differ in nothing but case
    or in what is behind the stem, get a tag that follows from the name alone.

    Args:
        names: Different ones, of files or folders of one folder.
        stems: What of each is wanted; the whole name if left out.
    """
    stems = names if stems is None else stems
    readable = [_readable(stem) for stem in stems]
    uses = Counter(text.casefold() for text in readable)
    return [
        text
        if text == unicodedata.normalize('NFC', stem) and uses[text.casefold()] == 1
        else f'{text}-{_tag(name)}'
        for name, stem, text in zip(names, stems, readable, strict=True)
    ]


def _readable(text: str) -> str:
    text = _ODD.sub('_', unicodedata.normalize('NFC', text))
    # Hidden files are left out by many tools, a dash is taken for an option, and Windows drops what
    # stands at the end.
    text = re.sub(r'^[.\s-]|[.\s]$', '_', text) or '_'
    text = _DEVICES.sub(r'_\g<0>', text) if _DEVICES.match(text) else text
    return text.encode()[:_LONGEST_PART].decode(errors='ignore')


def _tag(name: str) -> str:
    return hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]
