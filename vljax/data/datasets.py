"""The sources of pictures of a config, as systems opened them before `vljax.data.benchmarks`."""

from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.source import Source, Span

__all__ = ["Span", "open_source"]


def open_source(config: ConfigDict, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
    """See `Benchmark.pictures`."""
    return open_benchmark(config).pictures(fields, held_out=held_out)
