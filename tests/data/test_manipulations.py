"""Manipulations: of scenes, of captioned photographs, from files of wishes, of PIE-Bench."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vljax.data.benchmarks import open_benchmark
from vljax.data.manipulations import (
    PieBench,
    caption_manipulations,
    pie_mask,
    read_examples,
    read_wishes,
)
from vljax.data.scenes import COLOURS, words
from vljax.errors import UserError


def scenes(**world):
    return open_benchmark(
        ConfigDict(
            {"name": "scenes", "split": "train", "image_size": 48, "scenes": {"size": 9, **world}}
        )
    )


def test_scenes_tell_the_entity_its_text_and_the_truth():
    made = list(scenes(max_objects=2).manipulations(8))
    kinds = ["colour", "shape", "background", "two colours"]
    assert [one.kind for one in made] == 2 * kinds
    for one in made:
        assert np.array_equal(one.entities.sum(0), np.ones((48, 48)))
        changed = (one.image != one.target).any(-1)
        rim = one.truth.kind == "shape"
        assert rim or changed[one.mask].mean() > 0.9
        if one.kind == "background":
            assert one.entity == "background"
            np.testing.assert_array_equal(one.mask, one.entities[-1])
        elif one.kind != "two colours":
            assert any(np.array_equal(one.mask, entity) for entity in one.entities)
            assert one.entity in one.truth.before.objects[one.truth.changed[0]].name
        else:
            assert len(set(words(one.text)) & set(COLOURS)) == 2
        assert one.caption != one.target_caption


def test_a_word_names_one_object_alone():
    for one in scenes(max_objects=5, shapes=("circle", "star")).manipulations(12, ("colour",)):
        names = [thing.name for thing in one.truth.before.objects]
        assert sum(one.entity in name for name in names) == 1


class Photographs:
    captions = (("a dog on grass", "the dog"), ("a puppy runs",), ("a bus",), ("green grass",))

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        return {"image": np.zeros((4, 4, 3), np.uint8), "captions": list(self.captions[index])}


def test_photographs_are_told_by_the_captions_of_others():
    made = list(caption_manipulations(Photographs(), "bird"))
    assert [one.entity for one in made] == ["bird"] * 4
    for one, own in zip(made, Photographs.captions, strict=True):
        assert one.caption in own
        assert one.text not in own


def test_cocos_words_are_nouns_that_another_caption_has():
    made = list(caption_manipulations(Photographs()))
    assert [one.entity for one in made] == ["dog", "puppy", "grass"]  # nobody else has a bus
    assert made[1].text in Photographs.captions[0]
    again = [one.text for one in caption_manipulations(Photographs())]
    assert again == [one.text for one in made]


def test_wishes_of_a_line():
    assert read_wishes("horse: a brown horse | ground : a field: dry") == [
        ("horse", "a brown horse"),
        ("ground", "a field: dry"),
    ]
    for line in ("horse", "horse:", ": brown", "a: b | c"):
        with pytest.raises(UserError, match="is no wish"):
            read_wishes(line)


def test_example_files_with_damaged_line_ends(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "text" / "a.txt").write_bytes(b"bird: a red bird\r\n\r\nbird: a blue bird\r\n")
    (tmp_path / "example_filenames.txt").write_bytes(b"text/a\r\n")
    found = list(read_examples(tmp_path))
    assert [wishes for _, wishes in found] == [[("bird", "a red bird")], [("bird", "a blue bird")]]
    assert found[0][0] == tmp_path / "images" / "a.jpg"
    (tmp_path / "example_filenames.txt").write_text("text/b\n")
    with pytest.raises(UserError, match="names 'text/b', which has no picture"):
        list(read_examples(tmp_path))


def test_pie_bench(tmp_path):
    entry = {
        "image_path": "0_random/a.jpg",
        "original_prompt": "a [cat] on a mat",
        "editing_prompt": "a [red dog] on a mat",
        "editing_type_id": "1",
        "blended_word": "",
        "mask": [512 * 3 + 5, 4],
    }
    (tmp_path / "annotation_images" / "0_random").mkdir(parents=True)
    picture = Image.fromarray(np.zeros((512, 512, 3), np.uint8))
    picture.save(tmp_path / "annotation_images" / "0_random" / "a.jpg")
    told = {"1": {**entry, "blended_word": "cat dog"}, "0": entry}
    (tmp_path / "mapping_file.json").write_text(json.dumps(told))
    config = ConfigDict({"name": "pie_bench", "path": str(tmp_path)})
    first, second = open_benchmark(config).manipulations(5)
    assert (first.entity, first.text, first.caption) == ("cat", "red dog", "a cat on a mat")
    assert (second.entity, second.text) == ("cat", "dog")
    assert first.mask[3, 5:9].all()
    assert first.mask.sum() == 4 * 512 - 4 + 4
    del entry["mask"]
    (tmp_path / "mapping_file.json").write_text(json.dumps({"0": entry}))
    with pytest.raises(UserError, match="0 has no 'mask'"):
        PieBench(tmp_path)


@pytest.mark.parametrize("runs", [[1], [-1, 2], [512 * 512, 1]])
def test_masks_of_pie_bench_that_cannot_be(runs):
    with pytest.raises(UserError, match="mask"):
        pie_mask(runs)


def test_a_run_of_pie_bench_beyond_the_end_ends_with_the_picture():
    clipped, whole = pie_mask([2 * 8 + 3, 2, 5 * 8 + 2, 99], 8), pie_mask([19, 2, 42, 22], 8)
    assert np.array_equal(clipped, whole)
    assert clipped[2].tolist() == [True, False, False, True, True, False, False, True]
    assert clipped[5].tolist() == [True, False, *[True] * 6]
