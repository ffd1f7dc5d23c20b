"""Publish a run on Kaggle: one request makes the version, and what became of it is read back."""

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.publish import places, release
from birdtpu.publish.client import AGAIN, Kaggle, KaggleError, fill
from birdtpu.publish.places import Place
from birdtpu.run import Run

# How long Kaggle may take to show a version, and one whose making it never confirmed.
WAIT_SECONDS, UNCONFIRMED_SECONDS = 900.0, 60.0
_LONGEST_PAUSE_SECONDS = 10.0
_READABLE_SECONDS = 8.0
_ENDED = ("ready", "failed", "deleted")


@dataclass(frozen=True)
class Published:
    """A version that is there and whole.

    Args:
        place: With its version.
        sent: False where Kaggle held it already.
    """

    place: Place
    sent: bool


def publish(
    run: Run,
    to: str,
    *,
    model: bool = False,
    title: str | None = None,
    licence: str = "CC-BY-NC-SA-4.0",
    public: bool = False,
    wait_seconds: float = WAIT_SECONDS,
    unconfirmed_seconds: float = UNCONFIRMED_SECONDS,
) -> Published:
    """Publish a run's weights, recipe, classes, thresholds, metrics and card as a new version.

    What is made the first time is private unless `public`. Nothing is sent where the last version holds the same bytes.

    Args:
        run: A finished run.
        to: `owner/slug`, or with `model` `owner/model` or `owner/model/keras/variation`.
        model: A Kaggle model instead of a data set.
        title: Shown on Kaggle, 6 to 50 characters; by default made from the name.
        licence: One of `release.LICENCES`.
        public: Whether everybody shall see what is made now.
        wait_seconds: For Kaggle to show the version.
        unconfirmed_seconds: The same where the reply to the request that makes it was lost.

    Returns: the version, when it was read back whole.
    Raises: UserError where something does not keep to Kaggle's limits, before anything is sent; KaggleError on every
        failure, and where it cannot be known whether the version was made.
    """
    place = target(to, model, run.recipe.name)
    about = {"title": title or default_title(place), "licence": licence, "private": not public}
    check_limits(place, about["title"], licence)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "release")
        folder.mkdir()
        manifest = release.stage(run, folder, address=str(place), licence=licence)
        # Two at once would each find the version missing, and make it.
        with storage.locked(run.folder), Kaggle() as kaggle:
            before = _settled(kaggle, place, wait_seconds)
            # What an earlier call could not see through, and may still come.
            pending = _Pending(run, place, manifest)
            if before <= pending.before:
                before = _later(kaggle, place, pending.before, unconfirmed_seconds) or before
            if before and _holds(kaggle, place.at(before), manifest, Path(temporary, "held")):
                pending.clear()
                return Published(place.at(before), False)
            tokens = [_upload(kaggle, path, bool(place.framework)) for path in sorted(folder.iterdir())]
            text = release.notes(run, release.scores_of(run))
            card = (folder / "README.md").read_text("utf-8")
            request = _request(kaggle, place, before, tokens, about, text, card)
            pending.note(before)
            lost = None
            try:
                _create(kaggle, place, request)
            except KaggleError as error:
                if not error.unknown:
                    pending.clear()
                    raise
                lost, wait_seconds = error, min(wait_seconds, unconfirmed_seconds)
            version = _shown(kaggle, place, before, wait_seconds, lost)
            _read_back(kaggle, place.at(version), manifest, Path(temporary, "back"), unconfirmed_seconds)
            pending.clear()
    return Published(place.at(version), True)


class _Pending:
    """What the run remembers of a version whose making was not confirmed.

    Attributes:
        before: The number of the version that it would follow; -1 where there is none such.
    """

    def __init__(self, run: Run, place: Place, manifest: bytes) -> None:
        self._path = run.path("publishing.json")
        self._about = {"place": str(place), "manifest": hashlib.sha256(manifest).hexdigest()}
        self.before = -1
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(storage.read_bytes(self._path))
            if {**held, "before": 0} == {**self._about, "before": 0}:
                self.before = int(held["before"])

    def note(self, before: int) -> None:
        # A run that cannot be written to is published all the same.
        with contextlib.suppress(OSError, UserError):
            storage.write_text(self._path, json.dumps({**self._about, "before": before}) + "\n")

    def clear(self) -> None:
        with contextlib.suppress(OSError, UserError):
            storage.remove(self._path)


def target(to: str, model: bool, recipe: str) -> Place:
    """Where a run shall go. Raises UserError where the name is none or has a version."""
    name = to.removeprefix(places.PREFIX)
    if model and name.count("/") == 1:
        name += f"/keras/{re.sub('[^a-z0-9]+', '-', recipe.lower()).strip('-')}"
    place = places.parse(name)
    if place.version is not None:
        raise UserError(f"--to {to}: Kaggle numbers the versions; give owner/slug")
    if bool(place.framework) != model:
        raise UserError(f"--to {to}: owner/slug for a data set; owner/model[/keras/variation] with --model")
    return place


def default_title(place: Place) -> str:
    """Its slug in words, as long as a title must be."""
    words = " ".join(place.slug.replace("_", "-").split("-"))
    return words if len(words) >= 6 else f"{words} birdtpu"


def check_limits(place: Place, title: str = "birdtpu", licence: str = "other") -> None:
    """Raises UserError where Kaggle would refuse a name."""
    if not 6 <= len(place.slug) <= 50 and not place.framework:
        raise UserError(f"--to {place}: a data set's slug has 6 to 50 characters, {place.slug} has {len(place.slug)}")
    if not re.fullmatch(r"[a-z0-9-]+", place.slug):
        raise UserError(f"--to {place}: a slug has small letters, digits and hyphens")
    if not 6 <= len(title) <= 50:
        raise UserError(f"--title: Kaggle takes 6 to 50 characters, {title!r} has {len(title)}")
    if licence not in release.LICENCES:
        raise UserError(f"--licence {licence}: one of {', '.join(release.LICENCES)}")


def _upload(kaggle: Kaggle, path: Path, model: bool) -> Any:
    """Send one file; returns what a request that makes a version calls it."""
    from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadRequest
    from kagglesdk.datasets.types.dataset_api_service import ApiDatasetNewFile

    asked = fill(
        ApiStartBlobUploadRequest(),
        type=ApiBlobType.MODEL if model else ApiBlobType.DATASET,
        name=path.name,
        content_length=path.stat().st_size,
        last_modified_epoch_seconds=int(path.stat().st_mtime),
    )
    begun = kaggle.ask(path.name, lambda client: client.blobs.blob_api_client.start_blob_upload(asked))
    kaggle.upload(path.name, path, begun.create_url)
    return fill(ApiDatasetNewFile(), token=begun.token)


def _request(
    kaggle: Kaggle, place: Place, before: int, files: list[Any], about: dict[str, Any], notes: str, card: str
) -> Any:
    if place.framework:
        return _model_request(kaggle, place, before, files, about, notes, card)
    return _dataset_request(place, before, files, about, notes, card)


def _create(kaggle: Kaggle, place: Place, request: Any) -> None:
    """The one request that makes the version. Raises KaggleError."""
    answer = kaggle.make(str(place), request)
    refused = answer.error or ""
    if not place.framework and not refused and (answer.status or "").lower() != "ok":
        refused = f"status {answer.status}"
    if refused:
        raise KaggleError(f"{place}: Kaggle made no version ({kaggle.said(refused)})", 400)


def _dataset_request(place: Place, before: int, files: list[Any], about: dict[str, Any], notes: str, card: str) -> Any:
    from kagglesdk.datasets.types.dataset_api_service import (
        ApiCreateDatasetRequest,
        ApiCreateDatasetVersionRequest,
        ApiCreateDatasetVersionRequestBody,
    )

    whose: dict[str, Any] = {"owner_slug": place.owner}
    if before:
        body = fill(ApiCreateDatasetVersionRequestBody(), version_notes=notes, files=files, description=card)
        request = fill(ApiCreateDatasetVersionRequest(), **whose, dataset_slug=place.slug, body=body)
        return lambda client: client.datasets.dataset_api_client.create_dataset_version(request)
    first = fill(ApiCreateDatasetRequest(), **whose, slug=place.slug, files=files, description=card)
    fill(first, title=about["title"], license_name=about["licence"], is_private=about["private"])
    return lambda client: client.datasets.dataset_api_client.create_dataset(first)


def _model_request(
    kaggle: Kaggle, place: Place, before: int, files: list[Any], about: dict[str, Any], notes: str, card: str
) -> Any:
    """The request for a variation's version; the model that it belongs to is made before, where there is none."""
    from kagglesdk.models.types.model_api_service import (
        ApiCreateModelInstanceRequest,
        ApiCreateModelInstanceRequestBody,
        ApiCreateModelInstanceVersionRequest,
        ApiCreateModelInstanceVersionRequestBody,
        ApiCreateModelRequest,
        ApiGetModelRequest,
    )

    names = places.model_fields(place)
    if before:
        body: Any = fill(ApiCreateModelInstanceVersionRequestBody(), version_notes=notes, files=files)
        version = fill(ApiCreateModelInstanceVersionRequest(), **names, body=body)
        return lambda client: client.models.model_api_client.create_model_instance_version(version)
    whose = {"owner_slug": place.owner}
    asked = fill(ApiGetModelRequest(), **whose, model_slug=place.slug)
    try:
        kaggle.ask(str(place), lambda client: client.models.model_api_client.get_model(asked))
    except KaggleError as error:
        if error.status not in (403, 404):
            raise
        page = fill(ApiCreateModelRequest(), **whose, slug=place.slug, title=about["title"], description=card)
        page.is_private = about["private"]
        made = kaggle.make(str(place), lambda client: client.models.model_api_client.create_model(page))
        if made.error:
            raise KaggleError(f"{place}: Kaggle made no model ({kaggle.said(made.error)})", 400) from None
    body = fill(
        ApiCreateModelInstanceRequestBody(),
        instance_slug=place.variation,
        framework=names["framework"],
        overview=notes,
        usage=card,
        license_name=release.LICENCES[about["licence"]],
        files=files,
    )
    first = fill(ApiCreateModelInstanceRequest(), **whose, model_slug=place.slug, body=body)
    return lambda client: client.models.model_api_client.create_model_instance(first)


def _holds(kaggle: Kaggle, place: Place, manifest: bytes, folder: Path) -> bool:
    """Whether a version is of these bytes already, all of them."""
    for _ in _pauses(_READABLE_SECONDS):
        try:
            if places.read(kaggle, place, release.MANIFEST) != manifest:
                return False
            places.download(kaggle, place, folder)
            return not release.check(folder)
        except KaggleError as error:
            # A version is shown before its files can be read, and that of somebody else has no manifest.
            if error.status not in (403, 404):
                raise
    return False


def _settled(kaggle: Kaggle, place: Place, wait_seconds: float) -> int:
    """The number of the last version, when Kaggle is not about to make another; 0 where there is none."""
    for _ in _pauses(wait_seconds):
        try:
            if places.state(kaggle, place) in _ENDED:
                return places.latest_version(kaggle, place)
        except KaggleError as error:
            if error.status in (403, 404):
                return 0
            raise
    raise KaggleError(f"{place}: Kaggle is still making a version after {wait_seconds:g} s; publish again later", 0)


def _later(kaggle: Kaggle, place: Place, before: int, wait_seconds: float) -> int:
    """The number of a ready version after `before`, if Kaggle shows one in time; else 0."""
    for _ in _pauses(wait_seconds):
        version = places.latest_version(kaggle, place)
        state = places.state(kaggle, place) if version > before else ""
        if state == "ready":
            return version
        if state in _ENDED:
            raise KaggleError(
                f"{place.at(version)}: Kaggle could not make it (state {state}); look at {place.url}", 500
            )
    return 0


def _shown(kaggle: Kaggle, place: Place, before: int, wait_seconds: float, lost: KaggleError | None) -> int:
    """Wait until Kaggle shows a later version; its number. Raises KaggleError where it does not."""
    if version := _later(kaggle, place, before, wait_seconds):
        return version
    if lost:
        reason = str(lost).removesuffix(f"; {AGAIN}")
        raise KaggleError(
            f"{place}: it is not known whether the version was made ({reason}); after {wait_seconds:g} s Kaggle still "
            f"shows version {before}. Look at {place.url}; the same command sends nothing where it is there",
            0,
        )
    raise KaggleError(
        f"{place}: sent, but after {wait_seconds:g} s Kaggle does not show it as ready; look at {place.url}, and run "
        "the same command again: it sends nothing where it is there",
        0,
    )


def _pauses(seconds: float) -> Iterator[None]:
    """At once, then after longer and longer pauses, until the time is up."""
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        yield
        if time.monotonic() + pause > deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _read_back(kaggle: Kaggle, place: Place, manifest: bytes, folder: Path, wait_seconds: float) -> None:
    """Raises KaggleError where a version does not hold what was sent."""
    for _ in _pauses(wait_seconds):
        try:
            places.download(kaggle, place, folder)
            break
        except KaggleError as error:
            # It is shown before its files can be read.
            if error.status not in (403, 404):
                raise
    else:
        raise KaggleError(f"{place}: made, but its files cannot be read yet; the same command looks again", 0)
    wrong = release.check(folder)
    if not wrong and (folder / release.MANIFEST).read_bytes() != manifest:
        wrong = ["it is another release; did somebody else publish at the same time?"]
    if wrong:
        raise KaggleError(f"{place}: made, but not whole: {wrong[0]}; look at {place.url} and publish again", 0)
