"""The source of scenes: documented fields, the same everywhere."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vljax.data import scenes
from vljax.data.scenes import (
    ACTIVITIES,
    ANSWERS,
    BACKGROUNDS,
    CLASSES,
    FIELDS,
    Scenes,
    complement,
    execute,
    render,
)
from vljax.data.scenes.world import visibility
from vljax.errors import UserError


def digest(source: Scenes, indices: range) -> str:
    total = hashlib.sha256()
    for index in indices:
        for name, value in sorted(source[index].items()):
            total.update(name.encode())
            total.update(value.tobytes() if hasattr(value, "tobytes") else repr(value).encode())
    return total.hexdigest()


def test_examples_have_the_documented_form():
    source = Scenes(size=30, image_size=48, max_objects=4, fields=FIELDS)
    n, c, k, s = 4, len(CLASSES), scenes.MAX_KEYPOINTS, 48
    form = {
        "image": ((s, s, 3), np.uint8),
        "index": ((), np.int64),
        "count": ((), np.int32),
        "background": ((), np.int32),
        "class_ids": ((n,), np.int32),
        "shows": ((16,), np.bool_),
        "class_vector": ((c,), np.bool_),
        "centres": ((n, 2), np.float32),
        "coordinates": ((c, 2), np.float32),
        "masks": ((n, s, s), np.bool_),
        "boxes": ((n, 4), np.float32),
        "keypoints": ((n, k, 3), np.float32),
        "answer_index": ((), np.int32),
        "evidence": ((s, s), np.bool_),
        "complement_image": ((s, s, 3), np.uint8),
        "complement_answer_index": ((), np.int32),
        "complement_evidence": ((s, s), np.bool_),
        "activity_index": ((), np.int32),
        "activity_evidence": ((s, s), np.bool_),
        "turn_images": ((n, s, s, 3), np.uint8),
        "turn_masks": ((n, s, s), np.bool_),
        "turn_added": ((n,), np.int32),
        "turn_class_vectors": ((n, c), np.bool_),
        "turn_coordinates": ((n, c, 2), np.float32),
        "edit_object": ((), np.int32),
        "edit_mask": ((s, s), np.bool_),
        "edit_image": ((s, s, 3), np.uint8),
    }
    lists = {"captions", "entity_texts", "entity_words", "instructions"}
    lists |= {"justifications", "program"}
    lists |= {"complement_justifications", "activity_justifications"}
    for i, example in enumerate(source):
        assert tuple(example) == FIELDS
        for name, value in example.items():
            if name in form:
                assert (value.shape, value.dtype) == form[name], name
            else:
                assert isinstance(value, list if name in lists else str), name
        scene, count = source.scene(i), int(example["count"])
        assert example["index"] == i
        assert count == len(scene.objects) == len(example["instructions"])
        np.testing.assert_array_equal(example["image"], render(scene, s))
        np.testing.assert_array_equal(example["turn_images"][count - 1], example["image"])
        np.testing.assert_array_equal(example["turn_images"][-1], example["image"])
        assert set(example["class_ids"][:count]) == set(np.flatnonzero(example["class_vector"]))
        assert (example["class_ids"][count:] == -1).all()
        assert example["caption"] in example["captions"]
        assert ANSWERS[example["answer_index"]] == example["answer"]
        assert example["justification"] == example["justifications"][0]
        assert source.asked(i).question == example["question"]
        assert source.asked(i).kind == example["question_kind"]
        assert execute(example["program"], scene) == example["answer"]
        other = complement(scene, example["question"], source._draw(i)[1])
        np.testing.assert_array_equal(example["complement_image"], render(other, s))
        assert execute(example["program"], other) == example["complement_answer"]
        assert ANSWERS[example["complement_answer_index"]] == example["complement_answer"]
        assert ACTIVITIES[example["activity_index"]] == example["activity"]
        assert BACKGROUNDS[example["background"]] == scene.background.tone
        places = example["coordinates"][example["class_ids"][:count]]
        np.testing.assert_array_equal(places, example["centres"][:count])
        totals = example["turn_class_vectors"].sum(1)
        np.testing.assert_array_equal(totals, np.minimum(np.arange(n) + 1, count))
        added = example["turn_added"][:count]
        assert sorted(added) == sorted(example["class_ids"][:count])
        assert (example["turn_masks"].any((1, 2)) == (np.arange(n) < count)).all()


def test_an_example_depends_on_seed_split_and_index_alone():
    source = Scenes(size=40, fields=FIELDS)
    assert digest(source, range(6)) == digest(pickle.loads(pickle.dumps(source)), range(6))
    backwards = [source[i]["image"] for i in reversed(range(40))][::-1]
    assert all(np.array_equal(a, source[i]["image"]) for i, a in enumerate(backwards))
    fewer = Scenes(size=7, image_size=32, fields=("caption",))
    assert [fewer[i]["caption"] for i in range(7)] == [source[i]["caption"] for i in range(7)]
    assert fewer.scene(3) == source.scene(3)
    assert source.scene(-1) == source.scene(39)
    for bad in (40, -41):
        with pytest.raises(IndexError):
            source[bad]


def test_another_process_makes_the_same_bytes():
    code = (
        "from vljax.data.scenes import Scenes\n"
        "print(Scenes(size=9, image_size=32)[8]['image'].tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Scenes(size=9, image_size=32)[8]["image"].tobytes().hex()


def test_a_scene_is_pinned():
    """Golden values: a change of the generator must be meant, it changes every data set."""
    source = Scenes(size=3, seed=2024, fields=("caption",))
    assert [source[i]["caption"] for i in range(3)] == [
        "a photo of a yellow square and a blue cross",
        "a picture of a large cyan star left of a small purple cross on a dark background",
        "a picture of a large green cross at the top on a dark background",
    ]
    pixels = b"".join(render(source.scene(i), 64).tobytes() for i in range(3))
    assert hashlib.sha256(pixels).hexdigest()[:16] == "8ac17464e9be8d26"


def test_seeds_and_splits_differ():
    train = Scenes(size=200)
    others = [Scenes(size=200, split="val"), Scenes(size=200, seed=1)]
    mine = {train.scene(i) for i in range(200)}
    assert len(mine) == 200
    for other in others:
        assert mine.isdisjoint(other.scene(i) for i in range(200))


def test_choices_are_kept():
    source = Scenes(
        size=60,
        min_objects=2,
        max_objects=3,
        shapes=("circle", "star"),
        colours=("red", "blue"),
        sizes=("large",),
        backgrounds=("dark",),
        question_kinds=("count",),
        edit_kinds=("colour",),
        fields=("question", "edit_kind"),
    )
    for i, example in enumerate(source):
        scene = source.scene(i)
        assert 2 <= len(scene.objects) <= 3
        assert {t.shape for t in scene.objects} <= {"circle", "star"}
        assert {t.colour for t in scene.objects} <= {"red", "blue"}
        assert {t.size for t in scene.objects} == {"large"}
        assert scene.background.tone == "dark"
        assert "how many" in example["question"]
        assert example["edit_kind"] == "colour"


def test_the_most_crowded_scene_exists():
    source = Scenes(size=5, min_objects=5, colours=("red",), sizes=("large",))
    for i in range(5):
        scene = source.scene(i)
        assert len(scene.objects) == 5
        assert min(visibility(scene.objects)) == 1
        assert min(thing.radius for thing in scene.objects) > 0.1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"size": 0}, "size=0"),
        ({"image_size": 8}, "image_size=8"),
        ({"image_size": 64.5}, "image_size=64.5"),
        ({"seed": -1}, "seed=-1"),
        ({"min_objects": 0}, "min_objects=0"),
        ({"min_objects": 4, "max_objects": 3}, "max_objects=3"),
        ({"max_objects": 6}, "max_objects=6"),
        ({"min_visible": 0.2}, "min_visible=0.2"),
        ({"split": "test"}, "split='test'"),
        ({"fields": ("image", "depth")}, "fields='depth'"),
        ({"fields": ()}, "fields="),
        ({"shapes": ("cube",)}, "shapes='cube'"),
        ({"colours": ("pink",)}, "colours='pink'"),
        ({"shapes": ("star",), "colours": ("red",)}, "max_objects=5"),
        ({"question_kinds": ("relation",)}, "question_kinds="),
    ],
)
def test_mistakes_are_named(wrong, told):
    with pytest.raises(UserError) as error:
        Scenes(**wrong)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
