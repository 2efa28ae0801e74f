"""Published weights into our models, and ours into published form.

One importer serves every model: each parameter's path is its name in the checkpoint, and the
parameter itself knows the checkpoint's layout (`vljax.models.layers`).
"""

from vljax.pretrained.checkpoint import (
    assign,
    from_published,
    load,
    our_names,
    read_tensors,
    save,
    to_published,
    write_tensors,
)

__all__ = [
    "assign",
    "from_published",
    "load",
    "our_names",
    "read_tensors",
    "save",
    "to_published",
    "write_tensors",
]
