"""The engine against recorded steps of the published code of SC-CLIP, on a small model."""

import copy
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from reference_weights import outlier_clip

from cliptrase_ros.evaluation.recordings import read_recording
from cliptrase_ros.evaluation.verify import Verifier
from cliptrase_ros.evaluation.verify_sc_clip import sc_clip_table
from cliptrase_ros.segmentation.method import pamr, sliding
from cliptrase_ros.segmentation.model import backbone, calibration, preprocessing
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.pipeline import Pipeline
from cliptrase_ros.segmentation.segmenter import Segmenter

CASES = {
    path.stem: read_recording(path)
    for path in sorted((Path(__file__).parent / 'golden').glob('sc_*.npz'))
}


@pytest.fixture(scope='module')
def loaded():
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return LoadedModel(outlier_clip(), tokenizer, mean, std, 'reference')


@pytest.fixture(scope='module')
def verifier(loaded, device):
    return Verifier(loaded, device=device)


@pytest.fixture(scope='module')
def half(loaded, device):
    return Verifier(replace(loaded, model=copy.deepcopy(loaded.model)), 'float16', device)


@pytest.mark.parametrize('case', CASES)
def test_every_step_equals_the_published_code(verifier, case):
    agreement = verifier.compare_sc_clip(CASES[case])
    assert agreement.first_difference is None, agreement


@pytest.mark.parametrize('case', CASES)
def test_half_precision_keeps_the_labels(half, case):
    assert half.compare_sc_clip(CASES[case]).stages['labels'].share >= 0.99


@pytest.mark.parametrize('case', CASES)
def test_every_image_of_a_batch_is_labelled_as_published(loaded, device, case):
    golden = CASES[case]
    pipeline = Segmenter(loaded, device).pipeline
    frames = torch.from_numpy(golden.image).expand(2, -1, -1, -1).contiguous().to(device)
    framing = framing_of('mmcv', golden.image.shape[:2], golden.resolution, 16)
    least = torch.tensor(golden.min_confidence, device=device)
    table = sc_clip_table(golden).to(device)
    with torch.inference_mode():
        labels = pipeline(frames, framing, table, least, golden.method).label.cpu()
    # Elsewhere pictures are not resized to the published bytes.
    enough = 0.9999 if device.type == 'cpu' else 0.98
    for image in labels:
        assert (image.numpy() == golden.steps['labels']).mean() >= enough


def test_there_are_golden_cases_of_every_kind():
    synonyms, whole, refined = (CASES[f'sc_{name}'] for name in ('synonyms', 'whole', 'pamr'))
    assert synonyms.min_confidence and synonyms.method.min_area
    assert len(synonyms.phrases) > 1 + max(synonyms.phrase_classes)
    assert (whole.method.window, whole.has_background) == (0, True)
    assert (refined.method.refinement, refined.has_background) == ('pamr', False)
    # The last window ends at the border, between patches.
    assert refined.steps['windows'][-1].tolist() == [16, 79, 240, 303]
    for golden in CASES.values():
        # One outlier in the corner has no neighbours but outliers.
        assert golden.steps['repaired'].sum() < golden.steps['flagged'].shape[1]


def mean_of_two_decimals(pipeline, picture, frame):
    mean, std = ((255 * value).round(decimals=2) for value in (pipeline.mean, pipeline.std))
    return picture.float().sub(mean).div(std)


def antialiased(*arguments):
    return replace(preprocessing.mmcv_framing(*arguments), antialias=True)


def similarity_of_block_10(depth, blocks_for=calibration.blocks_for):
    return replace(blocks_for(depth), similar=10)


def only_block_11_repaired(both, flagged, grid, repair=calibration.repair):
    before_last, similar = both.chunk(2, -1)
    return torch.cat([repair(before_last, flagged, grid), similar], -1)


def without_second_pass(*steps, calibration_of=backbone.Calibration):
    *others, low_aggregated, _ = steps
    return calibration_of(*others, low_aggregated, low_aggregated[0])


def corners_in_whole_patches(*arguments, window_corners=sliding.window_corners):
    return [(top // 16 * 16, left // 16 * 16) for top, left in window_corners(*arguments)]


# What is done wrong, with the stage at which that is seen and the recording in which.
MISTAKES = [
    ('picture', 'sc_whole', preprocessing._FRAMINGS, 'mmcv', antialiased),
    ('windows', 'sc_pamr', sliding, 'window_corners', corners_in_whole_patches),
    ('block11', 'sc_whole', Pipeline, 'normalise', mean_of_two_decimals),
    ('outlier scores', 'sc_whole', calibration, 'outlier_scores', lambda p, _: p.norm(dim=-1)),
    ('repaired11', 'sc_whole', calibration, 'repair', lambda patches, flagged, grid: patches),
    ('repaired9', 'sc_whole', calibration, 'repair', only_block_11_repaired),
    ('repaired9', 'sc_whole', calibration, 'blocks_for', similarity_of_block_10),
    ('attention1', 'sc_whole', calibration, '_CONTRAST', 2.0),
    ('before ln_post', 'sc_whole', backbone, 'Calibration', without_second_pass),
    ('logits', 'sc_pamr', pamr, '_STEPS', 9),
]


@pytest.mark.parametrize(
    ('stage', 'case', 'where', 'name', 'wrong'), MISTAKES, ids=[stage for stage, *_ in MISTAKES]
)
def test_the_stage_of_a_mistake_is_named(verifier, monkeypatch, stage, case, where, name, wrong):
    if isinstance(where, dict):
        monkeypatch.setitem(where, name, wrong)
    else:
        monkeypatch.setattr(where, name, wrong)
    assert verifier.compare_sc_clip(CASES[case]).first_difference == stage
