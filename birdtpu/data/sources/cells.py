"""The text of tables: bytes to rows, and cells to labels, seconds, numbers and dates."""

import ast
import csv
import functools
import io
import math
import re
import warnings
from collections.abc import Sequence

from birdtpu.errors import UserError

Row = dict[str, str]

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,3}):(\d{1,2}(?:[.,]\d+)?)")
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?""", re.DOTALL)
_DATE = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})")


def parse_csv(data: bytes, source: str) -> tuple[list[str], list[Row]]:
    """The columns and rows of a delimited text.

    Encoding is UTF-8 (with or without a mark), UTF-16 with a mark, else Windows' western one; the delimiter is the
    one of `, ; tab |` that cuts the header into most columns. Column names come back as `lower_case_words`; cells
    are stripped text with plain spaces, never converted.

    Args:
        data: The whole file.
        source: Its name, for messages.

    Raises: UserError where it is no text, has no header, repeats a column, or a row has more cells than the header.
    """
    text = plain_spaces(_decode(data, source))
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [cells for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num} is no CSV: {error}") from error
    if not lines:
        raise UserError(f"{source}: the table is empty")
    columns = [re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_") for name in lines[0]]
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise UserError(f"{source}: the column {repeated[0]!r} stands twice in the header")
    rows = []
    for number, cells in enumerate(lines[1:], start=1):
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise UserError(f"{source}: row {number} has {len(cells)} cells, the header {len(columns)}; quote its text")
        cells = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
        rows.append({name: cell for name, cell in zip(columns, cells, strict=False) if name})
    return [name for name in columns if name], rows


def _decode(data: bytes, source: str) -> str:
    encodings = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252", "latin-1")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"{source}: no text table; a spreadsheet must be saved as CSV first")


def plain_spaces(text: str) -> str:
    """The text with plain spaces for those that hold a line together: a spreadsheet's `Turdus\u00a0merula`."""
    return text.replace("\u00a0", " ").replace("\u202f", " ")


def first(row: Row, names: Sequence[str]) -> str:
    """The first cell that is not empty among the named columns, else `""`."""
    return next((row[name] for name in names if row.get(name)), "")


@functools.lru_cache(maxsize=65536)
def labels(text: str) -> tuple[str, ...]:
    """The labels in a cell: `a;b`, or a list of texts or whole numbers as Python or, without commas, NumPy prints it.

    Empty ones go; order stays.

    Raises: ValueError where a cell that opens like a list is none.
    """
    if text.startswith("["):
        try:
            with warnings.catch_warnings():
                # An odd backslash in a name is no concern of the reader.
                warnings.simplefilter("ignore", SyntaxWarning)
                # Python would take texts without a comma between them for one.
                found = ast.literal_eval(_QUOTED.sub(lambda quoted: quoted[1] + ("," if quoted[2] else ""), text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(f"{text[:60]!r} is no list of labels") from error
        if not isinstance(found, list) or any(type(item) not in (str, int) for item in found):
            raise ValueError(f"{text[:60]!r} is no list of labels")
    else:
        found = text.split(";")
    return tuple(dict.fromkeys(label for item in found if (label := str(item).strip())))


def number(text: str) -> float:
    """A number, decimal comma allowed; NaN for anything else ("Not specified", "", "?")."""
    value = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else math.nan


def seconds(text: str) -> float:
    """Seconds from `12.5`, `m:ss` or `h:mm:ss`; NaN for `""`. Raises ValueError on anything else."""
    if not text:
        return math.nan
    clock = _CLOCK.fullmatch(text)
    if clock:
        hours, minutes, rest = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
    value = number(text)
    if math.isnan(value):
        raise ValueError(f"{text[:60]!r} is no time (seconds or h:mm:ss)")
    return value


def duration(text: str) -> float:
    """As `seconds`, but NaN where the text says no time: a duration is a hint until the audio is read."""
    try:
        return seconds(text)
    except ValueError:
        return math.nan


def date(text: str) -> str:
    """ISO date as far as it is known (xeno-canto writes `2015-06-00` and `0000-00-00`), else `""`."""
    match = _DATE.match(text)
    if not match or match[1] == "0000":
        return ""
    year, month, day = match.groups()
    known = [year]
    if 1 <= int(month) <= 12:
        known.append(month.zfill(2))
        if 1 <= int(day) <= 31:
            known.append(day.zfill(2))
    return "-".join(known)


def rating(text: str) -> float:
    """Stars in (0, 5]; xeno-canto's letters A to E are 5 to 1. NaN where unrated, which the tables write as 0."""
    value = {"A": 5.0, "B": 4.0, "C": 3.0, "D": 2.0, "E": 1.0}.get(text.upper(), number(text))
    return value if value > 0 else math.nan
