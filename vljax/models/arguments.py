"""Networks that know what they were made with, so that they can be written for others to build.

The arguments are part of a network's structure, as the number of its layers is: nothing of them is
traced, and networks made alike are of one structure, so keeping them compiles nothing anew.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from flax import nnx

Network = TypeVar("Network", bound=type[nnx.Module])


def keeps_arguments(network: Network) -> Network:
    """Makes a class of networks keep the arguments of its constructor; see `arguments_of`."""
    make: Any = network.__init__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        told = dict(bound.arguments)
        del told[next(iter(signature.parameters))]
        told.pop("rngs", None)
        self.made_with = tuple(sorted((name, _fixed(value)) for name, value in told.items()))

    network.__init__ = keeping  # type: ignore[method-assign]
    return network


def arguments_of(network: nnx.Module) -> dict[str, Any]:
    """The arguments with which a network was made, defaults included, without `rngs`.

    Sequences are tuples.

    Raises:
        TypeError: its class does not keep them.
    """
    made_with = getattr(network, "made_with", None)
    if made_with is None:
        raise TypeError(f"{type(network).__name__} does not keep its arguments")
    return dict(made_with)


def _fixed(value: Any) -> Any:
    if isinstance(value, Mapping):
        raise TypeError("a network that keeps its arguments takes no mappings")
    return tuple(_fixed(one) for one in value) if isinstance(value, list | tuple) else value
