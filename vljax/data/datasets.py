"""From a config's `data` fields to a source of examples.

```
data.name        'scenes' | 'folder' | 'lsun' | the name of a TensorFlow Datasets data set
data.path        folder, LMDB or TFDS directory; not used by scenes
data.split       scenes: 'train' or 'val'; TFDS: its split
data.held_out    so many of the last examples are kept for evaluation
data.image_size  scenes: side of the pictures
data.scenes      arguments of `vljax.data.scenes.Scenes`
```
"""

from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from vljax.data.pictures.sources import ImageFolder, Lsun, Source, Tfds
from vljax.data.scenes import Scenes
from vljax.errors import UserError


@dataclass(frozen=True)
class Span:
    """The examples `start` … `stop − 1` of a source."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside {len(self)} examples")
        return self.source[self.start + index]

    @property
    def fingerprint(self) -> str:
        """Changes with the source's examples and the span."""
        return f"{getattr(self.source, 'fingerprint', '')}[{self.start}:{self.stop}]"


def open_source(config: ConfigDict, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
    """The training examples that a config describes, or those held out from training.

    Args:
        config: See the module's docstring.
        fields: What is needed of each example; scenes make nothing else.
        held_out: The evaluation examples instead. Scenes have a split of their own for it.

    Raises:
        UserError: the data is not there, or fewer examples than `held_out` are.
    """
    if config.name == "scenes":
        split = "val" if held_out else config.split
        return Scenes(image_size=config.image_size, split=split, fields=fields, **config.scenes)
    if config.name == "folder":
        source: Source = ImageFolder(config.path)
    elif config.name == "lsun":
        source = Lsun(config.path)
    else:
        source = Tfds(config.name, data_dir=config.path or None, split=config.split)
    count = len(source)
    if not 0 <= config.held_out < count:
        raise UserError(
            f"data.held_out={config.held_out} of {count} examples: some must stay for training"
        )
    if not held_out:
        return Span(source, 0, count - config.held_out) if config.held_out else source
    if not config.held_out:
        raise UserError(
            "data.held_out=0: nothing is kept for evaluation; train with --config.data.held_out=N"
        )
    return Span(source, count - config.held_out, count)
