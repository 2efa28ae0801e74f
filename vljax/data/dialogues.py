"""Dialogues that draw a picture turn by turn, and the turns that one trains on.

A dialogue is a canvas and turns: an instruction, and the picture after it. Two sources have them:
scenes (`SceneDialogues`) and the published files of i-CLEVR and CoDraw
(`vljax.data.pictures.geneva`). An example has, for a dialogue of `n` turns over `C` classes,

| field | value |
|---|---|
| `canvas` | uint8 `(h, w, 3)`: the picture before the first turn |
| `instructions` | list of `n` str |
| `turn_images` | uint8 `(n, h, w, 3)`: after each turn |
| `turn_class_vectors` | bool `(n, C)`: the classes shown after each turn |
| `turn_coordinates` | float32 `(n, C, k)`: x, y in pixels (files: and depth); NaN where absent |

and of scenes also what each instruction says: `turn_relation` (int32, into `RELATIONS`, −1 for
none), `turn_added` and `turn_anchor` (int32 classes, −1 for none).
"""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from vljax.data.scenes import CLASSES, RELATIONS, Background, Scene, Scenes, Turn, render
from vljax.data.scenes.world import class_coordinates, class_vector
from vljax.data.source import check_index

#: The canvas of scenes where none is asked for: as light as most of theirs, and even.
CANVAS = Background("light", (231.0, 231.0, 231.0), (0.0, 0.0))


class Dialogues(Protocol):
    """A random-access sequence of dialogues; see the module."""

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """How many turns each has."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an example."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Dialogue `index`."""
        ...

    def instructions(self, index: int) -> list[str]:
        """What is said in dialogue `index`; no picture is read or rendered."""
        ...

    def turn(self, index: int, number: int) -> dict[str, Any]:
        """One turn: `reference`, `instruction`, `target`; nothing else is read or rendered."""
        ...


@dataclasses.dataclass(frozen=True)
class SceneDialogues:
    """The dialogues that build scenes.

    Attributes:
        scenes: The scenes.
        background: The canvas of all, or None: each scene's own.
    """

    scenes: Scenes
    background: Background | None = None
    classes = CLASSES

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """How many turns each has: one an object."""
        scenes = self.scenes
        if scenes.min_objects == scenes.max_objects:
            return np.full(len(scenes), scenes.max_objects)
        return np.array([len(scenes.scene(i).objects) for i in range(len(scenes))])

    @property
    def fingerprint(self) -> str:
        """Changes with the scenes and their canvas."""
        return f"{self.scenes.fingerprint} {self.background}"

    def __len__(self) -> int:
        return len(self.scenes)

    def turns(self, index: int) -> tuple[Turn, ...]:
        """The turns of a dialogue as the world knows them."""
        turns = self.scenes.turns(index)
        if self.background is None:
            return turns
        return tuple(
            dataclasses.replace(t, scene=dataclasses.replace(t.scene, background=self.background))
            for t in turns
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        turns, size = self.turns(index), self.scenes.image_size
        told: dict[str, Any] = {
            "canvas": self._render(turns, 0),
            "instructions": [turn.instruction for turn in turns],
            "turn_images": np.stack([self._render(turns, i + 1) for i in range(len(turns))]),
        }
        vectors, places, said = [], [], []
        for turn in turns:
            things = turn.scene.objects
            labels = [thing.label for thing in things]
            vectors.append(class_vector(labels))
            places.append(class_coordinates(labels, [(t.x * size, t.y * size) for t in things]))
            relation, anchor = -1, -1
            if turn.relation is not None and turn.anchor is not None:
                relation, anchor = RELATIONS.index(turn.relation), labels[turn.anchor]
            said.append((labels[turn.added], relation, anchor))
        added, relation, anchor = np.array(said, np.int32).T
        return told | {
            "turn_class_vectors": np.stack(vectors),
            "turn_coordinates": np.stack(places),
            "turn_added": added,
            "turn_relation": relation,
            "turn_anchor": anchor,
        }

    def instructions(self, index: int) -> list[str]:
        """What is said in a dialogue."""
        return [turn.instruction for turn in self.turns(index)]

    def turn(self, index: int, number: int) -> dict[str, Any]:
        """One turn: `reference`, `instruction`, `target`."""
        turns = self.turns(index)
        return {
            "reference": self._render(turns, number),
            "instruction": turns[number].instruction,
            "target": self._render(turns, number + 1),
        }

    def _render(self, turns: tuple[Turn, ...], after: int) -> np.ndarray:
        """The picture after so many turns."""
        scene = turns[after - 1].scene if after else Scene(turns[0].scene.background, ())
        return render(scene, self.scenes.image_size)


def place_shares(
    places: Float[np.ndarray, "c 3"] | Float[np.ndarray, "c 2"],
    image: UInt8[np.ndarray, "h w 3"],
    coordinates: int,
) -> Float[np.ndarray, "c k"]:
    """Places as shares: x of the picture's width, y of its height, depth of the greatest, 2.

    Args:
        places: In pixels, with depth where `coordinates` is 3; NaN where absent.
        image: The picture.
        coordinates: How many to give: 2, or 3 with depth.
    """
    height, width = image.shape[:2]
    return places[:, :coordinates] / np.array([width, height, 2][:coordinates], np.float32)


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of dialogues one by one, each under its true reference (teacher forcing).

    An example has `reference`, `instruction` and `target`.

    Attributes:
        dialogues: The dialogues.
        first: Only so many turns of each, from the beginning; None for all.
    """

    dialogues: Dialogues
    first: int | None = None

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " n"]:
        lengths = self.dialogues.lengths
        return np.cumsum(lengths if self.first is None else np.minimum(lengths, self.first))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        which = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[which - 1]) if which else 0
        return self.dialogues.turn(which, index - before)

    @property
    def fingerprint(self) -> str:
        """Changes with the dialogues."""
        which = "turns" if self.first is None else f"first {self.first} turns"
        return f"{which} of {self.dialogues.fingerprint}"
