"""Tables as plain text, for a terminal, a log or a file."""

import io
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def text_table(rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of cells, all of one length, in columns two spaces apart.

    left: the columns whose text begins at the left; that of the others ends at the right.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    for number, column in enumerate(table.columns):
        column.justify, column.no_wrap = "left" if number in left else "right", True
    # Wide enough for every table: what reads the text may know no terminal and no colours.
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
