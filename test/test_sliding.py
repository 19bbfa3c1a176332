"""Windows that slide over large frames."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_weights import reference_clip

from cliptrase_ros.segmentation.method import sliding
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.graphs import FixedCalls
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

HALF = (0.5, 0.5, 0.5)
WHOLE = SegmentationSettings(resolution=128)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 20),
)
def test_windows_cover_the_frame_and_do_not_leave_it(grid, window, stride):
    window = tuple(min(pair) for pair in zip(grid, window, strict=True))
    stride = min(stride, *window)
    places = sliding.window_corners(grid, window, stride)
    covered = np.zeros(grid, bool)
    for top, left in places:
        assert top + window[0] <= grid[0] and left + window[1] <= grid[1]
        covered[top : top + window[0], left : left + window[1]] = True
    assert covered.all()
    assert len(set(places)) == len(places)


def test_what_windows_were_cut_from_is_what_they_make():
    places = sliding.window_corners((5, 7), (3, 4), 2)
    image = torch.rand(2, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    cut = sliding.cut_windows(image, places, (3, 4), 2)
    assert cut.shape == (2 * len(places), 3, 6, 8)
    by_patch = torch.nn.functional.avg_pool2d(cut, 2)
    expected = torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(sliding.join_windows(by_patch, places, (5, 7)), expected)


def test_where_windows_overlap_their_mean_counts():
    places = sliding.window_corners((1, 5), (1, 3), 2)
    values = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1).expand(2, 1, 1, 3)
    assert sliding.join_windows(values, places, (1, 5)).flatten().tolist() == [1, 1, 2.5, 4, 4]


@pytest.fixture(scope='module')
def segmenter(device):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    segmenter = Segmenter(LoadedModel(reference_clip(), tokenizer, HALF, HALF), device)
    segmenter.fixed_calls = None
    return segmenter


@pytest.fixture(scope='module')
def words(segmenter):
    return segmenter.encode_vocabulary(parse_vocabulary('road; person; tree; dog', ['sky']))


def picture():
    blocks = np.random.RandomState(0).randint(0, 256, (4, 7, 3))
    return blocks.astype(np.uint8).repeat(32, 0).repeat(32, 1)


@pytest.mark.parametrize('preset', ['robot', 'plus', 'paper'])
def test_a_window_that_covers_the_frame_changes_nothing(segmenter, words, preset):
    settings = replace(WHOLE, preset=preset)
    (whole,) = segmenter.segment([picture()], words, settings)
    (covered,) = segmenter.segment([picture()], words, replace(settings, window=224, stride=64))
    np.testing.assert_array_equal(covered.label, whole.label)
    np.testing.assert_array_equal(covered.confidence, whole.confidence)


@pytest.mark.parametrize('preset', ['robot', 'plus'])
def test_a_frame_without_content_has_no_seams(device, preset):
    model = reference_clip()
    # Without positions, nothing tells one place of such a frame from another.
    model.visual.positional_embedding.data.zero_()
    segmenter = Segmenter(
        LoadedModel(model, open_clip.get_tokenizer('ViT-B-16'), HALF, HALF), device
    )
    words = segmenter.encode_vocabulary(parse_vocabulary('road; person; tree', ['sky']))
    grey = np.full((128, 224, 3), 90, np.uint8)
    settings = replace(WHOLE, preset=preset, window=96, stride=64)
    (result,) = segmenter.segment([grey], words, settings)
    assert len(np.unique(result.label)) == 1
    assert np.ptp(result.confidence.astype(int)) <= 1


@pytest.mark.parametrize('preset', ['robot', 'plus'])
def test_windows_of_a_batch_in_a_call_of_fixed_shape(segmenter, words, make_queue, preset):
    settings = replace(WHOLE, preset=preset, window=64)
    images = [picture(), np.ascontiguousarray(picture()[:, ::-1])]
    alone = [segmenter.segment([image], words, settings)[0] for image in images]
    (whole,) = segmenter.segment(images[:1], words, replace(settings, window=0))
    assert (alone[0].confidence != whole.confidence).any()
    queue = make_queue(segmenter.device)
    segmenter.fixed_calls = FixedCalls(segmenter.pipeline, queue, patience=1)
    try:
        together = segmenter.segment(images, words, settings)
        assert len(segmenter.fixed_calls) == 1
    finally:
        segmenter.fixed_calls = None
    for one, other in zip(together, alone, strict=True):
        assert (one.label == other.label).mean() > 0.99
