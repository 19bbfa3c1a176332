"""Masks of SAM, which take the label their pixels vote for."""

import sys

import numpy as np
import open_clip
import pytest
import torch
from reference_weights import reference_clip

from cliptrase_ros.segmentation import segmenter as segmenter_module
from cliptrase_ros.segmentation.method.sam import Sam, SamError, vote_in_masks
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, parse_vocabulary

LABEL = np.array([[0, 0, 1, 1], [0, 2, 1, 1], [2, 2, 2, 255]], np.uint8)
CONFIDENCE = np.arange(12, dtype=np.uint8).reshape(3, 4) * 10


def mask(*rows):
    return np.array([[cell == '#' for cell in row] for row in rows])


def test_a_mask_takes_the_label_of_most_of_its_pixels():
    left = mask('##..', '##..', '....')
    label, confidence = vote_in_masks(LABEL, CONFIDENCE, left[None])
    assert (label[left] == 0).all() and (label[~left] == LABEL[~left]).all()
    # The mean over the pixels that were 0: 0, 10 and 40.
    assert (confidence[left] == 17).all() and (confidence[~left] == CONFIDENCE[~left]).all()


def test_of_masks_that_overlap_the_smallest_counts_whatever_the_order():
    everything, thing = np.ones((3, 4), bool), mask('....', '.#..', '##..')
    for masks in ([everything, thing], [thing, everything]):
        label, _ = vote_in_masks(LABEL, CONFIDENCE, np.stack(masks))
        # 1 and 2 are as frequent in the whole: the lower one wins.
        assert (label[thing] == 2).all() and (label[~thing] == 1).all()


def test_pixels_vote_with_the_labels_they_came_with():
    # After the large mask every pixel is 1; the small one still counts its own.
    masks = np.stack([np.ones((3, 4), bool), mask('##..', '#...', '....')])
    label, _ = vote_in_masks(LABEL, CONFIDENCE, masks)
    assert label[0].tolist() == [0, 0, 1, 1]


def test_unlabelled_pixels_vote_too():
    corner = mask('....', '....', '...#')
    label, _ = vote_in_masks(LABEL, CONFIDENCE, corner[None])
    assert label[2, 3] == UNLABELLED


def test_nothing_found_changes_nothing_and_inputs_are_left_alone():
    before = LABEL.copy()
    for masks in (np.zeros((0, 3, 4), bool), np.zeros((2, 3, 4), bool)):
        label, confidence = vote_in_masks(LABEL, CONFIDENCE, masks)
        np.testing.assert_array_equal(label, before)
        np.testing.assert_array_equal(confidence, CONFIDENCE)
    vote_in_masks(LABEL, CONFIDENCE, np.ones((1, 3, 4), bool))
    np.testing.assert_array_equal(LABEL, before)


@pytest.mark.parametrize('masks', [np.ones((3, 4), bool), np.ones((1, 3, 4), np.uint8)])
def test_arrays_that_are_no_masks_are_refused(masks):
    with pytest.raises(ValueError, match='masks'):
        vote_in_masks(LABEL, CONFIDENCE, masks)


def halves(images):
    """A source of masks: the left half of each image, and its right half."""
    found = []
    for image in images:
        left = np.zeros(image.shape[:2], bool)
        left[:, : image.shape[1] // 2] = True
        found.append(np.stack([left, ~left]))
    return found


def make_segmenter(mask_source=None):
    half = (0.5, 0.5, 0.5)
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    return Segmenter(LoadedModel(reference_clip(), tokenizer, half, half), mask_source=mask_source)


def picture(seed, height=96, width=128):
    blocks = np.random.RandomState(seed).randint(0, 256, (height // 24, width // 32, 3))
    return blocks.astype(np.uint8).repeat(24, 0).repeat(32, 1)


def test_a_segmenter_refines_a_batch_with_masks_when_asked_to():
    segmenter = make_segmenter(halves)
    words = segmenter.encode_vocabulary(parse_vocabulary('road; person; tree; dog', ()))
    images = [picture(0), picture(1), picture(2, width=192)]
    plain = segmenter.segment(images, words, SegmentationSettings(resolution=96))
    refined = segmenter.segment(
        images, words, SegmentationSettings(resolution=96, refinement='sam')
    )
    for image, before, after, masks in zip(images, plain, refined, halves(images), strict=True):
        assert after.label.shape == image.shape[:2]
        expected, confidence = vote_in_masks(before.label, before.confidence, masks)
        np.testing.assert_array_equal(after.label, expected)
        np.testing.assert_array_equal(after.confidence, confidence)
    assert any((a.confidence != b.confidence).any() for a, b in zip(plain, refined, strict=True))


def test_without_sam_the_error_says_what_to_do():
    segmenter = make_segmenter()
    words = segmenter.encode_vocabulary(parse_vocabulary('road; person', background=()))
    with pytest.raises(ValueError, match='sam_model'):
        segmenter.segment([picture(0)], words, SegmentationSettings(refinement='sam'))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(SamError, match=r'config\.json.*hf download'):
        Sam(tmp_path / 'nowhere')


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / 'config.json').write_text('{}')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(SamError, match='pip install'):
        Sam(tmp_path)


def test_masks_of_a_sam_from_a_folder(tiny_sam):
    images = [picture(0), picture(1, 48, 160)]
    for image, masks in zip(images, Sam(tiny_sam, points_per_side=4)(images), strict=True):
        assert masks.dtype == bool and masks.shape[1:] == image.shape[:2]


def test_sam_moves_with_its_segmenter(tiny_sam, monkeypatch):
    # The device without contents: SAM cannot be anywhere else and find its input there.
    monkeypatch.setattr(segmenter_module, 'select_device', torch.device)
    moved = make_segmenter(Sam(tiny_sam, points_per_side=4)).to('meta')
    model = moved.mask_source._generate.model
    assert {tensor.device.type for tensor in model.state_dict().values()} == {'meta'}
    with pytest.raises(NotImplementedError, match='meta'):
        moved.mask_source([picture(0)])


def test_a_damaged_sam_is_refused_in_one_line(tiny_sam, tmp_path):
    (tmp_path / 'config.json').write_text((tiny_sam / 'config.json').read_text())
    (tmp_path / 'model.safetensors').write_bytes(b'cut off')
    with pytest.raises(SamError, match='cannot be loaded as SAM') as failure:
        Sam(tmp_path)
    assert '\n' not in str(failure.value)
