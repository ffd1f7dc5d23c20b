"""Competition audio from Kaggle, and submissions back."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from birdtpu import storage
from birdtpu.archive import NoRoom, unpack
from birdtpu.errors import UserError
from birdtpu.publish import places
from birdtpu.publish.client import AGAIN, Kaggle, KaggleError, fill
from birdtpu.storage import PathLike

# Tells whose a folder is, and whether it is whole; its dot keeps `prepare` from taking it for a table.
DONE = ".fetched.json"
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


def fetch(source: str, folder: PathLike) -> int:
    """Download a competition's files, or a data set's, into a folder that `prepare` reads.

    An interrupted call goes on where it was, with the same version of a data set; one for a folder that is whole does
    nothing.

    Args:
        source: A competition's name as in its address, or `kaggle:owner/slug`.
        folder: Made if need be. Files that stand there before the first call are nobody's to overwrite.

    Returns: how many files were fetched.
    Raises: UserError where the folder holds something else, the disk is too small or the archive is hostile;
        KaggleError where Kaggle does not give it.
    """
    home = Path(folder)
    if storage.is_remote(folder):
        raise UserError(f"{folder}: fetch into a local folder; python -m gcs_tools push sends it to a bucket")
    place = places.parse(source) if source.startswith(places.PREFIX) else None
    if place is None and not _SLUG.fullmatch(source):
        raise UserError(
            f"{source}: no competition; give its name as in its address (birdclef-2026), or kaggle:owner/slug"
        )
    with storage.locked(home):
        note = _Note(home, source)
        if note.files:
            return note.files
        # From the first byte on the folder is this one's.
        note.write()
        try:
            with Kaggle(anonymous=place is not None) as kaggle:
                names = _competition(kaggle, source, home) if place is None else _data_set(kaggle, place, home, note)
        finally:
            if [path.name for path in home.iterdir()] == [DONE]:
                (home / DONE).unlink()
        note.files = len(names)
        note.write()
    return len(names)


class _Note:
    """What a folder tells of itself.

    Attributes:
        files: How many there are when it is whole; else 0.
        version: Of a data set, once it was begun with; else 0.

    Raises: UserError where the folder is for something else, or has files that nobody fetched.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self._folder, self._source = folder, source
        self.files = self.version = 0
        try:
            held = json.loads((folder / DONE).read_text("utf-8"))
            self.files, self.version = int(held["files"]), int(held.get("version", 0))
            begun = str(held["source"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            if other := next((path.name for path in folder.iterdir() if path.name[0] != "."), None):
                raise UserError(f"{folder}: holds {other}, which was not fetched; give an empty folder") from None
            return
        if begun != source:
            raise UserError(f"{folder}: holds {begun}; give another folder")

    def write(self) -> None:
        version = {"version": self.version} if self.version else {}
        storage.write_text(
            self._folder / DONE, json.dumps({"source": self._source, "files": self.files, **version}) + "\n"
        )


def submit(competition: str, file: PathLike, message: str = "") -> str:
    """Send a submission.csv to a competition, once.

    Args:
        competition: Its name as in its address.
        file: What `predict --submission` wrote.
        message: Shown beside the submission; the file's checksum is added, by which it is found again.

    Returns: what Kaggle says.
    Raises: UserError where there is no such file; KaggleError where it was not taken, or where nobody can know.
    """
    path = Path(file)
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"{path}: no such file, or an empty one; birdtpu predict --submission writes one")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    message = f"{message} [{checksum}]".strip()
    about = {"competition_name": competition}
    size, changed = path.stat().st_size, int(path.stat().st_mtime)
    with Kaggle() as kaggle, _rules(competition):
        from kagglesdk.competitions.types.competition_api_service import (
            ApiCreateSubmissionRequest,
            ApiStartSubmissionUploadRequest,
        )

        begin = fill(ApiStartSubmissionUploadRequest(), **about, file_name=path.name, content_length=size)
        begin.last_modified_epoch_seconds = changed
        begun = kaggle.ask(competition, lambda c: c.competitions.competition_api_client.start_submission_upload(begin))
        kaggle.upload(path.name, path, begun.create_url)
        request = fill(ApiCreateSubmissionRequest(), **about, blob_file_tokens=begun.token)
        request.submission_description = message
        before = _submitted(kaggle, competition)
        try:
            answer = kaggle.make(
                competition, lambda c: c.competitions.competition_api_client.create_submission(request)
            )
            return kaggle.said(answer.message or "sent")
        except KaggleError as error:
            if not error.unknown:
                raise
            for pause in (0, 2, 4, 8):
                time.sleep(pause)
                with contextlib.suppress(KaggleError):
                    later = _submitted(kaggle, competition)
                    if any(message == text for ref, text in later.items() if ref not in before):
                        return f"sent to {competition} (the reply was lost, but Kaggle lists it)"
            reason = str(error).removesuffix(f"; {AGAIN}")
            raise KaggleError(
                f"{competition}: it is not known whether the submission arrived ({reason}); Kaggle does not list it. "
                f"Look at https://www.kaggle.com/competitions/{competition}/submissions before you send it again",
                0,
            ) from None


def _submitted(kaggle: Kaggle, competition: str) -> dict[int, str]:
    """The messages of the last submissions, by their numbers."""
    from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

    request = fill(ApiListSubmissionsRequest(), competition_name=competition)
    found = kaggle.ask(competition, lambda c: c.competitions.competition_api_client.list_submissions(request))
    return {submission.ref: submission.description or "" for submission in found.submissions}


def _data_set(kaggle: Kaggle, place: places.Place, folder: Path, note: _Note) -> list[str]:
    # Some files may be there already, and those of two versions are no data set.
    begun = note.version
    version = place.version or begun or places.latest_version(kaggle, place)
    if not version:
        raise UserError(f"{place}: not there, or not yours to read; look at {place.url}")
    note.version = version
    note.write()
    try:
        return places.download(kaggle, place.at(version), folder, ours=[DONE])
    except KaggleError as error:
        if error.status not in (403, 404) or not begun or place.version:
            raise
        raise KaggleError(
            f"{error}; {folder} was begun with this version: remove it, and fetch the last one", error.status
        ) from None


def _competition(kaggle: Kaggle, name: str, folder: Path) -> list[str]:
    from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest

    request = fill(ApiDownloadDataFilesRequest(), competition_name=name)
    packed = folder / f".{name}.download"
    # One that stands there whole was being unpacked.
    if not packed.is_file():
        with _rules(name):
            kaggle.download(
                name,
                lambda client: client.competitions.competition_api_client.download_data_files(request),
                packed,
                places.fits(folder, name),
            )
    try:
        names = unpack(packed, folder, ours=(DONE, *places.notes_of(packed)), say=_bar)
    except NoRoom:
        raise
    except UserError:
        # Nothing would make it better; the next call fetches it anew.
        packed.unlink()
        raise
    packed.unlink()
    return names


@contextlib.contextmanager
def _rules(competition: str) -> Iterator[None]:
    """Tell whoever has not accepted a competition's rules where they are."""
    try:
        yield
    except KaggleError as error:
        if error.status != 403:
            raise
        where = f"https://www.kaggle.com/competitions/{competition}/rules"
        raise KaggleError(f"{error} Accept its rules at {where}", 403) from None


def _bar(members: Iterable, count: int) -> Iterable:
    from tqdm.auto import tqdm

    return tqdm(members, total=count, unit=" files", disable=None)
