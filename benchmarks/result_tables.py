"""Results as JSON lines and as Markdown tables between the marks of the documents."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
# may have marked tables
DOCUMENTS = ("README.md", "docs/*.md", "benchmarks/*.md", "outputs/*/MODEL_CARD.md")
MARK, END = "<!-- table: {} -->", "<!-- end -->"

sys.path.insert(0, str(ROOT))  # so whatever imports this module finds the repository's own


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a file of JSON lines; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_row(path: Path, row: dict) -> None:
    """Appends a row to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def draw_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Returns a table in Markdown."""
    first, *others = (f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows))
    return "\n".join([first, f"|{'---|' * len(header)}", *others])


def list_documents() -> list[Path]:
    """Returns the files that may have marked tables."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def write_tables(tables: dict[str, str]) -> None:
    """Writes each table between its marks, in every document that has them, and prints them."""
    for path in list_documents():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin = MARK.format(name)
            marked = f"{begin}\n\n{table}\n\n{END}"
            text = re.sub(f"{begin}.*?{END}", lambda _, new=marked: new, text, flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")
    print(*tables.values(), sep="\n\n")
