"""Reports: rows of tables, the paper's beside ours, with notes and figures.

Every system's judgement is a `Report`; `results.json` and `results.md` are made from it.

```
{"notes": {"images": 48, "bits per dimension": 3.1},
 "tables": {"table 5.2": [{"method": "Ours", "source": "here", "mIoU": 70.5}]}}
```
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

HERE = "here"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        table: Its table: "table 5.2", "figure 3.6".
        method: What was judged.
        values: Its columns; None and NaN are told as empty cells.
        source: "here", or the paper whose number it is.
    """

    table: str
    method: str
    values: Mapping[str, Any]
    source: str = HERE


def paper_rows(
    table: str, source: str, columns: Sequence[str], *lines: Sequence[Any]
) -> tuple[Row, ...]:
    """A paper's lines of a table, as data.

    Args:
        table: The table in which they stand beside ours.
        source: Where they are from: `"paper, table 5.2"`.
        columns: Names of the values.
        lines: Method, then its values in the order of `columns`; None where the paper has none.

    Raises:
        ValueError: a line has another number of values.
    """
    return tuple(
        Row(
            table,
            method,
            {n: v for n, v in zip(columns, values, strict=True) if v is not None},
            source,
        )
        for method, *values in lines
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """What a judgement found.

    Attributes:
        rows: Lines of tables, in their order; tables come in the order of their first rows.
        notes: What holds for all of it: counts, and which networks judged.
        figures: Pictures (uint8 [h w 3]) by name.
    """

    rows: tuple[Row, ...]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Report") -> "Report":
        """What both found, in this order."""
        return Report(
            (*self.rows, *other.rows),
            {**self.notes, **other.notes},
            {**self.figures, **other.figures},
        )

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table as dictionaries: method, source, columns."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            line = {"method": row.method, "source": row.source, **row.values}
            found.setdefault(row.table, []).append(line)
        return found

    def as_json(self) -> str:
        """Notes and tables as JSON; what is no number is null."""
        told = {"notes": dict(self.notes), "tables": self.tables()}
        return json.dumps(_finite(told), indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """Each table with its columns in the order in which they first come; then the notes."""
        parts = [f"{name}\n\n{_table(rows)}" for name, rows in self.tables().items()]
        notes = [{"note": name, "value": value} for name, value in _flat(self.notes)]
        return "\n".join(parts + [_table(notes)] * bool(notes))


def _finite(value: Any) -> Any:
    """JSON has no NaN: such values become null; numpy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flat(notes: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in notes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    value = _finite(value)
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
