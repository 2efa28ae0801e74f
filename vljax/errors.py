"""The two exceptions that end a run with one line instead of a traceback.

And what asks for the packages of extras, which not every installation has.
"""

import importlib
from typing import Any


class UserError(ValueError):
    """A mistake in what vljax was given: a config field, a file, a flag.

    The message is one line that names the field, the value and the remedy. The doors
    (`python -m vljax.train` and its siblings) print it without a traceback and exit with 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on though its input was right: a non-finite loss, a full disk.

    The message says where the run stands, what is kept, and how to go on. The doors exit with 1.
    """


def of_extra(extra: str, module: str, what: str) -> Any:
    """A module that comes with an extra of vljax alone, loaded when it is needed.

    Args:
        extra: Its name in `pyproject.toml`.
        module: As `import` names it.
        what: What needs it, as the message says it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{what} takes the package {package}: pip install 'vljax[{extra}]'"
        ) from error
