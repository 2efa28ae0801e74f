"""Manipulations: a picture, the word for an entity in it, and the text of what shall be there.

SeMani's task (Wang et al., *Entity-Level Text-Guided Image Manipulation*, 2023). Every benchmark
gives the same `Manipulation`; scenes know the truth as well. Files by which people ask for several
are read here: `example_filenames.txt` with `entity: text | entity: text` beside each picture, and
PIE-Bench's `mapping_file.json`.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vljax.data.pictures.captioned import read_lines
from vljax.data.pictures.images import read_image
from vljax.data.pictures.sources import IMAGE_SUFFIXES
from vljax.data.scenes import Draws, Scenes, render
from vljax.data.scenes import masks as scene_masks
from vljax.data.scenes.manipulations import (
    TWO_COLOURS,
    SceneManipulation,
    scene_manipulation,
)
from vljax.data.source import Source, read_json
from vljax.data.text.nouns import nouns_of
from vljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Manipulation:
    """One thing to do to one picture.

    Attributes:
        image: The picture, at its own size.
        entity: The word for the entity.
        text: What shall be there.
        caption: What the picture shows.
        own_text: What the entity is, worded as `text`; the caption, where only that is known.
        kind: Of what kind the wish is; empty where the data tells no kinds.
        name: The picture's file, where it has one.
        mask: The entity's pixels, where known.
        entities: The masks of all that the picture is divided into, where known.
        target: The picture as wished, where known.
        target_caption: What it would show, where known.
        truth: Of a scene, all about it.
    """

    image: UInt8[np.ndarray, "h w 3"]
    entity: str
    text: str
    caption: str
    own_text: str
    kind: str = ""
    name: str = ""
    mask: Bool[np.ndarray, "h w"] | None = None
    entities: Bool[np.ndarray, "n h w"] | None = None
    target: UInt8[np.ndarray, "h w 3"] | None = None
    target_caption: str = ""
    truth: SceneManipulation | None = None


# Scenes ------------------------------------------------------------------------------------------


def scene_manipulations(scenes: Scenes, kinds: Sequence[str]) -> Iterator[Manipulation]:
    """One manipulation of each scene, the kinds in turn; `entities` has the background last."""
    pairs = dataclasses.replace(scenes, min_objects=2, max_objects=max(2, scenes.max_objects))
    side = scenes.image_size
    for index in range(len(scenes)):
        kind = kinds[index % len(kinds)]
        scene = (pairs if kind == TWO_COLOURS else scenes).scene(index)
        told = scene_manipulation(scene, side, index, kind)
        visible = scene_masks(scene, side)
        yield Manipulation(
            image=render(scene, side),
            entity=told.entity,
            text=told.text,
            caption=told.caption,
            own_text=told.own_text,
            kind=kind,
            mask=told.mask,
            entities=np.concatenate([visible, ~visible.any(0, keepdims=True)]),
            target=render(told.after, side),
            target_caption=told.after_caption,
            truth=told,
        )


# Photographs -------------------------------------------------------------------------------------


def caption_manipulations(source: Source, entity: str | None = None) -> Iterator[Manipulation]:
    """Each photograph under a caption of another one, as the paper judges.

    Args:
        source: Photographs with `captions`.
        entity: The word for all of them ("bird", "flower"); None for the first noun of the own
            caption that another photograph's caption has too. A photograph without such a noun is
            left out.
    """
    captions = getattr(source, "captions", None) or [one["captions"] for one in _all(source)]
    every = [(i, caption) for i, lines in enumerate(captions) for caption in lines]
    by_noun: dict[str, list[tuple[int, str]]] = {}
    if entity is None:
        for place in every:
            for noun in nouns_of(place[1]):
                by_noun.setdefault(noun.category, []).append(place)
    for index in range(len(source)):
        draws = Draws(index, 11)
        caption = draws.pick(captions[index])
        choices, word = every, entity
        for noun in nouns_of(caption) if entity is None else ():
            if any(i != index for i, _ in by_noun[noun.category]):
                choices, word = by_noun[noun.category], noun.word
                break
        others = [text for i, text in choices if i != index]
        if word is None or not others:
            continue
        example = source[index]
        yield Manipulation(
            example["image"],
            entity=word,
            text=draws.pick(others),
            caption=caption,
            own_text=caption,
            name=example.get("path", ""),
        )


def _all(source: Source) -> Iterator[dict[str, Any]]:
    return (source[i] for i in range(len(source)))


# Files of wishes ---------------------------------------------------------------------------------


class Wish(NamedTuple):
    """The word for an entity, and what shall be there."""

    entity: str
    text: str


def read_wishes(line: str) -> list[Wish]:
    """The wishes of a line: `"horse: a brown horse | ground: a dirt field"`, done in this order.

    Raises:
        UserError: a part has no colon, no word or no text.
    """
    wishes = []
    for part in line.split("|"):
        entity, colon, text = (piece.strip() for piece in part.partition(":"))
        if not (entity and colon and text):
            raise UserError(f"{part.strip()!r} is no wish: write 'entity: text', joined by '|'")
        wishes.append(Wish(entity, text))
    return wishes


def read_examples(folder: str | Path) -> Iterator[tuple[Path, list[Wish]]]:
    """Pictures and their wishes, line by line, of a folder with `example_filenames.txt`.

    The file lists names without an ending, such as "text/180.Wilson_Warbler/Wilson_Warbler_0007":
    wishes lie in the text file of that name, one list a line, the picture beside it or, as in
    SeMani's folders, under "images" instead of "text".

    Raises:
        UserError: a file is not there, or a line is none of wishes.
    """
    root = Path(folder).expanduser()
    for name in read_lines(root / "example_filenames.txt"):
        stem = name if Path(name).suffix.lower() not in IMAGE_SUFFIXES else name.rpartition(".")[0]
        places = (root / f"{stem.replace('text', 'images')}{s}" for s in IMAGE_SUFFIXES)
        beside = (root / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
        picture = next((p for p in (*places, *beside) if p.is_file()), None)
        if picture is None:
            raise UserError(
                f"{root}/example_filenames.txt names {name!r}, which has no picture: put it beside "
                "its text"
            )
        for line in read_lines(root / f"{stem}.txt"):
            yield picture, read_wishes(line)


PIE_SIDE = 512
"""Side of PIE-Bench's pictures, in whose pixels its masks count."""


class PieBench:
    """PIE-Bench (Ju et al., *PnP Inversion*, 2024): 700 pictures, ten kinds of edit.

    `source[i]` is a `Manipulation`: `entity` and `text` are its blended words, or, where it has
    none, the words of the one prompt that the other lacks; `caption` and `target_caption` its two
    prompts, without the brackets. `kind` is its number, "0" to "9".

    Args:
        path: The folder with `mapping_file.json` and `annotation_images`.

    Raises:
        UserError: the file is not there, or no such mapping.
    """

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).expanduser()
        file = self.root / "mapping_file.json"
        told = read_json(file, "give PIE-Bench's folder")
        if not isinstance(told, dict) or not told:
            raise UserError(f"{file} holds no pictures by id: give PIE-Bench's")
        fields = ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask")
        for key, entry in told.items():
            missing = [f for f in fields if not isinstance(entry, dict) or f not in entry]
            if missing:
                raise UserError(f"{file}: {key} has no {missing[0]!r}: give PIE-Bench's file")
        self.entries = [told[key] for key in sorted(told)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Manipulation:
        entry = self.entries[index]
        before, after = (
            re.sub(r"[\[\]]", "", entry[name]).strip()
            for name in ("original_prompt", "editing_prompt")
        )
        blended = str(entry.get("blended_word", "")).split()
        if len(blended) != 2:
            blended = [_words_alone(before, after), _words_alone(after, before)]
        place = self.root / "annotation_images" / entry["image_path"]
        return Manipulation(
            read_image(place),
            entity=blended[0] or before,
            text=blended[1] or after,
            caption=before,
            own_text=blended[0] or before,
            kind=str(entry["editing_type_id"]),
            name=entry["image_path"],
            mask=pie_mask(entry["mask"]),
            target_caption=after,
        )


def pie_mask(runs: Sequence[int], side: int = PIE_SIDE) -> Bool[np.ndarray, "s s"]:
    """PIE-Bench's mask: pairs of a start in the flattened picture and a length; 1 is to change.

    A run that is longer than what is left of the picture ends with it, and the outermost pixels are
    1, since some masks' ends are wrong: so its authors read them when they judge.

    Raises:
        UserError: the numbers are no pairs, or a run begins outside of the picture.
    """
    pairs = np.asarray(runs, np.int64)
    if pairs.ndim != 1 or len(pairs) % 2:
        raise UserError(f"a mask of {len(runs)} numbers: give pairs of a start and a length")
    starts, lengths = pairs[::2], pairs[1::2]
    if (pairs < 0).any() or (starts >= side * side).any():
        raise UserError(
            f"a mask's runs begin outside of a picture of {side}×{side} pixels: give pairs of a "
            "start and a length"
        )
    ends = np.minimum(starts + lengths, side * side)
    edges = np.zeros(side * side + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    mask = (np.cumsum(edges)[:-1] > 0).reshape(side, side)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def _words_alone(text: str, other: str) -> str:
    known = set(other.split())
    return " ".join(word for word in text.split() if word not in known)
