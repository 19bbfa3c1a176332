"""Files of recorded outputs that are damaged, contradict themselves, or ask for what is not there.

Those of CLIPtrase are in test_cli.py.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
from reference_weights import outlier_clip
from tiny_clip import TINY_CONFIG

from cliptrase_ros.evaluation.recording_checks import RecordingError
from cliptrase_ros.evaluation.recordings import read_recording
from cliptrase_ros.evaluation.verify import Verifier
from cliptrase_ros.segmentation.model.weights import LoadedModel

GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def recorded():
    return dict(np.load(GOLDEN / 'sc_pamr.npz'))


def read(folder, arrays):
    np.savez(folder / 'one.npz', **arrays)
    return read_recording(folder / 'one.npz')


def with_settings(recorded, **changes):
    settings = {**json.loads(str(recorded['settings'])), **changes}
    return {**recorded, 'settings': np.array(json.dumps(settings))}


def test_settings_become_those_of_the_engine(recorded, tmp_path):
    changes = {'slide_crop': 160, 'slide_stride': 80, 'logit_scale': 55, 'area_thd': 0.1}
    recording = read(tmp_path, with_settings(recorded, **changes, prob_thd=0.35, resolution=560))
    method = recording.method
    assert (method.window, method.stride, method.logit_scale, method.min_area) == (160, 80, 55, 0.1)
    assert (recording.resolution, recording.min_confidence) == (560, 0.35)
    assert method.refinement == 'pamr'


def test_whole_pictures_are_not_refined(recorded, tmp_path):
    """The published code refines windows alone, and records no logits before."""
    arrays = with_settings(recorded, slide_crop=0)
    del arrays['logits_before_pamr_sampled']
    assert read(tmp_path, arrays).method.refinement == 'none'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'method': 'RF-CLIP'}, 'a recording of RF-CLIP, which this engine has not'),
        ({'method': None}, 'a recording of an unnamed method'),
        ({'longest': 1024}, 'says longest 1024; this engine has 2048'),
        ({'mean': [122.77, 116.75, 104.09]}, r'says mean \[122.77, '),
        ({'std': None}, 'says std null'),
        ({'beta': 0.5}, 'says beta 0.5; this engine has 0.4'),
        ({'lof_neighbours': 20}, 'says lof_neighbours 20'),
        ({'pamr_steps': 5}, 'says pamr_steps 5; this engine has 0 or 10'),
        ({'pamr_dilations': [1, 2]}, r'says pamr_dilations \[1, 2\]'),
        ({'resolution': 16}, 'resolution is 16; it must be 64 to 1024'),
        ({'resolution': '336'}, "resolution is '336'"),
        ({'slide_crop': 10}, 'slide_crop or slide_stride .* window is 10'),
        ({'pamr_dilations': []}, 'says pamr_steps 10 and no pamr_dilations'),
        ({'slide_stride': 300}, 'stride is 300; it must be 0 to the window'),
        ({'prob_thd': 2}, 'min_confidence is 2'),
        ({'logit_scale': 0}, 'says logit_scale 0'),
        ({'logit_scale': [40]}, r'says logit_scale \[40\]'),
        ({'logit_scale': float('nan')}, 'says logit_scale NaN; it must be a number'),
        ({'logit_scale': float('inf')}, 'says logit_scale Infinity'),
        ({'logit_scale': 10**400}, 'says logit_scale 1000'),
        ({'area_thd': float('nan')}, 'says area_thd NaN'),
        ({'prob_thd': float('nan')}, 'min_confidence is nan'),
        ({'slide_crop': -float('inf')}, 'window is -inf'),
        ({'area_thd': 'much'}, 'says area_thd "much"'),
    ],
)
def test_settings_that_this_engine_has_not(recorded, tmp_path, changes, message):
    with pytest.raises(RecordingError, match=f'one.npz .*{message}'):
        read(tmp_path, with_settings(recorded, **changes))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'settings': np.array('{')}, 'settings that are no JSON'),
        ({'settings': np.array('[]')}, 'an unnamed method'),
        ({'settings': np.zeros(3)}, 'settings is float64'),
        ({'features': None}, 'not a recording of SC-CLIP: features is missing'),
        ({'logits_before_pamr_sampled': None}, 'logits_before_pamr_sampled is missing'),
        ({'repaired': np.zeros(196, np.int16)}, 'repaired is int16'),
        ({'labels': np.zeros((4, 4), np.int16)}, 'contradicts itself; see its labels'),
        ({'labels': np.full((111, 140), 8, np.int16)}, 'see its labels'),
        ({'classes': np.array(['wall', 'floor'])}, 'see its query_class, text_features'),
        ({'classes': np.array([], str)}, 'see its query_class'),
        ({'image': np.zeros((111, 140, 4), np.uint8)}, 'see its image'),
        ({'lof_scores': np.zeros(100, np.float32)}, 'see its flagged, repaired, similarity_mid'),
        ({'feature_tokens': np.full(49, 196, np.int16)}, 'see its feature_tokens'),
        ({'windows': np.zeros((3, 4), np.int16)}, 'see its flagged'),
        (
            {'feature_norm': np.full(196, np.nan, np.float32)},
            'NaN or infinity; see its feature_norm',
        ),
        ({'similarity_mid_mean': np.array(np.inf, np.float32)}, 'see its similarity_mid_mean'),
    ],
)
def test_arrays_that_are_wrong(recorded, tmp_path, changes, message):
    arrays = {name: array for name, array in {**recorded, **changes}.items() if array is not None}
    with pytest.raises(RecordingError, match=f'one.npz .*{message}'):
        read(tmp_path, arrays)


@pytest.mark.parametrize('name', ['nothing', 'words', 'one array', 'objects'])
def test_files_that_are_no_recordings(tmp_path, name):
    path = tmp_path / 'one.npz'
    path.write_bytes(b'no arrays' if name == 'words' else b'')
    if name == 'one array':
        with path.open('wb') as file:
            np.save(file, np.zeros(3))
    if name == 'objects':
        np.savez(path, labels=np.array([{}]))
    with pytest.raises(
        RecordingError, match=r'one.npz is not an .npz file of plain arrays'
    ) as told:
        read_recording(path)
    # NumPy advises to load it in another, unsafe way.
    assert 'pickle' not in str(told.value)


def verifier_of(model):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Verifier(LoadedModel(model, tokenizer, mean, std, 'model'))


@pytest.fixture(scope='module')
def verifier():
    return verifier_of(outlier_clip())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fused_blocks': [4, 5]}, r'fused_blocks \[4, 5\]'),
        ({'slide_crop': 112}, 'windows of 196 patches, the model 49'),
    ],
)
def test_recordings_of_other_models(verifier, recorded, tmp_path, changes, message):
    recording = read(tmp_path, with_settings(recorded, **changes))
    with pytest.raises(RecordingError, match=message):
        verifier.compare_sc_clip(recording)


def test_recordings_of_deeper_models(recorded, tmp_path):
    shallow = verifier_of(open_clip.model.CLIP(**TINY_CONFIG))
    with pytest.raises(RecordingError, match='similarity_block 9, .* tower of 3 blocks'):
        shallow.compare_sc_clip(read(tmp_path, recorded))


def test_recordings_with_features_of_another_width(verifier, recorded, tmp_path):
    arrays = {**recorded}
    for name in ('text_features', 'features'):
        arrays[name] = np.pad(recorded[name], ((0, 0), (0, 64)))
    with pytest.raises(RecordingError, match='text features of 128 numbers, the model of 64'):
        verifier.compare_sc_clip(read(tmp_path, arrays))
