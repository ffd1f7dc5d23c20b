"""Species codes in a fixed order, with their names."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from birdtpu import storage
from birdtpu.errors import UserError

# What tables call it where no species is to be heard.
NOCALL = "nocall"


@dataclass(frozen=True)
class ClassList:
    """The classes of a model, in the order of its outputs.

    Args:
        codes: Unique species codes (eBird's where there is one); always text, also where they look like numbers, and
            without space around them.
        scientific_names: One a code, `""` where unknown. Empty: all unknown.
        common_names: One a code, `""` where unknown. Empty: all unknown.

    Raises: UserError where codes repeat, are empty, or the names are not one a code.
    """

    codes: tuple[str, ...]
    scientific_names: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", tuple(str(code).strip() for code in self.codes))
        for field in ("scientific_names", "common_names"):
            names = tuple(getattr(self, field)) or ("",) * len(self.codes)
            if len(names) != len(self.codes):
                raise UserError(f"class list: {len(names)} {field} for {len(self.codes)} codes")
            object.__setattr__(self, field, names)
        if not self.codes:
            raise UserError("class list: no class in it")
        if any(not code for code in self.codes):
            raise UserError("class list: an empty species code")
        if len(set(self.codes)) != len(self.codes):
            twice = sorted({code for code in self.codes if self.codes.count(code) > 1})
            raise UserError(f"class list: species code {twice[0]!r} stands twice")
        object.__setattr__(self, "_index", {code: i for i, code in enumerate(self.codes)})

    def __len__(self) -> int:
        return len(self.codes)

    def __contains__(self, code: object) -> bool:
        return code in self._index  # type: ignore[attr-defined]

    def index(self, code: str) -> int:
        """The column of a code. Raises KeyError where it is not in the list."""
        return self._index[code]  # type: ignore[attr-defined]

    def multi_hot(self, codes: Iterable[str]) -> np.ndarray:
        """`(classes,)` float32: 1 at each code. Raises KeyError on a code that is not in the list."""
        out = np.zeros(len(self), np.float32)
        for code in codes:
            out[self.index(code)] = 1
        return out

    def name(self, code: str) -> str:
        """The common name, else the scientific name, else the code."""
        i = self.index(code)
        return self.common_names[i] or self.scientific_names[i] or code

    def to_csv(self, path: str) -> None:
        """Write `code,scientific_name,common_name`, a row a class, atomically."""
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["code", "scientific_name", "common_name"])
        rows.writerows(zip(self.codes, self.scientific_names, self.common_names, strict=True))
        storage.write_text(path, out.getvalue())

    @classmethod
    def from_csv(cls, path: str) -> "ClassList":
        """Read what `to_csv` wrote; only the column `code` is needed.

        Raises: UserError where the file is missing, is no UTF-8 text, has no column `code` or a row without one.
        """
        if not storage.exists(path):
            raise UserError(f"class list {path}: no such file")
        try:
            rows = list(csv.DictReader(io.StringIO(storage.read_text(path).lstrip("\ufeff"))))
        except UnicodeDecodeError as error:
            raise UserError(f"class list {path}: not UTF-8 text") from error
        if not rows or "code" not in rows[0]:
            raise UserError(f"class list {path}: needs a header with the column 'code' and a row a class")
        for number, row in enumerate(rows, start=1):
            if not (row["code"] or "").strip():
                raise UserError(f"class list {path}: row {number} has no code; give it one, or remove it")
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Sequence[dict]) -> "ClassList":
        """From dicts with `code` and, where known, `scientific_name` and `common_name`."""
        return cls(
            tuple(str(row["code"]) for row in rows),
            tuple(row.get("scientific_name") or "" for row in rows),
            tuple(row.get("common_name") or "" for row in rows),
        )
