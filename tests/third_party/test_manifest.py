"""The manifest of published checkpoints, data sets and tools parses and every entry is complete."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlparse

import pytest

ROOT = Path(__file__).parents[2]
SYSTEMS = {
    *("sdg", "voi", "shape_guided", "pjx", "cdd_icm", "semani_trans", "semani_diff"),
    *("captioner", "text2image"),
}
FIELDS = {"title", "origin", "licence", "systems", "configs", "used_for", "files"}

with (ROOT / "third_party" / "manifest.toml").open("rb") as stream:
    MANIFEST = tomllib.load(stream)
ENTRIES = {
    f"{kind}.{name}": entry for kind, entries in MANIFEST.items() for name, entry in entries.items()
}
FILES = [(key, file) for key, entry in ENTRIES.items() for file in entry["files"]]


def test_kinds():
    assert set(MANIFEST) == {"checkpoint", "dataset", "tool"}


def test_every_system_reads_something():
    assert {system for entry in ENTRIES.values() for system in entry["systems"]} == SYSTEMS


@pytest.mark.parametrize("key", ENTRIES)
def test_entry_is_complete(key):
    entry = ENTRIES[key]
    assert set(entry) == FIELDS
    assert all(entry[field] for field in ("title", "origin", "licence", "systems", "used_for"))
    assert urlparse(entry["origin"]).scheme in {"http", "https"}
    assert set(entry["systems"]) <= SYSTEMS
    assert entry["files"] or key.startswith("tool.")
    for config in entry["configs"]:
        assert config.endswith(".py")
        text = (ROOT / "configs" / config).read_text()
        assert any(f"from vljax.systems import {system}\n" in text for system in entry["systems"])


@pytest.mark.parametrize(("key", "file"), FILES, ids=[f"{k}:{f['path']}" for k, f in FILES])
def test_file_is_complete(key, file):
    assert {"path", "url", "sha256"} <= set(file) <= {"path", "url", "sha256", "sha256_prefix"}
    assert file["path"]
    assert not file["url"] or urlparse(file["url"]).scheme in {"http", "https"}
    assert re.fullmatch(r"[0-9a-f]{64}|", file["sha256"])
    if "sha256_prefix" in file:
        assert re.fullmatch(r"[0-9a-f]{8,63}", file["sha256_prefix"])
        assert file["sha256_prefix"] in file["path"]


def test_paths_are_unique_within_an_entry():
    for key, entry in ENTRIES.items():
        paths = [file["path"] for file in entry["files"]]
        assert len(paths) == len(set(paths)), key


def test_digests_in_urls_agree():
    """OpenAI's CLIP addresses carry the digest of the file as their last folder."""
    checked = 0
    for key, file in FILES:
        if embedded := re.search(r"/([0-9a-f]{64})/", file["url"]):
            assert embedded[1] == file["sha256"], (key, file["path"])
            checked += 1
    assert checked == len(MANIFEST["checkpoint"]["clip"]["files"]) == 9


def test_configs_in_the_repository_are_listed():
    """A recipe for real data names what it reads."""
    listed = {config for entry in ENTRIES.values() for config in entry["configs"]}
    present = {path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"}
    assert present <= listed
