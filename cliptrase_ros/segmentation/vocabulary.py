"""The classes a user names, their stable ids and colours, and the parsing of user text."""

import colorsys
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

#: Label of a pixel that belongs to no class (the convention of vision_msgs/LabelInfo users).
UNLABELLED = 255

#: Most classes a vocabulary can hold: ids 0..254, 255 being `UNLABELLED`.
MAX_CLASSES = 255

#: Most phrases of a vocabulary, synonyms and background included: each costs 80 prompts to encode.
MAX_PHRASES = 1024

#: Scene words that stand for "none of the classes" where the user says nothing else.
DEFAULT_BACKGROUND = ('wall', 'floor', 'ceiling', 'sky', 'building')

# What stands between a name and its synonyms. '=' means nothing to YAML, as which command lines of
# ROS are read; ': ' makes a mapping there.
_SYNONYMS_FOLLOW = re.compile('[=:]')


class VocabularyError(ValueError):
    """A vocabulary that cannot be used; the message says what was given and what to do."""


@dataclass(frozen=True)
class VocabularyClass:
    """One class of a vocabulary.

    Attributes:
        id: Value of its pixels in a label image, 0..254.
        name: As the user wrote it.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """The name, then the synonyms."""
        return (self.name, *self.synonyms)

    @property
    def color(self) -> tuple[int, int, int]:
        """RGB, 0..255; a function of the id alone, so that a class keeps its colour."""
        return class_color(self.id)


@dataclass(frozen=True)
class Vocabulary:
    """An immutable set of classes with the background phrases that stand for "none of them".

    Attributes:
        classes: In the user's order.
        background: Phrases whose pixels become `UNLABELLED`.
        version: Counts the vocabularies of one run, from 1; 0 for one that is never in force.
        retired: (name, id) of classes of earlier versions, the longest retired first, so that an
            id is not given to another class while a never used one is free.
    """

    classes: tuple[VocabularyClass, ...]
    background: tuple[str, ...] = ()
    version: int = 1
    retired: tuple[tuple[str, int], ...] = ()

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase to be encoded: those of the classes in order, then the background."""
        return (*(p for c in self.classes for p in c.phrases), *self.background)

    @cached_property
    def ids(self) -> np.ndarray:
        """uint8 (len(classes),): the id of each class, in order."""
        return np.array([c.id for c in self.classes], np.uint8)

    @cached_property
    def palette(self) -> np.ndarray:
        """uint8 (256, 3): RGB by id, black where there is no class."""
        palette = np.zeros((256, 3), np.uint8)
        for entry in self.classes:
            palette[entry.id] = entry.color
        return palette

    def unknown_names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of some names that are no class's name."""
        known = {entry.name.casefold() for entry in self.classes}
        return tuple(name for name in names if name.casefold() not in known)


def class_color(class_id: int) -> tuple[int, int, int]:
    """RGB, 0..255, of a class id: hues a golden angle apart, so that neighbours differ."""
    hue = (class_id * 0.618034 + 0.02) % 1.0
    saturation = (0.85, 0.6, 0.95)[class_id // 8 % 3]
    value = (0.95, 0.75)[class_id // 4 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def parse_vocabulary(
    entries: str | Sequence[str],
    background: str | Sequence[str] = DEFAULT_BACKGROUND,
    previous: Vocabulary | None = None,
) -> Vocabulary:
    """Make a vocabulary from user text.

    Args:
        entries: Class descriptions, each `name` or `name = synonym, synonym` (`:` does as well as
            `=`); or one string with entries separated by `;`. Phrases are cleaned as by
            `clean_phrase`, and compared without regard to case.
        background: Phrases whose pixels become `UNLABELLED`, as a list or separated by `;`; empty
            for none. One that is a class's phrase as well counts as the class: naming a class must
            not fail because of a background that was chosen before.
        previous: The vocabulary in force. A class of the same name keeps its id, also one that
            was retired earlier in the run; a new class takes an id never used in the run, and only
            when there is none the one that was retired longest ago.

    Raises:
        VocabularyError: No class, more than `MAX_CLASSES`, more than `MAX_PHRASES` phrases, a
            blank entry or synonym, a phrase with `=` or `:` in it, a phrase that is no text, one
            that stands for two classes or twice in the background.
    """
    _refuse_other_types('vocabulary', entries)
    _refuse_other_types('background', background)
    parsed = _parse_entries(entries)
    _refuse_no_text([phrase for phrases in parsed for phrase in phrases])
    _refuse_duplicates(parsed)
    background = _parse_background(background)
    _refuse_no_text(background)
    named = {phrase.casefold() for phrases in parsed for phrase in phrases}
    background = tuple(phrase for phrase in background if phrase.casefold() not in named)
    count = len(named) + len(background)
    if count > MAX_PHRASES:
        raise VocabularyError(
            f'the vocabulary has {count} phrases; at most {MAX_PHRASES}, synonyms and background '
            'included, are encoded in bearable time; drop some'
        )
    ids, retired = _assign_ids([name for name, *_ in parsed], previous)
    return Vocabulary(
        classes=tuple(
            VocabularyClass(class_id, name, tuple(synonyms))
            for class_id, (name, *synonyms) in zip(ids, parsed, strict=True)
        ),
        background=background,
        version=1 if previous is None else previous.version + 1,
        retired=retired,
    )


def _refuse_other_types(name: str, given: Any) -> None:
    is_list = isinstance(given, Sequence) and not isinstance(given, bytes)
    if not is_list or not all(isinstance(entry, str) for entry in given):
        raise VocabularyError(
            f'the {name} is {given!r:.60}; give a list of texts, or one text with '
            "';' between entries"
        )


def _parse_entries(entries: str | Sequence[str]) -> list[tuple[str, ...]]:
    """Phrases of each class, its name first."""
    if isinstance(entries, str):
        parts = entries.split(';')
        if len(parts) > 1 and not clean_phrase(parts[-1]):
            parts.pop()  # a trailing separator is no blank class
    else:
        parts = list(entries)
    if not any(clean_phrase(part) for part in parts):
        raise VocabularyError(
            "the vocabulary is empty; name at least one class, for instance ['road', 'person']"
        )
    if len(parts) > MAX_CLASSES:
        raise VocabularyError(
            f'the vocabulary has {len(parts)} classes; at most {MAX_CLASSES} fit a mono8 label '
            'image beside 255 = unlabelled; drop some, or make them synonyms of one class'
        )
    return [_parse_entry(part, position) for position, part in enumerate(parts, start=1)]


def _parse_entry(entry: str, position: int) -> tuple[str, ...]:
    name, synonyms = name_and_synonyms(entry)
    if not all((name, *synonyms)):
        raise VocabularyError(
            f'entry {position} of the vocabulary, {quote(entry)}, is blank or has a blank '
            "synonym; write 'name' or 'name = synonym, synonym'"
        )
    for synonym in filter(_SYNONYMS_FOLLOW.search, synonyms):
        raise VocabularyError(
            f"entry {position} of the vocabulary, {quote(entry)}, has '=' or ':' in the synonym "
            f"{quote(synonym)}; write 'name = synonym, synonym', with ';' between classes"
        )
    return (name, *synonyms)


def name_and_synonyms(entry: str) -> tuple[str, tuple[str, ...]]:
    """Take an entry apart at its first `=` or `:`; phrases are cleaned, '' where blank."""
    name, *rest = _SYNONYMS_FOLLOW.split(entry, maxsplit=1)
    return clean_phrase(name), tuple(clean_phrase(p) for listed in rest for p in listed.split(','))


def _parse_background(background: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(background, str):
        phrases = [phrase for phrase in map(clean_phrase, background.split(';')) if phrase]
    else:
        phrases = [clean_phrase(phrase) for phrase in background]
    seen = set()
    for phrase in phrases:
        if not phrase:
            raise VocabularyError('the background has a blank phrase; remove it')
        if _SYNONYMS_FOLLOW.search(phrase):
            raise VocabularyError(
                f"the background has {quote(phrase)}, but no synonyms; write 'sky; clouds'"
            )
        if phrase.casefold() in seen:
            raise VocabularyError(
                f'the phrase {quote(phrase)} stands twice in the background; remove one'
            )
        seen.add(phrase.casefold())
    return tuple(phrases)


def with_phrase(vocabulary: Vocabulary, phrase: str) -> Vocabulary:
    """Give a phrase a class of its own, unless a class has it already, by name or as a synonym.

    A phrase of the background becomes the class.

    Returns:
        The vocabulary itself where a class has the phrase, otherwise one with version 0.

    Raises:
        VocabularyError: There are `MAX_CLASSES` other classes.
    """
    key = phrase.casefold()
    if any(key == known.casefold() for entry in vocabulary.classes for known in entry.phrases):
        return vocabulary
    if len(vocabulary.classes) == MAX_CLASSES:
        raise VocabularyError(
            f'the vocabulary has {MAX_CLASSES} classes, the most there can be, and {quote(phrase)} '
            'is none of them; take one out first'
        )
    free = next(i for i in range(MAX_CLASSES) if i not in vocabulary.ids)
    return replace(
        vocabulary,
        classes=(*vocabulary.classes, VocabularyClass(free, phrase)),
        background=tuple(p for p in vocabulary.background if p.casefold() != key),
        version=0,
    )


def clean_phrase(phrase: str) -> str:
    """Return a phrase without surrounding and repeated white space; '' if nothing is visible.

    Control and format characters (zero-width space, byte order mark, direction marks) count as
    white space.
    """
    # They would corrupt logs and legends, and two phrases that look the same would differ.
    spaced = ''.join(
        ' ' if unicodedata.category(c) in ('Cc', 'Cf', 'Zs', 'Zl', 'Zp') else c for c in phrase
    )
    cleaned = ' '.join(spaced.split())
    # Letters, numbers, punctuation and symbols; marks are only seen on one of these.
    return cleaned if any(unicodedata.category(c)[0] in 'LNPS' for c in cleaned) else ''


def quote(text: str) -> str:
    """A phrase for a message, in quotes and shortened."""
    return repr(text if len(text) <= 60 else f'{text[:57]}...')


def _refuse_no_text(phrases: Sequence[str]) -> None:
    for phrase in phrases:
        # What Python makes of bytes on a command line that are not in its encoding.
        if any(unicodedata.category(c) == 'Cs' for c in phrase):
            raise VocabularyError(
                f'the phrase {quote(phrase)} is not text in UTF-8; write it anew in a UTF-8 '
                'terminal'
            )


def _refuse_duplicates(classes: Sequence[tuple[str, ...]]) -> None:
    owner: dict[str, str] = {}
    for name, *synonyms in classes:
        for phrase in (name, *synonyms):
            key = phrase.casefold()
            if key in owner:
                raise VocabularyError(
                    f'the phrase {quote(phrase)} stands twice in the vocabulary '
                    f'(classes {quote(owner[key])} and {quote(name)}); remove one'
                )
            owner[key] = name


def _assign_ids(
    names: Sequence[str], previous: Vocabulary | None
) -> tuple[list[int], tuple[tuple[str, int], ...]]:
    """Ids of classes in the order of their names, and what `Vocabulary.retired` is to hold."""
    current = {c.name.casefold(): c.id for c in previous.classes} if previous else {}
    retired = dict(previous.retired) if previous else {}
    wanted = [name.casefold() for name in names]
    known = {**retired, **current}

    ids = {name: known[name] for name in wanted if name in known}
    never_used = (i for i in range(MAX_CLASSES) if i not in set(known.values()))
    longest_retired = (i for name, i in retired.items() if name not in ids)
    just_retired = (i for name, i in current.items() if name not in ids)
    free = (i for source in (never_used, longest_retired, just_retired) for i in source)
    for name in wanted:
        if name not in ids:
            ids[name] = next(free)

    in_force = set(ids.values())
    still_retired = tuple((name, i) for name, i in known.items() if i not in in_force)
    return [ids[name] for name in wanted], still_retired
