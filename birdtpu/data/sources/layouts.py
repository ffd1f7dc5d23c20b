"""What the competitions', xeno-canto's and plain tables say: one reader a layout.

A reader gets the rows of one table and returns a `Parsed`. It opens no file: where a recording lies is named by
`wanted`, the names under which `birdtpu.data.sources.lookup` shall look for it, the surest first.
"""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from birdtpu.data.sources import cells
from birdtpu.data.sources.cells import Row, first
from birdtpu.errors import UserError
from birdtpu.species import NOCALL

EVERY_OTHER = "*"
STATES = ("positive", "negative", "unknown")

# fmt: off
# Column names in the order in which they are tried.
FILE = (
    "filename", "file_name", "path", "filepath", "file_path", "file", "fname", "audio", "audio_file", "audio_path",
    "recording", "begin_file", "recording_id", "audio_id", "file_id",
)
LABEL = (
    "primary_label", "ebird_code", "species_code", "label", "labels", "species", "birds", "bird", "class", "category",
    "code", "scientific_name", "common_name", "annotation",
)
START = (
    "start_seconds", "start", "start_time", "start_s", "onset", "onset_s", "onset_seconds", "begin_time_s",
    "time_start", "t_min",
)
END = (
    "end_seconds", "end", "end_time", "end_s", "offset", "offset_s", "offset_seconds", "end_time_s",
    "time_end", "t_max",
)
F_MIN = ("f_min", "low_hz", "low_freq_hz", "freq_low", "min_freq", "low_frequency")
F_MAX = ("f_max", "high_hz", "high_freq_hz", "freq_high", "max_freq", "high_frequency")
CODE = ("code", "primary_label", "ebird_code", "species_code")
SCIENTIFIC = ("scientific_name", "sci_name")
COMMON = ("common_name", "primary_com_name", "com_name")
# fmt: on


@dataclass
class Parsed:
    """What one table says.

    Attributes:
        recordings: Dicts with `wanted` and the columns of recordings, `secondary_labels` as a tuple.
        stretches: Dicts with `wanted`, `start_seconds`, `end_seconds`, `f_min`, `f_max`, `species`, `state`.
        names: Species code to (scientific name, common name).
        dropped: What was left out and how often: `secondary_labels` or `recordings`, by name.
    """

    recordings: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    dropped: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))

    def __bool__(self) -> bool:
        return bool(self.recordings or self.stretches)


class Taxonomy:
    """Species codes by scientific name, from the rows of a table that has both."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.names: dict[str, tuple[str, str]] = {}
        self._codes: dict[str, str] = {}
        for row in rows:
            # In 2020's table `primary_label` is a name, and the code stands beside it.
            code = row.get("ebird_code") or first(row, CODE)
            scientific = first(row, SCIENTIFIC)
            # There `species` is the common name.
            common = first(row, COMMON) or (row.get("species", "") if "ebird_code" in row else "")
            if code and code not in self.names:
                self.names[code] = (scientific, common)
                self._codes.setdefault(_plain(scientific), code)
        self._codes.pop("", None)

    def __bool__(self) -> bool:
        return bool(self.names)

    def code(self, label: str) -> str | None:
        """The code of a scientific name (case and underscores do not matter), or of itself; None if unknown."""
        return label if label in self.names else self._codes.get(_plain(label))


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def slug(name: str) -> str:
    """A code out of a name: `Turdus merula` is `turdus_merula`."""
    return "_".join(re.findall(r"\w+", name.lower()))


@contextlib.contextmanager
def _at(source: str, number: int) -> Iterator[None]:
    """Name the table and the row (the first below the header is 1) in an error about a cell."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{source}: row {number}: {error}") from error


def _file(row: Row, columns: Sequence[str] = FILE) -> str:
    name = first(row, columns)
    if not name:
        raise ValueError("names no file")
    return name


def _wanted(primary: str, filename: str) -> tuple[str, ...]:
    """Where a focal recording may lie: a bare name lies in the folder of its species first."""
    return (filename,) if re.search(r"[/\\]", filename) else (f"{primary}/{filename}", filename)


def _recording(row: Row, wanted: Sequence[str], primary: str, secondary: Iterable[str]) -> dict[str, Any]:
    linked = re.search(r"xeno-canto\.org/([0-9]{1,12})(?![0-9])", row.get("url", ""))
    return {
        "wanted": tuple(wanted),
        "number": f"XC{int(linked[1])}" if linked else "",
        "primary_label": primary,
        "secondary_labels": tuple(secondary),
        "author": first(row, ("author", "recordist", "rec")),
        "latitude": cells.number(first(row, ("latitude", "lat"))),
        "longitude": cells.number(first(row, ("longitude", "lng", "lon"))),
        "date": cells.date(row.get("date", "")),
        "rating": cells.rating(first(row, ("rating", "q"))),
        "licence": first(row, ("license", "licence", "lic")),
        "duration_seconds": cells.duration(first(row, ("duration_seconds", "duration_s", "duration"))),
        "fold": row.get("fold", ""),
    }


def _stretch(wanted: Sequence[str], start: float, end: float, species: str, state: str = "positive") -> dict[str, Any]:
    nan = float("nan")
    stretch = {"wanted": tuple(wanted), "start_seconds": start, "end_seconds": end, "f_min": nan, "f_max": nan}
    return {**stretch, "species": species, "state": state}


def _band(row: Row) -> dict[str, float]:
    return {"f_min": cells.number(first(row, F_MIN)), "f_max": cells.number(first(row, F_MAX))}


def _complete(wanted: Sequence[str], start: float, end: float, birds: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a stretch whose labels name every bird in it: all others are absent."""
    found = [_stretch(wanted, start, end, bird) for bird in birds if bird != NOCALL]
    return [*found, _stretch(wanted, start, end, EVERY_OTHER, "negative")]


def birdclef2020(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """2020's train.csv and xeno-canto's extensions in its form (train_extended.csv).

    The file name is bare. Secondary labels are `Sci name_Common name`; they become codes by the table's own names,
    else by the taxonomy, and what neither knows is dropped and counted.
    """
    parsed = Parsed()
    own = Taxonomy(rows)
    parsed.names = dict(own.names)
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            primary, filename = row["ebird_code"], _file(row)
            named = cells.labels(row.get("secondary_labels", ""))
        secondary = []
        for name in named:
            scientific = name.split("_")[0]
            code = own.code(scientific) or taxonomy.code(scientific)
            if code:
                secondary.append(code)
            else:
                parsed.dropped["secondary_labels"][name] += 1
        parsed.recordings.append(_recording(row, _wanted(primary, filename), primary, secondary))
    return parsed


def birdclef2021(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """train_metadata.csv of 2021 to 2024, train.csv of 2025 and 2026.

    2021 writes a bare file name, the others `species/file`.
    """
    parsed = Parsed(names=dict(Taxonomy(rows).names))
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            primary, filename = row["primary_label"], _file(row)
            secondary = cells.labels(row.get("secondary_labels", ""))
        parsed.recordings.append(_recording(row, _wanted(primary, filename), primary, secondary))
    return parsed


def soundscapes2021(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """2020's test.csv with labels and its example summary, 2021's train_soundscape_labels.csv.

    A row names every bird (`birds`, parted by spaces, `nocall` or nothing for none) of the 5 s that end at `seconds`,
    or of the whole file where `seconds` is empty (2020's site 3).
    """
    parsed = Parsed()
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            row_id = _file(row, ("row_id", "filename_seconds"))
            audio = first(row, ("audio_id", "filename"))
            file, _, last = row_id.rpartition("_")
            end = cells.seconds(row.get("seconds", last))
            if end < 5:
                raise ValueError(f"no 5 s end at {end:g} s")
            # 2021's file is <audio_id>_<site>_<date>, its row <audio_id>_<site>_<seconds>.
            wanted = file if file.startswith(audio) else audio
            if not wanted:
                raise ValueError("names no file")
        whole = end != end
        start, birds = (0.0 if whole else end - 5.0), row["birds"].split()
        parsed.stretches += _complete((wanted,), start, end, birds)
    return parsed


def soundscapes2026(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """2026's train_soundscapes_labels.csv: every bird (parted by `;`) of a stretch; rows stand there twice."""
    parsed = Parsed()
    for wanted, start, end, birds, _ in _timed(rows, source):
        parsed.stretches += _complete(wanted, start, end, birds)
    return parsed


def rfcx(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """RFCx' train_tp.csv and train_fp.csv: boxes that hold the species, or surely do not. All else is unknown.

    Which of the two a table is says its name, or a column `is_tp`. The codes are those of the submission, `s0` to
    `s23`.
    """
    parsed = Parsed()
    negative = re.search(r"(^|[^a-z])fp([^a-z]|$)", PurePosixPath(source.replace("\\", "/")).name.lower())
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            name, (start, end) = _file(row, ["recording_id"]), _times(row)
            # Where some cells of its column are empty, pandas writes 3 as 3.0.
            species = re.fullmatch(r"([0-9]{1,9})(\.0*)?", row["species_id"])
            if not species:
                raise ValueError(f"the species_id {row['species_id'][:60]!r} is no whole number")
        true = row["is_tp"].lower() in ("1", "1.0", "true") if row.get("is_tp") else not negative
        state = "positive" if true else "negative"
        parsed.stretches.append({**_stretch((name,), start, end, f"s{int(species[1])}", state), **_band(row)})
    return parsed


def xeno_canto(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """xeno-canto's API (v2 and v3) as JSON pages or as CSV.

    Species become codes by the taxonomy, and those outside it are dropped and counted; without one the scientific
    name makes the code (`turdus_merula`). Unidentified recordings (`Mystery mystery`, `Sonus naturalis`, no name at
    all) and those without an id are dropped and counted.
    """
    parsed = Parsed()

    def code(name: str) -> str | None:
        return taxonomy.code(name) if taxonomy else slug(name)

    for number, row in enumerate(rows, start=1):
        if not (row["id"] and row["gen"] and row["sp"]):
            unknown = (
                f"XC{row['id'].removeprefix('XC')} without a species" if row["id"] else "a recording without an id"
            )
            parsed.dropped["recordings"][unknown] += 1
            continue
        scientific = f"{row['gen']} {row['sp']}"
        primary = code(scientific)
        if not primary or scientific.lower() in ("mystery mystery", "sonus naturalis"):
            parsed.dropped["recordings"][scientific] += 1
            continue
        with _at(source, number):
            also = cells.labels(row.get("also", ""))
            if not re.fullmatch(r"(XC)?[0-9]{1,12}", row["id"]):
                raise ValueError(f"the id {row['id'][:60]!r} is no number of xeno-canto's")
            catalogue = f"XC{int(row['id'].removeprefix('XC'))}"
        secondary = []
        for name in also:
            if found := code(name):
                secondary.append(found)
                parsed.names.setdefault(found, (name, ""))
            else:
                parsed.dropped["secondary_labels"][name] += 1
        if not parsed.names.get(primary, ("", ""))[1]:
            parsed.names[primary] = (scientific, row.get("en", ""))
        recording = _recording(row, (row.get("file_name", ""), catalogue), primary, secondary)
        length = cells.duration(row.get("length", ""))
        parsed.recordings.append({**recording, "number": catalogue, "duration_seconds": length})
    return parsed


def plain(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    """A file and a label a row, under any of the column names in `FILE` and `LABEL`; or boxes with start and end.

    Without times the first label is the primary one, further ones (`a;b`, a list, more rows) are secondary;
    `nocall` is a recording without birds. With times, or where a column `state` (positive, negative, unknown) is
    filled, a row is a box that says nothing about other species; one without start and end is about the whole file.
    A table without states labels its stretches completely where `nocall` stands in one of its rows. Labels that are
    the taxonomy's scientific names become its codes.
    """
    columns = rows[0] if rows else {}
    if any(name in columns for name in START) or any(first(row, (*END, "state")) for row in rows):
        return _boxes(rows, source, taxonomy)
    parsed = Parsed()
    label_column = next((name for name in LABEL if name in columns), "")
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            filename = _file(row)
            found = [taxonomy.code(label) or label for label in cells.labels(row[label_column])]
            secondary = [*found[1:], *cells.labels(row.get("secondary_labels", ""))]
        primary = found[0] if found else ""
        parsed.recordings.append(_recording(row, _wanted(primary, filename), primary, secondary))
        if len(found) == 1:
            parsed.names.setdefault(primary, (first(row, SCIENTIFIC), first(row, COMMON)))
    return parsed


def _boxes(rows: list[Row], source: str, taxonomy: Taxonomy) -> Parsed:
    parsed = Parsed()
    end_column = next((name for name in END if name in rows[0]), "")
    if end_column and not any(name in rows[0] for name in START):
        if {"row_id", "bird"} <= set(rows[0]):
            raise UserError(f"{source}: a submission table (row_id and bird), it holds no labels")
        raise UserError(f"{source}: has the column {end_column} and none for the start; name one {START[0]}")
    timed = list(_timed(rows, source))
    complete = any(NOCALL in found for _, _, _, found, _ in timed) and not any(row.get("state") for row in rows)
    for number, (wanted, start, end, found, row) in enumerate(timed, start=1):
        state = row.get("state", "").lower() or "positive"
        with _at(source, number):
            if not found:
                raise ValueError("has no label; write nocall where no bird is to be heard, or remove the row")
            if state not in STATES:
                raise ValueError(f"the state {row['state'][:60]!r} is none of {', '.join(STATES)}")
        birds = [taxonomy.code(label) or label for label in found if label != NOCALL]
        parsed.stretches += [{**_stretch(wanted, start, end, bird, state), **_band(row)} for bird in birds]
        # A nocall that is negative or unknown tells nothing of any species.
        if complete or (NOCALL in found and state == "positive"):
            parsed.stretches.append(_stretch(wanted, start, end, EVERY_OTHER, "negative"))
        if len(birds) == 1:
            parsed.names.setdefault(birds[0], (first(row, SCIENTIFIC), first(row, COMMON)))
    return parsed


def _timed(rows: list[Row], source: str) -> Iterable[tuple[tuple[str], float, float, tuple[str, ...], Row]]:
    label_column = next((name for name in LABEL if rows and name in rows[0]), "")
    for number, row in enumerate(rows, start=1):
        with _at(source, number):
            name, (start, end), found = _file(row), _times(row), cells.labels(row[label_column])
        yield (name,), start, end, found, row


def _times(row: Row) -> tuple[float, float]:
    start, end = cells.seconds(first(row, START)), cells.seconds(first(row, END))
    if start != start and end != end:
        return 0.0, end
    if not 0 <= start < end:
        raise ValueError(f"start {first(row, START) or 'none'!r} and end {first(row, END) or 'none'!r} hold no stretch")
    return start, end


def folders(species: Mapping[str, str], taxonomy: Taxonomy) -> Parsed:
    """Recordings whose species is known by their path alone."""
    parsed = Parsed()
    for file, name in species.items():
        parsed.recordings.append(_recording({}, (file,), taxonomy.code(name) or name.strip(), ()))
    return parsed


Reader = Callable[[list[Row], str, Taxonomy], Parsed]

LAYOUTS: dict[str, Reader] = {
    "birdclef2020": birdclef2020,
    "birdclef2021": birdclef2021,
    "soundscapes2021": soundscapes2021,
    "soundscapes2026": soundscapes2026,
    "rfcx": rfcx,
    "xeno-canto": xeno_canto,
    "csv": plain,
}

# The columns that a layout needs; of a list of names, one.
NEEDS: dict[str, tuple[Sequence[str], ...]] = {
    "birdclef2020": (["ebird_code"], ["filename"]),
    "birdclef2021": (["primary_label"], ["filename"]),
    "soundscapes2021": (["birds"], ["row_id", "filename_seconds"]),
    "soundscapes2026": (FILE, START, END, LABEL),
    "rfcx": (["recording_id"], ["species_id"], START, END),
    "xeno-canto": (["id"], ["gen"], ["sp"]),
    "csv": (FILE, LABEL),
}


def detect(columns: Sequence[str]) -> str | None:
    """The layout of a table with these columns, or None."""
    if {"filename", "start", "end", "primary_label"} <= set(columns) and "state" not in columns:
        return "soundscapes2026"
    for layout in ("rfcx", "soundscapes2021", "xeno-canto"):
        if fits(layout, columns):
            return layout
    if not any(name in columns for name in (*START, *END, "state")):
        for layout in ("birdclef2020", "birdclef2021"):
            if fits(layout, columns):
                return layout
    return "csv" if fits("csv", columns) else None


def fits(layout: str, columns: Sequence[str]) -> bool:
    """Whether the columns hold all that a layout needs."""
    return all(any(name in columns for name in names) for names in NEEDS[layout])
