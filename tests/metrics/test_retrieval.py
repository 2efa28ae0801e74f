"""Retrieval: chance on random embeddings, 1 on perfect ones, brute force between."""

import numpy as np
import pytest

from vljax.errors import UserError
from vljax.metrics.retrieval import (
    clip_score,
    draw_distractors,
    r_precision,
    retrieval_accuracy,
)

KS = (1, 5, 10, 20)


def embeddings(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_chance_level_is_its_expectation():
    queries, targets = embeddings(0, 2, 6000, 8)
    distractors = draw_distractors(np.random.default_rng(1), 6000, 4000)
    found = retrieval_accuracy(queries, targets, embeddings(2, 4000, 8), distractors)
    for k in KS:
        chance = k / 100
        deviation = (chance * (1 - chance) / 6000) ** 0.5
        # Queries that share distractors are not quite independent: five deviations, not three.
        assert found[f"top{k}"] == pytest.approx(chance, abs=5 * deviation)


def test_perfect_embeddings_are_always_found():
    queries = embeddings(0, 200, 16)
    distractors = draw_distractors(np.random.default_rng(1), 200, 150)
    pool = embeddings(2, 150, 16)
    found = retrieval_accuracy(queries, 3 * queries, pool, distractors)
    assert found == {f"top{k}": 1.0 for k in KS}
    assert retrieval_accuracy(queries, -queries, pool, distractors)["top20"] == 0.0


def test_matches_brute_force():
    queries, noise = embeddings(0, 2, 150, 6)
    targets, pool = queries + 2 * noise, embeddings(3, 120, 6)
    distractors = draw_distractors(np.random.default_rng(1), 150, 120)
    ranks = []
    for query, target, others in zip(queries, targets, pool[distractors], strict=True):
        candidates = np.concatenate([others, target[None]])
        cosines = candidates @ query / np.linalg.norm(candidates, axis=1)
        ranks.append(list(np.argsort(-cosines)).index(99))
    found = retrieval_accuracy(queries, targets, pool, distractors, ks=(1, 3, 50, 100))
    expected = {f"top{k}": np.mean(np.array(ranks) < k) for k in (1, 3, 50, 100)}
    assert 0.05 < expected["top1"] < 0.95
    assert found == pytest.approx(expected)


def test_embeddings_all_alike_score_chance():
    same = np.ones((10, 4), np.float32)
    distractors = draw_distractors(np.random.default_rng(0), 10, 200)
    found = retrieval_accuracy(same, same, np.ones((200, 4), np.float32), distractors)
    assert found == pytest.approx({f"top{k}": k / 100 for k in KS})


def test_what_is_not_a_number_is_never_found():
    queries, pool = embeddings(0, 10, 4), embeddings(1, 100, 4)
    distractors = draw_distractors(np.random.default_rng(0), 10, 100)
    found = retrieval_accuracy(queries, np.full_like(queries, np.nan), pool, distractors)
    assert found == {f"top{k}": 0.0 for k in KS}
    broken = retrieval_accuracy(queries, queries, np.full_like(pool, np.nan), distractors)
    assert broken == {f"top{k}": 0.0 for k in KS}


def test_distractors_are_distinct_uniform_and_never_the_querys_own():
    own = np.arange(3000) % 12
    drawn = draw_distractors(np.random.default_rng(0), 3000, 12, count=5, own=own)
    assert drawn.shape == (3000, 5)
    assert all(len(set(row)) == 5 for row in drawn)
    assert not (drawn == own[:, None]).any()
    # Each of the 11 others of query 0 is drawn with probability 5/11 in 250 draws.
    counts = np.bincount(drawn[own == 0].ravel(), minlength=12)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 250 * 5 / 11).max() < 5 * (250 * 5 / 11 * 6 / 11) ** 0.5
    again = draw_distractors(np.random.default_rng(0), 3000, 12, count=5, own=own)
    np.testing.assert_array_equal(drawn, again)


@pytest.mark.parametrize(("pool", "own"), [(98, None), (99, np.zeros(4, int))])
def test_a_pool_too_small_is_refused(pool, own):
    with pytest.raises(UserError, match="only 98 can be drawn"):
        draw_distractors(np.random.default_rng(0), 4, pool, own=own)


def test_r_precision_searches_prompts_by_picture():
    prompts = embeddings(0, 120, 16)
    own = np.repeat(np.arange(120), 2)
    distractors = draw_distractors(np.random.default_rng(0), 240, 120, own=own)
    near = prompts[own] + 0.01 * embeddings(1, 240, 16)
    assert r_precision(near, prompts[own], prompts, distractors) == 1.0
    # Half of the pictures show another prompt.
    wrong = np.where(np.arange(240)[:, None] % 2, near, prompts[distractors[:, 0]])
    assert r_precision(wrong, prompts[own], prompts, distractors) == 0.5


def test_clip_score_of_known_angles():
    images = np.array([[2, 0], [1, 1], [0, 3], [-1, 0], [0, 0]], np.float32)
    texts = np.tile(np.float32([5, 0]), (5, 1))
    cosines = [1, 0.5**0.5, 0, -1, 0]
    expected = 2.5 * np.maximum(cosines, 0)
    np.testing.assert_allclose(clip_score(images, texts), expected, atol=1e-6)
    np.testing.assert_allclose(clip_score(images, texts, 100), 40 * expected, atol=1e-4)
