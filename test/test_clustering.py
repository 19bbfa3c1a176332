import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from cliptrase_ros.segmentation.method.clustering import (
    cluster_maps,
    dbscan,
    dbscan_bounded,
    dbscan_parameters,
    vote,
)
from cliptrase_ros.segmentation.model.correlation import denoise_correlation, recover_correlation


@given(
    seed=st.integers(0, 2**32 - 1),
    points=st.integers(1, 60),
    eps=st.floats(0.05, 0.6),
    min_samples=st.integers(1, 8),
)
@settings(max_examples=150)
def test_dbscan_numbers_clusters_as_scikit_learn_does(seed, points, eps, min_samples):
    rows = np.random.RandomState(seed).rand(points, 2).astype(np.float32)
    expected = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(rows)
    clusters = dbscan(torch.from_numpy(rows)[None], eps, min_samples)[0]
    np.testing.assert_array_equal(clusters, expected)


def test_dbscan_follows_a_long_chain_whatever_its_order():
    order = np.random.RandomState(0).permutation(400)
    rows = torch.zeros(1, 400, 2)
    rows[0, :, 0] = torch.from_numpy(order).float()
    assert (dbscan(rows, eps=1.0, min_samples=2) == 0).all()


def test_dbscan_in_bounded_rounds_says_whether_they_sufficed():
    chain = np.random.RandomState(0).permutation(400)
    rows = torch.zeros(2, 400, 2)
    rows[0, :, 0] = torch.from_numpy(chain).float()
    rows[1] = torch.from_numpy(np.random.RandomState(1).rand(400, 2))
    _, converged = dbscan_bounded(rows, 1.0, 2, rounds=1, most=400)
    assert converged.tolist() == [False, True]
    clusters, converged = dbscan_bounded(rows, 1.0, 2, rounds=10, most=400)
    assert converged.all() and torch.equal(clusters, dbscan(rows, 1.0, 2))


def test_dbscan_of_a_batch_is_that_of_each_image():
    rows = torch.from_numpy(np.random.RandomState(1).rand(3, 50, 4)).float()
    together = dbscan(rows, 0.4, 3)
    for one, clusters in zip(rows, together, strict=True):
        assert torch.equal(dbscan(one[None], 0.4, 3)[0], clusters)


@pytest.mark.parametrize(
    ('patches', 'expected'), [(196, (0.7, 3)), (441, (1.1, 7)), (784, (1.4, 12))]
)
def test_dbscan_parameters_follow_the_grid(patches, expected):
    assert dbscan_parameters(patches) == pytest.approx(expected)


def test_correlation_is_the_mean_cosine_over_heads_and_projections():
    qkv = torch.randn(2, 5, 3 * 8, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 5, 5)
    for projection in qkv.split(8, dim=-1):
        for head in projection.split(4, dim=-1):
            expected += torch.cosine_similarity(head[:, :, None], head[:, None, :], dim=-1) / 6
    torch.testing.assert_close(recover_correlation(qkv, heads=2), expected)


def test_denoising_takes_the_cls_row_from_every_patch_row():
    correlation = torch.tensor([[[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]]])
    expected = torch.tensor([[[0.5, 0.0], [0.0, 0.8]]])
    torch.testing.assert_close(denoise_correlation(correlation), expected)


def test_cluster_maps_exclude_clusters_that_an_image_lacks():
    correlation = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    clusters = torch.zeros(2, 16, dtype=torch.int64)
    clusters[0, 8:] = 1
    maps, absent = cluster_maps(correlation, clusters, (4, 4), count=2)
    assert maps.shape == (2, 2, 16, 16)
    assert absent.tolist() == [[False, False], [False, True]]
    assert (maps[1, 1] == -1).all() and (maps[0] >= 0).all() and (maps[1, 0] >= 0).all()


def test_vote_takes_the_lowest_label_on_a_tie():
    labels = torch.tensor([[[2, 1], [1, 2]]])
    regions = torch.zeros_like(labels)
    assert (vote(labels, regions, 1, 3, torch.tensor([False])) == 1).all()


def test_vote_leaves_regions_that_disagree_and_images_that_are_spared():
    labels = torch.tensor([[[0, 1, 2, 2]], [[0, 1, 2, 2]]])
    regions = torch.zeros_like(labels)
    undecided = vote(labels, regions, 1, 3, torch.tensor([False, True]), min_agreement=0.6)
    assert torch.equal(undecided, labels)
    decided = vote(labels, regions, 1, 3, torch.tensor([False, True]), min_agreement=0.5)
    assert decided[0].eq(2).all() and torch.equal(decided[1], labels[1])
