"""Phrases to features: prompts composed of parts, and the cache on disk."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import TINY_CONFIG

from cliptrase_ros.segmentation.model.prompts import PROMPT_TEMPLATES, PromptTokenizer
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.model.text_cache import TextCache, default_folder

TOKENIZER = open_clip.get_tokenizer('ViT-B-16')
TOKENS = PromptTokenizer(TOKENIZER)
WORDS = st.text(st.sampled_from("abcXYZ019 -.'&;,_/äß日"), min_size=1, max_size=20)


@given(st.one_of(WORDS, st.text(min_size=1, max_size=8)))
@settings(max_examples=60, deadline=None)
def test_prompts_have_the_tokens_that_the_tokenizer_gives_them(phrase):
    prompts = [template(phrase) for template in PROMPT_TEMPLATES]
    assert torch.equal(TOKENS([phrase]), TOKENIZER(prompts))
    longest = max(len(TOKENIZER.encode(prompt)) + 2 for prompt in prompts)
    assert TOKENS.longest(phrase) == longest


def tiny_clip(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**TINY_CONFIG).eval()


def encoder(folder, seed=0):
    return TextEncoder(tiny_clip(seed), TOKENIZER, folder)


def entries(folder):
    return sorted(folder.glob('*.safetensors'))


PHRASES = ['road', 'a red car', 'crème brûlée']


def test_phrases_are_encoded_once_for_all_processes(tmp_path):
    first = encoder(tmp_path)
    assert first.missing(PHRASES) == PHRASES
    features = first.encode(PHRASES)
    second = encoder(tmp_path)
    assert second.missing([*PHRASES, 'tree']) == ['tree']
    assert torch.equal(second.encode(PHRASES), features)


def test_another_model_has_its_own_features(tmp_path):
    encoder(tmp_path, seed=0).encode(PHRASES)
    assert encoder(tmp_path, seed=1).missing(PHRASES) == PHRASES


def damage_empty(path):
    path.write_bytes(b'')


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def damage_other(path):
    path.write_bytes(b'no features')


def damage_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    'damage', [damage_empty, damage_cut, damage_bit, damage_other, damage_folder]
)
def test_damaged_entries_are_encoded_again_with_a_warning(tmp_path, caplog, damage):
    features = encoder(tmp_path).encode(PHRASES)
    for path in entries(tmp_path):
        damage(path)
    again = encoder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(again.encode(PHRASES), features)
    assert any('encoded again' in record.message for record in caplog.records)


@given(st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_entries_of_any_content_are_harmless(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp('cache')
    cache = TextCache(folder, 'model')
    cache.store({'road': np.ones(4, np.float32)})
    entries(folder)[0].write_bytes(content)
    assert cache.load('road', 4) is None


def test_a_folder_that_cannot_be_written_costs_no_vocabulary(tmp_path, caplog):
    (tmp_path / 'file').write_text('')
    with caplog.at_level(logging.WARNING):
        features = encoder(tmp_path / 'file' / 'cache').encode(PHRASES)
    assert features.shape == (3, 32)
    assert any('not kept' in record.message for record in caplog.records)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_costs_no_vocabulary(tmp_path, caplog, monkeypatch):
    # Every write goes to a device that is always full.
    opened = os.fdopen
    monkeypatch.setattr(os, 'fdopen', lambda handle, mode: _full(handle, opened))
    with caplog.at_level(logging.WARNING):
        encoder(tmp_path).encode(PHRASES)
    assert any('No space left' in record.message for record in caplog.records)
    assert list(tmp_path.iterdir()) == []


def _full(handle, opened):
    os.close(handle)
    return opened(os.open('/dev/full', os.O_WRONLY), 'wb', buffering=0)


def test_the_cache_is_bounded_and_drops_what_was_not_used_longest(tmp_path):
    cache = TextCache(tmp_path, 'model', capacity=3)
    values = np.ones(4, np.float32)
    for age, phrase in enumerate(['a', 'b', 'c']):
        cache.store({phrase: values})
        os.utime(cache._path(phrase), (1000 + age, 1000 + age))
    assert cache.load('a', 4) is not None
    cache.store({'d': values})
    kept = [phrase for phrase in 'abcd' if cache.load(phrase, 4) is not None]
    assert kept == ['a', 'c', 'd']


_WRITE_AND_READ = """
import sys
from pathlib import Path

import numpy as np

from cliptrase_ros.segmentation.model.text_cache import TextCache

cache = TextCache(Path(sys.argv[1]), 'model', capacity=8)
for round_ in range(20):
    for word in range(12):
        cache.store({f'{word}': np.full(16, word, np.float32)})
        found = cache.load(f'{(word + round_) % 12}', 16)
        assert found is None or (found == (word + round_) % 12).all()
assert not cache._warned
"""


def test_processes_may_share_a_cache(tmp_path):
    command = [sys.executable, '-c', _WRITE_AND_READ, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert len(entries(tmp_path)) <= 8
    assert not list(tmp_path.glob('*.part'))


def test_the_folder_follows_cache_dir_and_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_folder().is_relative_to(tmp_path)
    assert default_folder(str(tmp_path / 'models')).is_relative_to(tmp_path / 'models')
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert default_folder().is_relative_to(tmp_path / 'home')
