"""Text for pictures, in every script that a font of this machine has."""

import math
import subprocess
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: A font: its file, and which of the fonts in it.
_Font = tuple[str, int]
#: The one that Pillow brings along. It has English letters only.
_BUILT_IN: _Font = ('', 0)
#: No font has a letter of this code.
_NO_LETTER = '\uffff'


@lru_cache(maxsize=1024)
def text_mask(text: str, size: int) -> np.ndarray:
    """Draw a line of text.

    Letters that no font has lose their accents or are written by their codes, as in Python.

    Args:
        size: Of the letters, pixels.

    Returns:
        uint8 (`line_height(size)`, W), 255 = ink, read-only; all have the same baseline.
    """
    runs = [(run, _open_font(font, size)) for run, font in _split_by_font(text)]
    width = math.ceil(sum(font.getlength(run) for run, font in runs)) + 1
    canvas = Image.new('L', (width, line_height(size)))
    draw, left = ImageDraw.Draw(canvas), 0.0
    for run, font in runs:
        draw.text((left, round(1.05 * size)), run, 255, font, anchor='ls')
        left += font.getlength(run)
    mask = np.array(canvas)
    mask.flags.writeable = False
    return mask


def line_height(size: int) -> int:
    """From one line of text to the next, pixels."""
    return round(1.4 * size)


def can_be_drawn(text: str) -> bool:
    """Whether fonts of this machine have all letters of a text."""
    return ''.join(run for run, _ in _split_by_font(text)) == unicodedata.normalize('NFC', text)


@lru_cache(maxsize=1024)
def _split_by_font(text: str) -> list[tuple[str, _Font]]:
    """A text in parts, each with the font to draw it in."""
    text = unicodedata.normalize('NFC', text)
    fonts = [_find_font(''), _BUILT_IN]
    if missing := ''.join(sorted({letter for letter in text if not _has_letter(fonts[0], letter)})):
        fonts.insert(1, _find_font(missing))
    if font := _first_with(text, fonts):
        # Letters of one font fit together, so a text is split only where it must be.
        return [(text, font)]
    parts = [_substitute(letter, fonts) for letter in text]
    runs = groupby(parts, key=lambda part: _first_with(part, fonts))
    return [(''.join(run), font) for font, run in runs if font is not None]


def _substitute(letter: str, fonts: Sequence[_Font]) -> str:
    """The letter, or what says most of it in letters that fonts have."""
    parts = unicodedata.normalize('NFD', letter)
    bare = ''.join(part for part in parts if not unicodedata.combining(part))
    code = letter.encode('ascii', 'backslashreplace').decode()
    return next(text for text in (letter, bare, code) if _first_with(text, fonts))


def _first_with(letters: str, fonts: Sequence[_Font]) -> _Font | None:
    return next((font for font in fonts if all(_has_letter(font, part) for part in letters)), None)


@lru_cache(maxsize=4096)
def _has_letter(font: _Font, letter: str) -> bool:
    # Pillow does not say which letters a font has, but draws the same box for all it has not. With
    # the basic layout, because the other one shows a lone mark on a dotted circle.
    try:
        opened = _open_font(font, 24, ImageFont.Layout.BASIC)
        drawn, missing = (opened.getmask(code) for code in (letter, _NO_LETTER))
    except (OSError, ValueError):
        return False
    return letter.isspace() or (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


@lru_cache(maxsize=1024)
def _find_font(letters: str) -> _Font:
    """The sans-serif font that fits letters best, as fontconfig says; it may not have them all."""
    pattern = 'sans:charset=' + ' '.join(f'{ord(letter):x}' for letter in letters)
    command = ['fc-match', '--format', '%{file}\n%{index}', pattern if letters else 'sans']
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        file, index = found.stdout.split('\n')
        return file, int(index)
    except (OSError, subprocess.SubprocessError, ValueError):
        return _BUILT_IN


@lru_cache(maxsize=64)
def _open_font(
    font: _Font, size: int, layout: ImageFont.Layout | None = None
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if font == _BUILT_IN:
        return ImageFont.load_default(size)
    return ImageFont.truetype(font[0], size, font[1], layout_engine=layout)
