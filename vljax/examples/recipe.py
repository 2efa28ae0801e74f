"""The recipe of an example, as a run resolved it: `--config vljax/examples/recipe.py:NAME`."""

from ml_collections import ConfigDict

from vljax.doors import example, read_workdir


def get_config(name: str) -> ConfigDict:
    """The config of the example `name`.

    Raises:
        UserError: there is none of this name.
    """
    return read_workdir(example(name))
