"""Semantic object accuracy by hand, captioning back by words that are known, crops of objects."""

import numpy as np
import pytest

from vljax.data.scenes import Scenes, render
from vljax.data.scenes.oracle import truth
from vljax.metrics.frechet import object_crops
from vljax.metrics.text_fidelity import captioned_back, semantic_object_accuracy


def test_classes_count_alike_in_soa_c_and_pictures_in_soa_i():
    """Three pictures of a dog, of which one shows it, and one of a cat, which shows it."""
    named = [["dog"], ["dog"], ["dog"], ["cat", "cat"]]
    found = [["dog", "cat"], [], ["cat"], ["cat", "tree"]]
    values = semantic_object_accuracy(named, found)
    assert values["SOA-C"] == pytest.approx((1 / 3 + 1) / 2)
    assert values["SOA-I"] == pytest.approx(2 / 4)
    assert values["standard error of SOA-I"] == pytest.approx(0.5 / 3**0.5)


def test_a_text_counts_by_the_classes_it_names():
    values = semantic_object_accuracy([["dog", "cat"], []], [["cat"], ["dog"]])
    assert (values["SOA-C"], values["SOA-I"]) == (0.5, 0.5)
    assert np.isnan(semantic_object_accuracy([[]], [["dog"]])["SOA-C"])
    with pytest.raises(ValueError, match="2 texts, but detections in 1"):
        semantic_object_accuracy([[], []], [[]])


def test_captions_are_compared_with_the_texts():
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    pictures[1] = 255
    texts = ["a black square", "a white square"]

    def write(pictures):
        return [f"a {'white' if one.mean() > 128 else 'black'} square" for one in pictures]

    assert captioned_back(pictures, texts, write, ("accuracy",)) == {"accuracy": 100}
    assert captioned_back(pictures[::-1], texts, write, ("accuracy",)) == {"accuracy": 0}
    with pytest.raises(ValueError, match="1 texts, but 2 pictures"):
        captioned_back(pictures, texts[:1], write)


def test_a_crop_is_an_object_alone():
    scenes = Scenes(size=10, min_objects=2, max_objects=2, sizes=("large",))
    pictures = [render(scenes.scene(i), 64) for i in range(3)]
    known = [truth(scenes.scene(i), 64) for i in range(3)]
    crops = object_crops(pictures, [np.array([one.box for one in some]) for some in known], 16)
    assert (crops.shape, crops.dtype) == ((6, 16, 16, 3), np.uint8)
    box = known[0][0].box.astype(int)
    inside = pictures[0][box[1] : box[3], box[0] : box[2]]
    np.testing.assert_allclose(crops[0].mean((0, 1)), inside.mean((0, 1)), atol=3)
    # A box is cut at the picture's edge; what is left out is empty.
    boxes = [np.array([[-5.0, -5, 2, 3], [70, 70, 80, 80], [4, 4, 4, 9]])]
    one = object_crops(pictures[:1], boxes, 2)
    assert len(one) == 1
    assert object_crops([], [], 4).shape == (0, 4, 4, 3)
