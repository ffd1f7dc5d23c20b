"""Which tables say something about a folder of recordings, and which of its files they mean."""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from birdtpu import storage
from birdtpu.data.sources import cells, layouts
from birdtpu.data.sources.layouts import Parsed, Taxonomy
from birdtpu.data.sources.lookup import FOCAL_FOLDERS, AudioFolder, is_audio, stem, xeno_canto_number
from birdtpu.errors import UserError
from birdtpu.species import NOCALL

# fmt: off
# Looked for beside the recordings where no table is given.
OWN_TABLES = (
    "train_metadata.csv", "train.csv", "train_extended.csv", "train_tp.csv", "train_fp.csv",
    "train_soundscape_labels.csv", "train_soundscapes_labels.csv",
)
# fmt: on
TWINS = {"train_tp.csv": "train_fp.csv", "train_fp.csv": "train_tp.csv"}


@dataclass
class Source:
    """One table and the files it means.

    Attributes:
        table: Its path; the folder's, where labels come from the folders' names.
        layout: The key in `layouts.LAYOUTS`.
        parsed: What it says; rows with `path`, and only those whose file is there.
        missing: The names of the files that are not there.
        unlabelled: Files that lie in no folder of a species.
    """

    table: str
    layout: str
    parsed: Parsed
    missing: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)


def read_sources(
    folder: AudioFolder, table: str | None, layout: str | None, taxonomy: str | None
) -> tuple[list[Source], list[str]]:
    """The tables of a folder, resolved to its files, and those passed over because they name none of them.

    Args:
        folder: The recordings.
        table: A CSV, a JSON page or a folder of such pages; None: see `birdtpu.data.tables.read_tables`.
        layout: A key of `layouts.LAYOUTS`, or None for what the columns say.
        taxonomy: A CSV, or None for taxonomy.csv beside the table.

    Raises: UserError where no table fits; see `read_tables`.
    """
    if layout is not None and layout not in layouts.LAYOUTS:
        raise UserError(f"table layout {layout!r} is none of {', '.join(layouts.LAYOUTS)}")
    if table is not None:
        sources = [_resolve(folder, parse(path, layout, taxonomy)) for path in _with_twin(table)]
        if not any(source.parsed for source in sources):
            raise _none_there(folder, sources)
        return sources, []
    if not any(is_audio(file) for file in folder.files):
        raise UserError(f"{folder.root}: no recordings in it or below it")
    home = Path(folder.root).resolve()
    for place in (home, home.parent):
        sources = [_resolve(folder, parse(path, layout, taxonomy)) for path in _own_tables(place, home)]
        if any(source.parsed for source in sources):
            # A table that dropped all its rows names no file either; it stays for its counts.
            elsewhere = [source.table for source in sources if source.missing and not source.parsed]
            return [source for source in sources if source.table not in elsewhere], elsewhere
        if sources and place == home:
            raise _none_there(folder, sources)
    return [_folder_tree(folder, taxonomy)], []


def parse(table: str, layout: str | None = None, taxonomy: str | None = None) -> Source:
    """What a table says; its files are not looked for yet. Arguments and errors as in `read_sources`."""
    if not storage.exists(table):
        raise UserError(f"{table}: no such table")
    columns, rows = _pages(table) if _is_json(table) else cells.parse_csv(storage.read_bytes(table), str(table))
    layout = layout or layouts.detect(columns)
    if layout is None or not layouts.fits(layout, columns):
        wanted = layouts.NEEDS[layout or "csv"]
        raise UserError(
            f"{table}: has the columns {', '.join(columns[:12])}; a {layout or 'plain'} table needs "
            + " and ".join(f"{names[0]} (or {names[1]}, ...)" if len(names) > 1 else names[0] for names in wanted)
        )
    if not rows:
        raise UserError(f"{table}: a header and no rows")
    names = _taxonomy(taxonomy, table)
    parsed = layouts.LAYOUTS[layout](rows, str(table), names)
    for code, known in names.names.items():
        parsed.names[code] = fill(parsed.names.get(code, ("", "")), known)
    return Source(str(table), layout, parsed)


def _is_json(table: str) -> bool:
    return str(table).lower().endswith(".json") or Path(table).is_dir()


def _pages(table: str) -> tuple[list[str], list[cells.Row]]:
    """xeno-canto's JSON pages as rows of text, like its CSV."""
    paths = [storage.join(table, name) for name in storage.listdir(table)] if Path(table).is_dir() else [str(table)]
    rows = []
    for path in paths:
        if not path.lower().endswith(".json"):
            continue
        page = _json(path)
        if not isinstance(page, dict) or not isinstance(page.get("recordings"), list):
            raise UserError(f"{path}: no page of xeno-canto's API: it has no list 'recordings'")
        rows += [_text_row(recording, path) for recording in page["recordings"]]
    if not rows:
        raise UserError(f"{table}: no recordings; --table wants a CSV, or JSON pages of xeno-canto's API")
    return sorted(set().union(*rows)), rows


def _json(path: str) -> Any:
    try:
        return json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error})") from error


def _text_row(recording: Any, path: str) -> cells.Row:
    if not isinstance(recording, dict):
        raise UserError(f"{path}: no page of xeno-canto's API: {str(recording)[:60]!r} is no recording")
    row = {"id": "", "gen": "", "sp": ""}
    for key, value in recording.items():
        if isinstance(value, list):
            value = [item for item in value if isinstance(item, str)]
        row[key.replace("-", "_")] = "" if value is None else str(value).strip()
    return row


def _taxonomy(taxonomy: str | None, table: str) -> Taxonomy:
    if taxonomy is None:
        taxonomy = storage.join(Path(table).parent, "taxonomy.csv") if not storage.is_remote(table) else None
        if taxonomy is None or not storage.exists(taxonomy) or taxonomy == str(table):
            return Taxonomy()
    elif not storage.exists(taxonomy):
        raise UserError(f"{taxonomy}: no such taxonomy")
    columns, rows = cells.parse_csv(storage.read_bytes(taxonomy), taxonomy)
    wanted = (layouts.CODE, layouts.SCIENTIFIC)
    if not all(any(name in columns for name in names) for names in wanted):
        raise UserError(
            f"{taxonomy}: has the columns {', '.join(columns[:12])}; a taxonomy needs primary_label (or code, "
            "species_code, ebird_code) and scientific_name (or sci_name)"
        )
    return Taxonomy(rows)


def _with_twin(table: str) -> list[str]:
    """RFCx's table of true boxes with its table of false ones."""
    twin = TWINS.get(PurePosixPath(table).name)
    other = storage.join(str(table)[: -len(PurePosixPath(table).name)] or ".", twin) if twin else ""
    return [table, other] if other and storage.exists(other) else [table]


def _own_tables(place: Path, home: Path) -> list[str]:
    tables = [str(place / name) for name in OWN_TABLES if (place / name).is_file()]
    if place == home:
        pages = sorted(str(path) for path in place.glob("*.json") if _is_page(path))
        # The last page of a query may be empty.
        tables += [page for page in pages if _json(page)["recordings"]]
        return tables or pages
    return [table for table in tables if _is_known(table)]


def _is_known(table: str) -> bool:
    # A train.csv above the folder may belong to anything.
    try:
        return layouts.detect(cells.parse_csv(storage.read_bytes(table), table)[0]) is not None
    except UserError:
        return False


def _is_page(path: Path) -> bool:
    # Other JSON files may lie beside recordings.
    try:
        page = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(page, dict) and isinstance(page.get("recordings"), list)


def _folder_tree(folder: AudioFolder, taxonomy: str | None) -> Source:
    """Each recording's species is the folder it lies in, the one nearest the root."""
    audio = [file for file in folder.files if is_audio(file)]
    focal = [file for file in audio if PurePosixPath(file).parts[0] in FOCAL_FOLDERS]
    folders = {file: PurePosixPath(file).parts[1 if focal else 0 : -1] for file in focal or audio}
    species = {file: parents[0] for file, parents in folders.items() if parents}
    if not species:
        raise UserError(
            f"{folder.root}: no table that names its recordings, and no folder a species; "
            "give a table with --table, sort them into folders named by species, or say --unlabelled"
        )
    deeper = {parents[1:] for parents in folders.values() if parents[1:]}
    if len(set(species.values())) == 1 and len(deeper) > 1:
        warnings.warn(
            f"{folder.root}: the folder {next(iter(species.values()))!r} is taken for the only species; "
            "where the species' folders lie deeper, give --audio the folder that holds them, or a --table",
            stacklevel=2,
        )
    names = _taxonomy(taxonomy, storage.join(folder.root, "taxonomy.csv"))
    source = _resolve(folder, Source(folder.root, "folders", layouts.folders(species, names)))
    source.unlabelled = [file for file in folders if file not in species]
    return source


def _resolve(folder: AudioFolder, source: Source) -> Source:
    """Give each row the path of its file; rows whose file is not there go, and are named."""
    said = (*source.parsed.recordings, *source.parsed.stretches)
    paths = folder.find((row["wanted"] for row in said), prefix=source.layout == "soundscapes2021")
    missing = set()

    def found(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        there = []
        for row in rows:
            wanted = row.pop("wanted")
            if paths[wanted] is None:
                missing.add(wanted[-1])
            else:
                there.append({**row, "path": paths[wanted]})
        return there

    source.parsed.recordings = found(source.parsed.recordings)
    source.parsed.stretches = found(source.parsed.stretches)
    source.missing = sorted(missing)
    return source


def _none_there(folder: AudioFolder, sources: Sequence[Source]) -> UserError:
    source = next((source for source in sources if source.missing), sources[0])
    if not source.missing:
        unknown = next(iter(source.parsed.dropped["recordings"]), "no row says what is there")
        return UserError(
            f"{source.table}: no recording of a known species ({unknown}); --taxonomy wants codes with scientific names"
        )
    return UserError(
        f"{source.table}: none of the {len(source.missing)} files that it names is in {folder.root} "
        f"(e.g. {source.missing[0]}); --audio wants the folder that holds them"
    )


def join(sources: Sequence[Source]) -> tuple[list[dict], list[dict], dict[str, tuple[str, str]], dict[str, Any]]:
    """Rows of recordings, one a recording, and of annotations; names by species code; and the report's part on them.

    The keys are those of the house's tables; `secondary_labels` is a list.
    """
    by_path, repeated = _by_path(sources)
    kept, pieces = _one_a_recording(by_path.values())
    boxes = [row for source in sources for row in source.parsed.stretches]
    for row in kept:
        if row["primary_label"] == NOCALL:
            absent = {"start_seconds": 0.0, "species": layouts.EVERY_OTHER, "state": "negative"}
            boxes.append({"path": row["path"], **absent})
            row["primary_label"] = ""
        others = dict.fromkeys(row["secondary_labels"])
        row["secondary_labels"] = [code for code in others if code not in (NOCALL, row["primary_label"], "")]
    ids = {row["path"]: row["recording"] for row in kept}
    names: dict[str, tuple[str, str]] = {}
    dropped: dict[str, Counter] = {"secondary_labels": Counter(), "recordings": Counter()}
    for source in sources:
        for code, known in source.parsed.names.items():
            names[code] = fill(names.get(code, ("", "")), known)
        for kind, what in source.parsed.dropped.items():
            dropped[kind].update(what)
    report = {
        "tables": [source.table for source in sources],
        "layouts": [source.layout for source in sources],
        "missing": sorted({file for source in sources for file in source.missing}),
        "unlabelled": sorted({file for source in sources for file in source.unlabelled}),
        "repeated": repeated + len(by_path) - len(kept),
        "pieces": pieces,
        "dropped": {kind: dict(sorted(what.items())) for kind, what in dropped.items()},
    }
    return kept, [{**row, "recording": ids[row["path"]]} for row in boxes if row["path"] in ids], names, report


def fill(names: tuple[str, str], others: tuple[str, str]) -> tuple[str, str]:
    """Scientific and common name, from the others where one is unknown."""
    return names[0] or others[0], names[1] or others[1]


def _by_path(sources: Sequence[Source]) -> tuple[dict[str, dict[str, Any]], int]:
    """A recording a file; labels of further rows about a file are its secondary ones, and the rows are counted."""
    rows: dict[str, dict[str, Any]] = {}
    repeated = 0
    for source in sources:
        for row in source.parsed.recordings:
            repeated += row["path"] in rows
            _take(rows.setdefault(row["path"], row), row)
    for source in sources:
        for box in source.parsed.stretches:
            if box["path"] not in rows:
                rows[box["path"]] = {"path": box["path"], "primary_label": "", "secondary_labels": (), "number": ""}
    return rows, repeated


def _take(kept: dict[str, Any], row: dict[str, Any]) -> None:
    if kept is row:
        return
    labels = (row["primary_label"], *row["secondary_labels"])
    if kept["primary_label"] in ("", NOCALL):
        kept["primary_label"], *labels = labels
    kept["secondary_labels"] = (*kept["secondary_labels"], *labels)


def _one_a_recording(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The rows sorted by path and with their `recording`, one a xeno-canto number; and the number of pieces.

    Files of one number under one name are copies (of another format, or in a second species' folder): the first stays
    and takes the others' labels. Under different names they are pieces of the recording, so the number identifies
    none of them.
    """
    rows = sorted(rows, key=lambda row: row["path"])
    by_number: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        row["recording"] = xeno_canto_number(row["path"]) or row["number"]
        if row["recording"]:
            by_number.setdefault(row["recording"], []).append(row)
    copies, pieces = set(), 0
    for same in by_number.values():
        if len({stem(PurePosixPath(row["path"]).name) for row in same}) > 1:
            pieces += len(same)
            for row in same:
                row["recording"] = ""
        else:
            for row in same[1:]:
                _take(same[0], row)
                copies.add(row["path"])
    return [row for row in rows if row["path"] not in copies], pieces
