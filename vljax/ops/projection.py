"""The product over the last axis, fast on CPU with its gradient."""

from jaxtyping import Array, Float


def project(x: Float[Array, "*b i"], weight: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ weight`, as a product of two matrices.

    The same number to rounding; but where x has several leading axes, XLA's CPU backend takes up
    to 2.5 times as long for the gradient of the product over them.
    """
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[1])
