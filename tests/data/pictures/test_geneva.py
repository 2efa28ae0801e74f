"""i-CLEVR's and CoDraw's files: read as published, written from scenes, read back."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.dialogues import CANVAS, SceneDialogues, Turns
from vljax.data.pictures.geneva import Geneva, write
from vljax.data.scenes import RELATIONS, Scenes, follow, relations
from vljax.data.source import CorruptExampleError, Source
from vljax.errors import UserError

SAMPLES = Path(__file__).parents[4] / "shared/data/cdd_icm"


@pytest.fixture(scope="module")
def h5py():
    return pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def scenes():
    made = Scenes(size=3, image_size=32, min_objects=1, max_objects=4, seed=2)
    return SceneDialogues(made, CANVAS)


def same(one, other):
    """Whether two dialogues are equal in all that a file holds."""
    assert one["instructions"] == other["instructions"]
    for name in ("canvas", "turn_images", "turn_class_vectors"):
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(one["turn_coordinates"], other["turn_coordinates"][..., :2])
    return True


@pytest.mark.parametrize("layout", ["clevr", "codraw"])
def test_what_is_written_from_scenes_reads_back(h5py, scenes, layout, tmp_path):
    write(tmp_path / f"{layout}_test.h5", scenes, layout)
    read = Geneva(tmp_path / f"{layout}_test.h5")
    assert read.classes == scenes.classes
    np.testing.assert_array_equal(read.lengths, scenes.lengths)
    if layout == "clevr":
        assert all(same(scenes[i], read[i]) for i in range(3))
    else:  # whose coordinates are whole numbers
        places = scenes[0]["turn_coordinates"]
        np.testing.assert_array_equal(read[0]["turn_coordinates"][..., :2], np.trunc(places))
    for i, number in ((0, 0), (2, int(scenes.lengths[2]) - 1)):
        one, other = scenes.turn(i, number), read.turn(i, number)
        assert one["instruction"] == other["instruction"]
        np.testing.assert_array_equal(one["reference"], other["reference"])
        np.testing.assert_array_equal(one["target"], other["target"])
    assert len(pickle.loads(pickle.dumps(read))[1]["instructions"]) == read.lengths[1]


def test_published_layout_is_what_is_written(h5py, scenes, tmp_path):
    """Names, types and ranks of our files are those of the samples in the published layout."""
    for layout in ("clevr", "codraw"):
        sample = SAMPLES / f"{layout}_synthetic.h5"
        if not sample.is_file():
            pytest.skip("no samples here")
        write(tmp_path / "ours.h5", scenes, layout)
        told = []
        for path in (sample, tmp_path / "ours.h5"):
            with h5py.File(path) as file:
                name = min((n for n in file if n.isdecimal()), key=int)
                of_file = [n for n in file if not n.isdecimal()]
                fields = [*of_file, *(f"{name}/{field}" for field in file[name])]
                told.append({f: (file[f].dtype.str, file[f].ndim) for f in fields})
        assert told[0] == told[1]


@pytest.mark.parametrize(("layout", "turns"), [("clevr", 5), ("codraw", 3)])
def test_samples_in_the_published_layout_are_read(h5py, layout, turns):
    if not (SAMPLES / f"{layout}_synthetic.h5").is_file():
        pytest.skip("no samples here")
    read = Geneva(SAMPLES / f"{layout}_synthetic.h5")
    one = read[0]
    assert len(one["instructions"]) == read.lengths[0] == turns
    assert one["canvas"].shape == one["turn_images"].shape[1:] == (128, 128, 3)
    present = one["turn_class_vectors"]
    assert (np.diff(present.sum(1)) >= 0).all()
    np.testing.assert_array_equal(np.isnan(one["turn_coordinates"]).all(-1), ~present)
    with h5py.File(read.path) as file:  # BGR there, RGB here
        np.testing.assert_array_equal(
            one["turn_images"], file[read._names[0]]["images"][()][..., ::-1]
        )
    if layout == "clevr":
        assert read.classes[:2] == ("cube gray", "cube red")


def test_turns_come_one_by_one(scenes):
    turns = Turns(scenes)
    assert isinstance(turns, Source)
    assert len(turns) == scenes.lengths.sum()
    first, second = scenes[0], scenes[1]
    np.testing.assert_array_equal(turns[0]["reference"], first["canvas"])
    last = turns[len(first["instructions"]) - 1]
    np.testing.assert_array_equal(last["target"], first["turn_images"][-1])
    after = turns[len(first["instructions"])]
    assert after["instruction"] == second["instructions"][0]
    np.testing.assert_array_equal(after["reference"], second["canvas"])
    begun = Turns(scenes, first=1)
    assert len(begun) == len(scenes)
    assert begun.fingerprint != turns.fingerprint
    assert begun[1]["instruction"] == second["instructions"][0]


def test_scenes_know_what_an_instruction_says(scenes):
    for i in range(3):
        one = scenes[i]
        for j, text in enumerate(one["instructions"]):
            added, anchor = one["turn_added"][j], one["turn_anchor"][j]
            assert scenes.classes[added] in text
            if j:
                assert scenes.classes[anchor] in text.split(" the ")[-1]
                assert RELATIONS[one["turn_relation"][j]] in text
            else:
                assert anchor == one["turn_relation"][j] == -1


def test_benchmarks_open_dialogues(h5py, scenes, tmp_path):
    write(tmp_path / "clevr_test.h5", scenes)
    published = open_benchmark(ConfigDict({"name": "iclevr", "path": str(tmp_path)}))
    assert len(published.dialogues("test")) == 3
    np.testing.assert_array_equal(published.canvas(), scenes[0]["canvas"])
    with pytest.raises(UserError, match=r"clevr_train\.h5: no such file"):
        published.dialogues()
    config = {"name": "scenes", "split": "train", "image_size": 32, "scenes": {"size": 4}}
    made = open_benchmark(ConfigDict(config))
    prints = {made.dialogues(split).fingerprint for split in ("train", "val", "test")}
    assert len(prints) == 3
    assert made.canvas().shape == (32, 32, 3)
    with pytest.raises(UserError, match="has no dialogues: choose one of scenes, iclevr"):
        open_benchmark(ConfigDict({"name": "folder", "path": "x"})).dialogues()


def test_files_that_cannot_be(h5py, scenes, tmp_path):
    whole = tmp_path / "whole.h5"
    write(whole, scenes)
    with pytest.raises(UserError, match="another canvas"):
        write(tmp_path / "x.h5", SceneDialogues(scenes.scenes))
    assert not (tmp_path / "x.h5").exists()
    with pytest.raises(UserError, match="layout='png'"):
        write(tmp_path / "x.h5", scenes, "png")

    def changed(change):
        shutil.copy(whole, tmp_path / "changed.h5")
        with h5py.File(tmp_path / "changed.h5", "r+") as file:
            change(file)
        return tmp_path / "changed.h5"

    with pytest.raises(UserError, match="no background"):
        Geneva(changed(lambda file: file.__delitem__("background")))
    with pytest.raises(UserError, match="group 000001 has no images"):
        Geneva(changed(lambda file: file["000001"].__delitem__("images")))

    def floats(file):
        images = file["000000/images"][()]
        del file["000000/images"]
        file["000000/images"] = images / 255.0

    with pytest.raises(UserError, match="images of float64, not uint8"):
        Geneva(changed(floats))
    cut = tmp_path / "cut.h5"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UserError, match="is it whole"):
        Geneva(cut)
    silent = Geneva(changed(lambda file: file["000002"].__delitem__("text")))
    silent[0]
    with pytest.raises(CorruptExampleError, match="group 000002"):
        silent[2]


def test_whoever_follows_the_instructions_satisfies_them(scenes):
    """Drawn anew, objects stand where the texts say and mostly elsewhere; heedless, by chance."""
    many = SceneDialogues(Scenes(size=12, image_size=32, min_objects=4, max_objects=4, seed=5))
    holds = {True: [], False: []}
    for i in range(len(many)):
        turns = many.turns(i)
        for heed, kept in holds.items():
            anew = follow(turns, i, heed=heed)
            for turn, scene in zip(turns, anew, strict=True):
                told = {one.name: one for one in turn.scene.objects}
                assert {one.name for one in scene.objects} == set(told)
                assert all(one.size == told[one.name].size for one in scene.objects)
                if turn.anchor is not None:
                    names = [one.name for one in scene.objects]
                    pair = (turn.scene.objects[j].name for j in (turn.added, turn.anchor))
                    kept.append(turn.relation in relations(scene)[tuple(map(names.index, pair))])
            assert anew[-1].objects != turns[-1].scene.objects
    assert all(holds[True])
    assert 0.2 < np.mean(holds[False]) < 0.7


class Long:
    """A dialogue of one turn and one of 14, whose texts are long, as CoDraw has them."""

    classes = ("sun", "tree")
    lengths = np.array([1, 14])

    def __len__(self):
        return 2

    def __getitem__(self, index):
        n = int(self.lengths[index])
        return {
            "canvas": np.full((8, 8, 3), 200, np.uint8),
            "instructions": [f"<teller> {'größer and ' * 100}{i}" for i in range(n)],
            "turn_images": np.arange(n * 192, dtype=np.uint64).reshape(n, 8, 8, 3).astype(np.uint8),
            "turn_class_vectors": np.ones((n, 2), bool),
            "turn_coordinates": np.full((n, 2, 3), 2, np.float32),
        }


def test_dialogues_of_one_and_of_14_turns_of_long_texts(h5py, tmp_path):
    write(tmp_path / "codraw_test.h5", Long(), "codraw")
    read = Geneva(tmp_path / "codraw_test.h5")
    assert read.lengths.tolist() == [1, 14]
    assert read.classes == ("sun", "tree")
    assert read.instructions(1) == Long()[1]["instructions"]
    turns = Turns(read)
    assert len(turns) == 15
    np.testing.assert_array_equal(turns[1]["reference"], turns[0]["reference"])  # the canvas
    np.testing.assert_array_equal(turns[14]["target"], Long()[1]["turn_images"][-1])
    config = {"name": "codraw", "path": str(tmp_path), "image_size": 32}
    assert len(open_benchmark(ConfigDict(config)).dialogues("test")[1]["instructions"]) == 14
