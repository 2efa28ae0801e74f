"""What `diffusers` and `transformers` write beside a network's weights."""

import json
from pathlib import Path
from typing import Any

from vljax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file in a published folder.

    Raises:
        UserError: the file is missing or unreadable, or holds no fields.
    """
    remedy = "give a folder that diffusers or transformers wrote"
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable config ({error}): {remedy}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a readable config: {remedy}")
    return config
