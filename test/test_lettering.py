"""Text in pictures: scripts, fonts that are missing, and how legends read."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cliptrase_ros.segmentation import lettering
from cliptrase_ros.segmentation.lettering import can_be_drawn, line_height, text_mask
from cliptrase_ros.segmentation.overlay import draw_overlay, legend_name
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

#: Unicode has no such letter, so no font has it.
NOBODYS = '\u0378'


def forget():
    for function in (lettering._find_font, lettering._split_by_font, lettering.text_mask):
        function.cache_clear()


@pytest.fixture(params=['no fontconfig', 'no fonts'])
def without_fonts(request, monkeypatch, tmp_path):
    """As in a small container."""
    if request.param == 'no fontconfig':
        monkeypatch.setenv('PATH', str(tmp_path))
    else:
        (tmp_path / 'fonts.conf').write_text('<fontconfig/>')
        monkeypatch.setenv('FONTCONFIG_FILE', str(tmp_path / 'fonts.conf'))
    forget()
    yield
    forget()


def drawn(words, areas=(), size=(480, 640)):
    """A legend on white: classes by the part of the picture that each takes, all the same at first.

    Returns what is drawn on, True where it is no longer white, and the vocabulary.
    """
    vocabulary = parse_vocabulary(words)
    areas = areas or [1] * len(vocabulary.classes)
    label = np.repeat(vocabulary.ids, areas)
    label = np.resize(np.sort(np.resize(label, size[0] * size[1])), size)
    overlay = draw_overlay(np.full((*size, 3), 255, np.uint8), label, vocabulary, opacity=0.0)
    return overlay, (overlay != 255).any(axis=2), vocabulary


@pytest.mark.parametrize(
    'words', [['красный', 'мяч'], ['κόκκινη', 'μπάλα'], ['kırmızı', 'Käse'], ['đỏ', 'quả bóng']]
)
def test_letters_of_other_scripts_are_drawn(words):
    letters = sorted(set(''.join(words)) - {' '})
    codes = ' '.join(f'{ord(letter):x}' for letter in letters)
    fonts = shutil.which('fc-list') and subprocess.run(
        ['fc-list', f':charset={codes}'], capture_output=True, text=True
    )
    if not (fonts and fonts.stdout):
        pytest.skip('no font here has these letters')
    assert [legend_name(c) for c in parse_vocabulary(words).classes] == words
    # Each its own, not one sign for all that is missing.
    masks = [text_mask(letter, 24) for letter in letters]
    assert len({(mask.shape, mask.tobytes()) for mask in masks}) == len(letters)
    assert all(mask.max() == 255 for mask in masks)


@pytest.mark.parametrize(
    'words', [['红球', '地板'], ['빨간 공', '바닥'], ['लाल', 'फर्श'], ['כדור', 'רצפה']]
)
def test_legends_tell_classes_of_any_script_apart(words):
    there, back = (drawn(order)[0] for order in (words, words[::-1]))
    assert (there != back).any()


def test_a_class_whose_letters_no_font_has_is_named_by_its_id_and_their_codes():
    assert not can_be_drawn(f'ball {NOBODYS}')
    names = [legend_name(c) for c in parse_vocabulary(['cone', f'ball {NOBODYS}']).classes]
    assert names == ['cone', f'id 1 ball {NOBODYS}']
    np.testing.assert_array_equal(text_mask(names[1], 20), text_mask('id 1 ball \\u0378', 20))


def test_without_fonts_english_is_drawn_and_the_rest_as_far_as_possible(without_fonts):
    classes = parse_vocabulary(['red ball', '红球', 'Käse', '빨']).classes
    expected = ['red ball', 'id 1 \\u7ea2\\u7403', 'id 2 Kase', 'id 3 \\ube68']
    for entry, text in zip(classes, expected, strict=True):
        mask = text_mask(legend_name(entry), 20)
        assert can_be_drawn(text) and mask.max() == 255
        np.testing.assert_array_equal(mask, text_mask(text, 20))


def test_lines_of_a_size_are_of_one_height():
    assert {text_mask(t, 20).shape[0] for t in ('a', 'ÄÖ', 'gjpq', '红', '')} == {line_height(20)}


def test_drawing_again_or_in_threads_gives_the_same():
    words = ['red ball', 'красный мяч', '红球', 'Käse', f'x {NOBODYS}']
    expected, _, _ = drawn(words)
    forget()
    with ThreadPoolExecutor(8) as pool:
        for overlay, _, _ in pool.map(drawn, [words] * 16):
            np.testing.assert_array_equal(overlay, expected)


def test_rows_of_a_legend_do_not_change_places_with_areas():
    first, where, _ = drawn(['road', 'grass', 'person'], areas=(5, 3, 1))
    second, _, _ = drawn(['road', 'grass', 'person'], areas=(1, 2, 6))
    np.testing.assert_array_equal(first[where], second[where])


@pytest.mark.parametrize('size', [(240, 320), (480, 640), (2160, 3840)])
def test_a_legend_is_readable_and_leaves_the_picture_to_be_seen(size):
    _, few, _ = drawn(['wall', 'floor', 'door', 'box', 'cone', 'cylinder'], size=size)
    rows = few.any(axis=1).sum() / 6
    # Enough pixels for letters, and enough of a window's height to be read in one.
    assert rows >= 14 and rows >= size[0] / 40
    _, many, _ = drawn([f'thing number {i}' for i in range(60)], size=size)
    assert many.any(axis=1).mean() < 0.75 and many.mean() < 0.3


def test_of_many_classes_the_largest_are_named():
    words = [f'thing {i}' for i in range(60)]
    areas = [1] * 60
    areas[42] = 50
    _, _, vocabulary = drawn(words)
    overlay, _, _ = drawn(words, areas=areas)
    assert (overlay == vocabulary.classes[42].color).all(axis=2).any()
    assert not (overlay == vocabulary.classes[59].color).all(axis=2).any()
