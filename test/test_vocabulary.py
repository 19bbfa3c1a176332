import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    MAX_CLASSES,
    MAX_PHRASES,
    UNLABELLED,
    VocabularyError,
    parse_vocabulary,
)


def ids_by_name(vocabulary):
    return {c.name: c.id for c in vocabulary.classes}


@pytest.mark.parametrize('sign', [' = ', ': ', '=', ':', ' : '])
def test_a_string_and_a_list_say_the_same(sign):
    text = parse_vocabulary(f'road; person{sign}pedestrian,  road   worker;')
    listed = parse_vocabulary(['road', f'person{sign}pedestrian, road worker'])
    assert text == listed
    assert text.classes[1].synonyms == ('pedestrian', 'road worker')
    named = ('road', 'person', 'pedestrian', 'road worker')
    assert text.phrases == (*named, *DEFAULT_BACKGROUND)


def test_a_background_in_one_string():
    assert parse_vocabulary('road', 'sky;  red  wall;').background == ('sky', 'red wall')
    assert parse_vocabulary('road', '').background == parse_vocabulary('road', ()).background == ()


def test_a_phrase_in_both_lists_counts_as_the_class():
    vocabulary = parse_vocabulary('road; house = Building, hut', ['\ufeffroad', 'sky', 'building'])
    assert vocabulary.background == ('sky',)
    assert parse_vocabulary('wall').background == DEFAULT_BACKGROUND[1:]


def test_non_ascii_phrases_are_kept_as_written():
    assert parse_vocabulary(['Straße', '人'], ()).phrases == ('Straße', '人')


@pytest.mark.parametrize(
    'text',
    ['red\n\x1bball', 'red\u200bball', '\ufeffred ball', '\u202ered\u2028\u2066ball\u202c'],
)
def test_control_and_format_characters_become_white_space(text):
    assert parse_vocabulary([text], ()).phrases == ('red ball',)


def test_phrases_that_only_look_different_are_duplicates():
    with pytest.raises(VocabularyError, match='twice'):
        parse_vocabulary(['road', 'road\u200b'])
    with pytest.raises(VocabularyError, match='twice in the background'):
        parse_vocabulary(['road'], ['sky', '\ufeffsky'])


def test_number_of_phrases_is_limited():
    synonyms = [f'word {i}' for i in range(MAX_PHRASES - 2)]
    text = f'thing: {", ".join(synonyms)}'
    assert len(parse_vocabulary([text], ['sky']).phrases) == MAX_PHRASES
    with pytest.raises(VocabularyError, match=f'{MAX_PHRASES + 1} phrases'):
        parse_vocabulary([text], ['sky', 'wall'])
    with pytest.raises(VocabularyError, match=f'{MAX_PHRASES + 1} phrases'):
        parse_vocabulary([f'{text}, one, two'], ())


@pytest.mark.parametrize(
    ('entries', 'reason'),
    [
        ([], 'empty'),
        ('', 'empty'),
        (['  '], 'empty'),
        (['road', ' '], 'blank'),
        (['person: '], 'blank'),
        (['person: worker,,driver'], 'blank'),
        ('road; = street', 'blank'),
        ('person =', 'blank'),
        ('road = street, car = van', "'=' or ':' in the synonym 'car = van'"),
        ('ratio: 16:9', "'=' or ':' in the synonym '16:9'"),
        ('person = a: b', "'=' or ':' in the synonym 'a: b'"),
        ('road;;person', 'blank'),
        (['\u200b'], 'empty'),
        (['road', '\ufeff\u200d'], 'blank'),
        (['road: \u0301'], 'blank'),
        (['road', '\ue000\ud800'], 'blank'),
        (['road', 'Road'], 'twice'),
        (['road: street', 'street'], 'twice'),
        ([f'class {i}' for i in range(300)], '300 classes'),
    ],
)
def test_unusable_vocabularies_are_refused_with_the_reason(entries, reason):
    with pytest.raises(VocabularyError, match=reason):
        parse_vocabulary(entries)


@pytest.mark.parametrize(
    'background', [['sky', 'sky'], [' '], ['\u200b'], ['sky = clouds'], ['sky: clouds']]
)
def test_background_must_not_repeat_or_be_blank_or_have_synonyms(background):
    with pytest.raises(VocabularyError, match='background'):
        parse_vocabulary(['road'], background)


def test_classes_keep_their_ids_and_colours_and_versions_count():
    first = parse_vocabulary(['road', 'person', 'car'])
    second = parse_vocabulary(['tree', 'car', 'road'], previous=first)
    kept, new = ids_by_name(second), ids_by_name(first)
    assert kept['road'] == new['road'] and kept['car'] == new['car']
    assert kept['tree'] not in new.values()
    assert (first.version, second.version) == (1, 2)
    assert second.classes[1].color == first.classes[2].color


def test_a_class_that_returns_gets_its_old_id():
    first = parse_vocabulary(['road', 'person'])
    second = parse_vocabulary(['road', 'tree'], previous=first)
    third = parse_vocabulary(['person', 'tree'], previous=second)
    assert ids_by_name(third)['person'] == ids_by_name(first)['person']


def test_when_no_unused_id_is_left_the_longest_retired_is_taken():
    first = parse_vocabulary([f'a{i}' for i in range(MAX_CLASSES)])
    second = parse_vocabulary([f'a{i}' for i in range(1, MAX_CLASSES)], previous=first)
    third = parse_vocabulary([f'a{i}' for i in range(2, MAX_CLASSES)], previous=second)
    fourth = parse_vocabulary([f'a{i}' for i in range(2, MAX_CLASSES)] + ['new'], previous=third)
    assert ids_by_name(fourth)['new'] == ids_by_name(first)['a0']


@given(
    st.lists(
        st.lists(st.integers(0, 400), min_size=1, max_size=MAX_CLASSES, unique=True),
        min_size=1,
        max_size=6,
    )
)
def test_ids_are_unique_in_range_and_stable_over_any_history(history):
    vocabulary = None
    for names in history:
        before = ids_by_name(vocabulary) if vocabulary else {}
        vocabulary = parse_vocabulary([f'class {n}' for n in names], previous=vocabulary)
        now = ids_by_name(vocabulary)
        assert len(set(now.values())) == len(now)
        assert all(0 <= i < UNLABELLED for i in now.values())
        assert all(now[name] == before[name] for name in now if name in before)


@given(st.one_of(st.text(), st.lists(st.text(), max_size=8)))
def test_any_text_is_parsed_or_refused_with_a_reason(entries):
    try:
        vocabulary = parse_vocabulary(entries)
    except VocabularyError as error:
        assert str(error)
    else:
        assert all(p.strip() == p and p for p in vocabulary.phrases)
