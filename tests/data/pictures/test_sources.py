"""Reading the formats data sets are published in, and refusing what is none of them."""

import io
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from vljax.data import pipeline
from vljax.data.pictures import sources
from vljax.data.pictures.images import decode_image, image_transform
from vljax.data.source import CorruptExampleError, Source
from vljax.errors import UserError

ROOT = Path(__file__).parents[3]
FACES = ROOT / "../shared/data/sdg_reference/ref_ffhq"


def picture(seed, height=12, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format, **options)
    return buffer.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def one_line(caught):
    return "\n" not in str(caught.value)


class TestImageFolder:
    def test_finds_pictures_in_any_depth_case_and_script(self, tmp_path):
        names = [
            "a.png",
            "B.PNG",
            "deep/er/ß 丘 🏔.JpEg",
            "deep/c.jpg",
            "deep/é.webp",
            "deep.png/inside.png",
        ]
        for i, name in enumerate(names):
            suffix = name.rsplit(".", 1)[1].lower()
            format = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}[suffix]
            write(tmp_path / name, encoded(picture(i), format))
        for name in ("readme.txt", "x.png.part", ".hidden.png", "._a.png", ".git/b.png", "png"):
            write(tmp_path / name, b"no picture")
        source = sources.ImageFolder(tmp_path)
        assert source.paths == tuple(sorted(names))
        assert len(source) == len(names)
        for i in range(len(source)):
            assert source[i]["path"] == source.paths[i]
            expected = decode_image((tmp_path / source.paths[i]).read_bytes())
            np.testing.assert_array_equal(source[i]["image"], expected)
        with pytest.raises(IndexError):
            source[len(source)]
        assert isinstance(source, Source)

    def test_reads_ffhq_as_distributed(self, tmp_path):
        for i in (0, 1, 1000):
            name = f"{i // 1000 * 1000:05d}/{i:05d}.png"
            write(tmp_path / "images1024x1024" / name, encoded(picture(i)))
            write(tmp_path / "thumbnails128x128" / name, encoded(picture(i + 1)))
        write(tmp_path / "LICENSE.txt", b"")
        for path in (tmp_path, tmp_path / "images1024x1024"):
            source = sources.ImageFolder(path)
            assert source.paths == ("00000/00000.png", "00000/00001.png", "01000/01000.png")
            np.testing.assert_array_equal(source[2]["image"], picture(1000))

    def test_leaves_out_the_sheet_of_what_was_drawn(self, tmp_path):
        """And no other picture of this name."""
        for name in ("drawn/picture_00_00.png", "drawn/sheet.png", "beds/sheet.png"):
            write(tmp_path / name, encoded(picture(0)))
        source = sources.ImageFolder(tmp_path)
        assert source.paths == ("beds/sheet.png", "drawn/picture_00_00.png")

    def test_follows_links_without_going_round(self, tmp_path):
        write(tmp_path / "real" / "a.png", encoded(picture(0)))
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "linked").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "loop").symlink_to(tmp_path / "root")
        (tmp_path / "root" / "dangling.png").symlink_to(tmp_path / "nowhere")
        assert sources.ImageFolder(tmp_path / "root").paths == ("linked/a.png",)

    def test_names_outside_unicode(self, tmp_path):
        path = os.path.join(os.fsencode(tmp_path), b"bad-\xff.png")
        try:
            Path(os.fsdecode(path)).write_bytes(b"")
        except OSError:
            pytest.skip("this file system takes only Unicode names")
        with pytest.raises(CorruptExampleError) as caught:
            sources.ImageFolder(tmp_path)[0]
        assert r"bad-\xff.png" in str(caught.value)
        str(caught.value).encode()

    def test_pickles_and_has_a_fingerprint(self, tmp_path):
        for i in range(3):
            write(tmp_path / f"{i}.png", encoded(picture(i)))
        source = sources.ImageFolder(tmp_path)
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[1]["image"], source[1]["image"])
        assert again.fingerprint == source.fingerprint
        (tmp_path / "2.png").rename(tmp_path / "3.png")
        assert sources.ImageFolder(tmp_path).fingerprint != source.fingerprint

    def test_mistakes_are_named(self, tmp_path):
        for path, word in (
            (tmp_path / "missing", "does not exist"),
            (tmp_path, r"holds no \.png"),
            (Path(__file__), "is a file"),
        ):
            with pytest.raises(UserError, match=word) as caught:
                sources.ImageFolder(path)
            assert one_line(caught)
            assert str(path) in str(caught.value)

    @pytest.mark.parametrize("kind", ["truncated", "empty", "text", "vanished", "folder"])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
    def test_corrupt_file_is_named_or_replaced(self, tmp_path, kind, suffix):
        format = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
        for i in range(4):
            write(tmp_path / f"{i}{suffix}", encoded(picture(i), format))
        source = sources.ImageFolder(tmp_path)
        broken = tmp_path / f"2{suffix}"
        data = broken.read_bytes()
        broken.unlink()
        if kind == "folder":
            broken.mkdir()
        elif kind != "vanished":
            kept = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"<html>"}
            broken.write_bytes(kept[kind])
        with pytest.raises(CorruptExampleError, match=r"example 2 ") as caught:
            source[2]
        assert one_line(caught)
        assert str(broken) in str(caught.value)

        options = {"batch_size": 4, "seed": 0, "transform": image_transform(8), "num_batches": 1}
        with pytest.raises(UserError, match=broken.name):
            next(pipeline.batches(source, **options))
        batch = next(pipeline.batches(source, on_corrupt="skip", shuffle=False, **options))
        assert batch["index"].tolist() == [0, 1, 3, 3]
        assert batch["substituted"].tolist() == [False, False, True, False]
        np.testing.assert_array_equal(batch["image"][2], batch["image"][3])

    @pytest.mark.skipif(not FACES.is_dir(), reason=f"needs the photographs in {FACES}")
    def test_real_photographs(self):
        source = sources.ImageFolder(FACES)
        batch = next(
            pipeline.batches(
                source, batch_size=len(source), seed=0, transform=image_transform(64, flip=True)
            )
        )
        assert batch["image"].shape == (len(source), 64, 64, 3)
        assert sorted(batch["index"]) == list(range(len(source)))
        assert batch["image"].std(axis=(1, 2, 3)).min() > 10


def lsun(path, number, format="WEBP"):
    """An LMDB as LSUN distributes them: keys of 40 hexadecimal digits, encoded images."""
    path.mkdir(parents=True)
    keys = [
        bytes(np.random.default_rng(i).integers(0, 256, 20, np.uint8)).hex() for i in range(number)
    ]
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        for i, key in enumerate(keys):
            t.put(key.encode(), encoded(picture(i), format))
    return keys


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def forbid_listing(monkeypatch):
    def fail(path):
        raise AssertionError("listed the keys again")

    monkeypatch.setattr(sources, "_list_keys", fail)


class TestLsun:
    def test_reads_every_image_by_sorted_key(self, tmp_path, cache_home):
        keys = lsun(tmp_path / "cat_lmdb", 20)
        source = sources.Lsun(tmp_path / "cat_lmdb")
        assert len(source) == 20
        assert [source[i]["key"] for i in range(20)] == sorted(keys)
        for i in range(20):
            expected = decode_image(encoded(picture(keys.index(source[i]["key"])), "WEBP"))
            np.testing.assert_array_equal(source[i]["image"], expected)
        with pytest.raises(IndexError):
            source[-1]

    def test_key_list_is_kept_and_shared(self, tmp_path, cache_home, monkeypatch):
        lsun(tmp_path / "cat_lmdb", 9)
        first = sources.Lsun(tmp_path / "cat_lmdb")
        assert len(list((tmp_path / "cat_lmdb").glob("vljax-keys-*.npy"))) == 1
        forbid_listing(monkeypatch)
        second = sources.Lsun(tmp_path / "cat_lmdb")
        assert isinstance(second._keys, np.memmap)
        pickled = pickle.dumps(second)
        assert len(pickled) < 1000
        third = pickle.loads(pickled)
        assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 1
        np.testing.assert_array_equal(third[4]["image"], first[4]["image"])

    def test_read_only_database_is_cached_elsewhere_or_not_at_all(
        self, tmp_path, cache_home, monkeypatch
    ):
        path = tmp_path / "cat_lmdb"
        lsun(path, 9)
        real = sources._save_keys
        # Permissions do not bind root, so the refusal is played.
        monkeypatch.setattr(
            sources, "_save_keys", lambda place, keys: str(path) not in place and real(place, keys)
        )
        source = sources.Lsun(path)
        assert not list(path.glob("vljax-keys-*"))
        assert len(list((cache_home / "vljax").glob("vljax-keys-*.npy"))) == 1
        (cache_home / "vljax").rename(tmp_path / "gone")
        monkeypatch.setattr(sources, "_save_keys", lambda place, keys: False)
        source = pickle.loads(pickle.dumps(source))
        uncached = pickle.loads(pickle.dumps(sources.Lsun(path)))
        np.testing.assert_array_equal(source[3]["image"], uncached[3]["image"])
        assert len(sources.Lsun(path, cache=False)) == 9

    def test_unwritable_places_are_no_error(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        keys = np.zeros(3, [("length", "<u2"), ("key", "V2")])
        assert not sources._save_keys(str(tmp_path / "file" / "keys.npy"), keys)
        assert not sources._save_keys(str(tmp_path / "file" / "deep" / "keys.npy"), keys)

    def test_damaged_key_list_is_made_anew(self, tmp_path, cache_home):
        path = tmp_path / "cat_lmdb"
        lsun(path, 9)
        sources.Lsun(path)
        (kept,) = path.glob("vljax-keys-*.npy")
        good = kept.read_bytes()
        for bad in (b"", good[:50], good[:-30], b"rubbish"):
            kept.write_bytes(bad)
            assert len(sources.Lsun(path)) == 9
            assert kept.read_bytes() == good

    def test_keys_of_any_length(self, tmp_path, cache_home):
        keys = [b"a", b"a\0", b"abc" * 30, "丘".encode()]
        with lmdb.open(str(tmp_path / "db"), map_size=2**24) as db, db.begin(write=True) as t:
            for i, key in enumerate(keys):
                t.put(key, encoded(picture(i)))
        source = sources.Lsun(tmp_path / "db")
        for i, key in enumerate(sorted(keys)):
            np.testing.assert_array_equal(source[i]["image"], picture(keys.index(key)))

    def test_mistakes_are_named(self, tmp_path):
        lsun(tmp_path / "lsun" / "bedroom_train_lmdb", 2)
        lsun(tmp_path / "lsun" / "bedroom_val_lmdb", 2)
        write(tmp_path / "other" / "data.mdb", b"no database" * 1000)
        write(tmp_path / "hollow" / "data.mdb", b"")
        (tmp_path / "nothing").mkdir()
        lmdb.open(str(tmp_path / "empty"), map_size=2**20).close()
        lsun(tmp_path / "short", 200)
        os.truncate(tmp_path / "short" / "data.mdb", 20000)
        for name, word in (
            ("missing", "not a folder"),
            ("nothing", "no data.mdb; check the path"),
            ("lsun", "choose one of bedroom_train_lmdb, bedroom_val_lmdb"),
            ("other", "cannot be opened"),
            ("hollow", "cannot be opened"),
            ("empty", "is empty"),
            ("short", r"truncated \(20000 of"),
        ):
            with pytest.raises(UserError, match=word) as caught:
                sources.Lsun(tmp_path / name)
            assert one_line(caught)
            assert name in str(caught.value)

    def test_corrupt_value_is_named(self, tmp_path, cache_home):
        (key,) = lsun(tmp_path / "db", 1)
        with lmdb.open(str(tmp_path / "db"), map_size=2**26) as db, db.begin(write=True) as t:
            t.put(key.encode(), encoded(picture(0), "WEBP")[:60])
        with pytest.raises(CorruptExampleError, match=f"example 0 .*{key}"):
            sources.Lsun(tmp_path / "db")[0]

    def test_worker_processes_open_their_own(self, tmp_path, cache_home):
        lsun(tmp_path / "db", 10)
        source = sources.Lsun(tmp_path / "db")
        options = {"batch_size": 4, "seed": 0, "transform": image_transform(8), "num_batches": 3}
        for one, other in zip(
            pipeline.batches(source, num_workers=2, **options),
            pipeline.batches(source, **options),
            strict=True,
        ):
            np.testing.assert_array_equal(one["image"], other["image"])


TFDS = """
import pathlib, pickle, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from vljax.data.pictures.images import image_transform
from vljax.data import pipeline
from vljax.data.pictures.sources import Tfds
from vljax.data.source import CorruptExampleError
from vljax.errors import UserError

folder = sys.argv[1]

def picture(i):
    return np.full((8 + i, 9, 3), 10 * i, np.uint8)

class TinyPictures(tfds.core.GeneratorBasedBuilder):
    "Five pictures, the last one damaged."
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            path = f"{folder}/{i}.png"
            Image.fromarray(picture(i)).save(path)
            if i == 4:
                data = open(path, "rb").read()
                open(path, "wb").write(data[:-30])
            yield i, {"image": path, "label": i % 3}

TinyPictures(data_dir=folder, file_format="array_record").download_and_prepare()

source = pickle.loads(pickle.dumps(Tfds("tiny_pictures", folder, "train")))
assert len(source) == 5
damaged = 0
for i in range(5):
    try:
        example = source[i]
    except CorruptExampleError as error:
        assert f"example {i} " in str(error), error
        damaged += 1
        continue
    j = example["image"].shape[0] - 8
    assert (example["image"] == picture(j)).all() and example["label"] == j % 3
assert damaged == 1
assert len(Tfds("tiny_pictures", folder, "train[:40%]")) == 2
assert len(Tfds("tiny_pictures", "~/data")) == 5
assert Tfds("tiny_pictures", folder, "train[:40%]").fingerprint != source.fingerprint

batch = next(pipeline.batches(
    source, batch_size=4, seed=0, transform=image_transform(8, keep=("label",)), on_corrupt="skip"))
assert batch["image"].shape == (4, 8, 8, 3) and batch["label"].shape == (4,)

for arguments, word in [
    (("nosuch_pictures", folder), "is unknown"),
    (("mnist", folder), "is not prepared"),
    (("tiny_pictures", folder, "val"), "choose one of train"),
    (("tiny_pictures", folder, "train[:x%]"), "split"),
    (("tiny_pictures", folder + "/missing"), "does not exist"),
]:
    try:
        Tfds(*arguments)
    except UserError as error:
        assert word in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError(arguments)

info = next(pathlib.Path(folder).glob("tiny_pictures/*/dataset_info.json"))
info.write_text(info.read_text().replace("array_record", "tfrecord"))
try:
    Tfds("tiny_pictures", folder)
except UserError as error:
    assert "no random access" in str(error) and chr(10) not in str(error), error
else:
    raise AssertionError("a tfrecord has no random access")

assert "tensorflow" not in sys.modules
"""


def test_tfds_without_tensorflow(tmp_path):
    """In a process of its own, since other tests' libraries may import TensorFlow."""
    script = tmp_path / "tiny_pictures.py"
    script.write_text(textwrap.dedent(TFDS))
    (tmp_path / "data").mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
