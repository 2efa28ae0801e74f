"""Metrics of written texts against the programs and definitions that they come from."""

import importlib.util
import math
import random
import shutil
from collections import Counter

import pytest

from vljax.metrics import text as metrics
from vljax.metrics.text import MissingToolError, text_scores

WORDS = ("a", "the", "man", "dog", "cat", "rides", "runs", "on", "in", "snow", "red", ".", ",")

needs_coco = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed"
)


def corpus(seed, count=40, references=3):
    """Texts, and noisy copies of each as references, their number varying."""
    chance = random.Random(seed)
    texts, right = [], []
    for _ in range(count):
        words = chance.choices(WORDS, k=chance.randint(1, 14))
        texts.append(" ".join(words))
        noisy = []
        for _ in range(chance.randint(1, references)):
            changed = [w if chance.random() < 0.8 else chance.choice(WORDS) for w in words]
            noisy.append(" ".join(changed + chance.choices(WORDS, k=chance.randint(0, 2))))
        right.append(noisy)
    return texts, right


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def papineni(texts, right):
    """BLEU-4 from its definition, without smoothing."""
    hits, total, length, closest = [0] * 4, [0] * 4, 0, 0
    for text, references in zip(texts, right, strict=True):
        words, others = text.split(), [r.split() for r in references]
        length += len(words)
        closest += min((abs(len(o) - len(words)), len(o)) for o in others)[1]
        for n in range(1, 5):
            found = grams(words, n)
            most = Counter()
            for other in others:
                most |= grams(other, n)
            hits[n - 1] += sum((found & most).values())
            total[n - 1] += sum(found.values())
    brevity = min(1.0, math.exp(1 - closest / length))
    return (
        100 * brevity * math.exp(sum(math.log(h / t) for h, t in zip(hits, total, strict=True)) / 4)
    )


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_papineni_s(seed):
    texts, right = corpus(seed)
    assert metrics.bleu(texts, right) == pytest.approx(papineni(texts, right), rel=1e-9)


@needs_coco
@pytest.mark.parametrize("seed", range(3))
def test_coco_s_bleu_agrees_with_ours(seed):
    texts, right = corpus(seed)
    assert metrics.coco_bleu(texts, right) == pytest.approx(metrics.bleu(texts, right), rel=1e-6)


def test_bleu_keeps_tokens_as_they_are():
    code, plain = "if x == 'a.b' :pass", "x."
    assert metrics.bleu([code], [["if x == 'a . b' :pass"]]) < 50
    assert metrics.bleu_13a([f"{plain} y z"], [["x . y z"]]) == pytest.approx(100)
    assert metrics.bleu([f"{plain} y z"], [["x . y z"]]) < 100


def test_rouge_is_the_mean_of_the_best_references():
    from rouge_score import rouge_scorer

    texts, right = corpus(5)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, score in metrics.rouge(texts, right).items():
        best = [
            max(scorer.score(reference, text)[name].fmeasure for reference in references)
            for text, references in zip(texts, right, strict=True)
        ]
        assert score == pytest.approx(100 * sum(best) / len(best))


def test_rouge_of_a_known_pair():
    scores = metrics.rouge(["the cat sat on the mat"], [["the cat was on the mat"]])
    assert scores["rouge1"] == pytest.approx(500 / 6)
    assert scores["rouge2"] == pytest.approx(300 / 5)
    assert scores["rougeL"] == pytest.approx(500 / 6)
    stemmed = metrics.rouge(["dogs running"], [["dog runs"]], stem=True)
    assert stemmed["rouge1"] == 100
    assert metrics.rouge(["dogs running"], [["dog runs"]])["rouge1"] == 0


def test_ter_counts_edits_and_shifts():
    assert metrics.ter(["a b c d"], [["a b c d"]]) == 0
    assert metrics.ter(["a b x d"], [["a b c d"]]) == pytest.approx(25)
    # Moving a block is one edit however long the block is.
    assert metrics.ter(["e f g h a b c d"], [["a b c d e f g h"]]) == pytest.approx(100 / 8)
    assert metrics.ter(["", "a b"], [["x y"], ["a b"]]) == pytest.approx(50)


def test_accuracy_is_of_whole_texts():
    texts = ["a b", "a  b ", "a b", "a", ""]
    right = [["a b"], ["x", "a b"], ["a b c"], ["b"], ["", "c"]]
    assert metrics.accuracy(texts, right) == pytest.approx(60)


@needs_coco
def test_cider_of_copies_and_of_others_captions():
    texts = ["a red bicycle leans on a wall", "two dogs play in deep snow", "the kitchen is empty"]
    right = [[text, f"{text} today"] for text in texts]
    assert metrics.cider(texts, right) > 500
    assert metrics.cider(texts[1:] + texts[:1], right) < 1
    alone = metrics.cider([texts[0], "", texts[2]], right)
    assert 0 < alone < metrics.cider(texts, right)


@needs_coco
def test_cider_d_from_its_definition():
    """Vedantam et al. (2015), equations 1 to 4, with the clipping and length penalty of CIDEr-D."""
    texts, right = corpus(7, count=12)
    frequency = Counter()
    for references in right:
        found = {g for r in references for n in range(1, 5) for g in grams(r.split(), n)}
        frequency.update(found)
    log_count = math.log(len(right))

    def vector(text, n):
        return {
            g: c * (log_count - math.log(max(1, frequency[g])))
            for g, c in grams(text.split(), n).items()
        }

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values()))

    total = 0.0
    for text, references in zip(texts, right, strict=True):
        for reference in references:
            # The program measures length in bigrams.
            delta = max(len(text.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
            for n in range(1, 5):
                a, b = vector(text, n), vector(reference, n)
                product = sum(min(a[g], b.get(g, 0)) * b.get(g, 0) for g in a)
                if norm(a) and norm(b):
                    product /= norm(a) * norm(b)
                penalty = math.exp(-(delta**2) / (2 * 6**2))
                total += product * penalty / 4 * 10 / len(references)
    assert metrics.cider(texts, right) == pytest.approx(100 * total / len(texts), rel=1e-9)


@needs_coco
def test_coco_s_rouge_takes_the_best_precision_and_the_best_recall():
    text, right = "a b c d", [["a b", "a b c d e f g h"]]
    precision, recall, beta = 1.0, 1.0, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert metrics.coco_rouge_l([text], right) == pytest.approx(100 * expected)


@needs_coco
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_meteor_in_java():
    texts = ["a man rides a red bicycle", "two dogs | play ||| in\nthe snow"]
    assert metrics.meteor(texts, [[text] for text in texts]) == pytest.approx(100)
    assert 0 < metrics.meteor(["two dogs playing"], [["two dog plays"]]) < 100


def test_what_is_not_installed_is_told_beside_what_is(monkeypatch):
    monkeypatch.setattr(metrics.shutil, "which", lambda name: None)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    scores, missing = text_scores(["a b"], [["a b"]], ["accuracy", "meteor", "spice", "cider"])
    assert scores == {"accuracy": 100.0}
    assert set(missing) == {"meteor", "spice", "cider"}
    assert all("not installed" in why and "\n" not in why for why in missing.values())
    with pytest.raises(MissingToolError):
        metrics.meteor(["a"], [["a"]])


@needs_coco
def test_without_java_the_java_metrics_are_missing(monkeypatch):
    monkeypatch.setattr(metrics.shutil, "which", lambda name: None)
    scores, missing = text_scores(["a b"], [["a b"]], ["meteor", "spice", "coco_bleu"])
    assert set(scores) == {"coco_bleu"}
    assert "Java" in missing["meteor"]
    assert "Java" in missing["spice"]


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="2 predictions, but references of 1"):
        text_scores(["a", "b"], [["a"]], ["bleu"])
    with pytest.raises(ValueError, match="no predictions"):
        text_scores([], [], ["bleu"])
    with pytest.raises(ValueError, match=r"references\[1\]"):
        metrics.accuracy(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match=r"references\[0\]"):
        metrics.accuracy(["a"], ["a"])
    with pytest.raises(ValueError, match="choose from bleu"):
        text_scores(["a"], [["a"]], ["blue"])


def test_an_empty_text_is_judged_and_makes_every_metric_worse():
    texts, right = corpus(11, count=12)
    names = [name for name in metrics.METRICS if name not in ("meteor", "spice", "accuracy")]
    whole, _ = text_scores(texts, right, names)
    empty, _ = text_scores(["", *texts[1:]], right, names)
    with_reference, _ = text_scores(texts, [["", *right[0]], *right[1:]], names)
    for name in whole:
        assert (empty[name] < whole[name]) == (name != "ter"), name
        assert math.isfinite(with_reference[name]), name


def test_every_metric_has_a_program():
    assert metrics.PROGRAMS.keys() == metrics.METRICS.keys()


def test_bleu_of_shorter_ngrams_and_the_cider_of_each_text():
    texts, right = corpus(5, count=12)
    orders = ("coco_bleu1", "coco_bleu2", "coco_bleu3", "coco_bleu", "cider")
    scores, missing = text_scores(texts, right, orders)
    if missing:
        pytest.skip(f"{missing}")
    # Of one text of four words with three right, in two runs: 3/4, then √(3/4 · 1/3).
    one, two = (metrics.coco_bleu(["a b x d"], [["a b c d"]], order=n) for n in (1, 2))
    assert one == pytest.approx(75, abs=1e-3)
    assert two == pytest.approx(50, abs=1e-3)
    assert list(scores.values())[:4] == sorted(list(scores.values())[:4], reverse=True)
    each = metrics.cider_scores(texts, right)
    assert each.shape == (12,)
    assert each.mean() == pytest.approx(scores["cider"])
