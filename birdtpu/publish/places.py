"""Where things lie on Kaggle: `kaggle:owner/slug` and `kaggle:owner/model/framework/variation`."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from birdtpu import storage
from birdtpu.archive import Damaged, NoRoom, unpack
from birdtpu.errors import UserError
from birdtpu.publish.client import Kaggle, KaggleError, fill
from birdtpu.storage import PathLike, paths_of

PREFIX = "kaggle:"
_SMALL_BYTES = 10_000_000
_SLUG = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_DATASET = re.compile(rf"({_SLUG})/({_SLUG})(?:/versions/(\d+))?")
_MODEL = re.compile(rf"({_SLUG})/({_SLUG})/({_SLUG})/({_SLUG})(?:/(\d+))?")


@dataclass(frozen=True)
class Place:
    """A data set, or one variation of a model.

    Args:
        owner, slug: The data set, or the model.
        framework, variation: Of a model; empty for a data set.
        version: None: the latest.
    """

    owner: str
    slug: str
    framework: str = ""
    variation: str = ""
    version: int | None = None

    def __str__(self) -> str:
        name = "/".join(part for part in (self.owner, self.slug, self.framework, self.variation) if part)
        if self.version is None:
            return PREFIX + name
        return f"{PREFIX}{name}{'' if self.framework else '/versions'}/{self.version}"

    @property
    def url(self) -> str:
        """Its page."""
        if self.framework:
            return f"https://www.kaggle.com/models/{self.owner}/{self.slug}/{self.framework}/{self.variation}"
        return f"https://www.kaggle.com/datasets/{self.owner}/{self.slug}"

    def at(self, version: int) -> "Place":
        """One version of it."""
        return replace(self, version=version)


def parse(address: str) -> Place:
    """An address as a place, as Kaggle's own tools write them.

    Raises: UserError where it is none.
    """
    text = address.removeprefix(PREFIX)
    if match := _DATASET.fullmatch(text):
        return Place(match[1], match[2], version=int(match[3]) if match[3] else None)
    if match := _MODEL.fullmatch(text):
        return Place(*match.group(1, 2, 3, 4), version=int(match[5]) if match[5] else None)
    raise UserError(
        f"{address}: no address on Kaggle; one is kaggle:owner/slug, kaggle:owner/slug/versions/3, "
        "or kaggle:owner/model/keras/variation"
    )


def latest_version(kaggle: Kaggle, place: Place) -> int:
    """The number of its last version that Kaggle shows; 0 where there is none, or none for these credentials.

    Raises: KaggleError.
    """
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest
    from kagglesdk.models.types.model_api_service import ApiGetModelInstanceRequest

    try:
        if place.framework:
            asked: Any = fill(ApiGetModelInstanceRequest(), **model_fields(place))
            instance = kaggle.ask(str(place), lambda c: c.models.model_api_client.get_model_instance(asked))
            return int(instance.version_number or 0)
        asked = fill(ApiGetDatasetRequest(), owner_slug=place.owner, dataset_slug=place.slug)
        dataset = kaggle.ask(str(place), lambda c: c.datasets.dataset_api_client.get_dataset(asked))
        return int(dataset.current_version_number or 0)
    except KaggleError as error:
        if error.status in (403, 404):
            return 0
        raise


def state(kaggle: Kaggle, place: Place) -> str:
    """`ready`, `failed`, `deleted`, or what Kaggle still does with a data set's last version. Raises KaggleError."""
    from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetStatusRequest

    if place.framework:
        # A model's version is shown when it is ready.
        return "ready"
    asked = fill(ApiGetDatasetStatusRequest(), owner_slug=place.owner, dataset_slug=place.slug)
    return kaggle.ask(str(place), lambda c: c.datasets.dataset_api_client.get_dataset_status(asked)).status.name.lower()


def download(kaggle: Kaggle, place: Place, folder: Path, ours: Collection[str] = ()) -> list[str]:
    """Fetch the files of one version (`place.version`) into a folder, checked by their archive.

    Args:
        kaggle: Signed in.
        place: With its version.
        folder: Made if need be.
        ours: Names in it that are not for the archive to give.

    Returns: their names.
    Raises: KaggleError; UserError where the archive arrived damaged twice, or is hostile.
    """
    packed = folder / f".{place.slug}-{place.version}.download"
    for last in (False, True):
        # One that stands there whole was being unpacked.
        if not packed.is_file():
            kaggle.download(str(place), lambda client: _archive(client, place, ""), packed, fits(folder, str(place)))
        try:
            names = unpack(packed, folder, ours=(*ours, *notes_of(packed)))
        except NoRoom:
            raise
        except UserError as error:
            packed.unlink()
            if last or not isinstance(error, Damaged):
                raise
        else:
            packed.unlink()
            return names
    raise AssertionError


def read(kaggle: Kaggle, place: Place, name: str) -> bytes:
    """One small file of a version, or the beginning of a large one.

    Raises: KaggleError, with status 404 where there is none.
    """

    def begin(client: Any) -> bytes:
        data = b""
        with contextlib.closing(_archive(client, place, name)) as response:
            for block in response.iter_content(1 << 16):
                data += block
                if len(data) > _SMALL_BYTES:
                    break
        return data

    data = kaggle.ask(f"{place}/{name}", begin)
    if data[:2] == b"PK":
        # Kaggle packs some single files, under the last part of their name.
        with contextlib.suppress(UserError, FileNotFoundError), tempfile.TemporaryDirectory() as folder:
            packed, out = Path(folder, "packed"), Path(folder, "out")
            packed.write_bytes(data)
            unpack(packed, out)
            return (out / name.rpartition("/")[2]).read_bytes()
    return data


def notes_of(file: Path) -> list[str]:
    """The names, in its folder, of a download and of what is noted of it."""
    return [file.name, f"{file.name}.part", f"{file.name}.part.json"]


def resolve(address: str, env: Mapping[str, str] | None = None, root: Path = Path("/")) -> str:
    """A folder or `gs://` path for an address; what is neither on Kaggle nor given is returned as it is.

    `kaggle:owner/slug` is `/kaggle/input/...` on a Kaggle machine that has it attached, the path behind `=` where one
    is given (`kaggle:owner/slug=gs://kds-...`), else it is downloaded once a version.

    Args:
        address: A path, or an address on Kaggle.
        env, root: Where the cache's place is told, and where `kaggle/input` lies.

    Raises: UserError where it is no address or not there.
    """
    if not address.startswith(PREFIX):
        return address
    name, _, given = address.partition("=")
    place = parse(name)
    if attached := _attached(place, root):
        return str(attached)
    if given:
        return given
    with Kaggle(anonymous=True) as kaggle:
        version = place.version or latest_version(kaggle, place)
        if not version:
            raise UserError(
                f"{place}: not there, or not for {kaggle.user or 'a call without credentials'}; look at {place.url}"
            )
        return str(_cached(kaggle, place.at(version), os.environ if env is None else env))


def data_folders(data: PathLike | Sequence[PathLike]) -> list[str]:
    """Prepared folders, wherever they lie: one path or several, each as `resolve` has it."""
    return [resolve(path) for path in paths_of(data)]


def _cached(kaggle: Kaggle, place: Place, env: Mapping[str, str]) -> Path:
    """The folder that holds a version, fetched if it is not there yet."""
    home = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache", "birdtpu", "kaggle")
    names = [part for part in (place.owner, place.slug, place.framework, place.variation) if part]
    folder = home.joinpath(*names, str(place.version))
    if not folder.is_dir():
        # Under another name until it is whole; what an interrupted call fetched is taken over.
        growing = folder.with_name(f".{folder.name}.growing")
        with storage.locked(growing):
            if not folder.is_dir():
                download(kaggle, place, growing)
                os.replace(growing, folder)
    return folder


def _attached(place: Place, root: Path) -> Path | None:
    """Where Kaggle shows a data set or model that is attached to the notebook."""
    home = root / "kaggle" / "input"
    version = str(place.version or "")
    if place.framework:
        folders = [home / place.slug / place.framework / place.variation]
        folders.append(home / "models" / place.owner / place.slug / place.framework / place.variation)
        found = [
            folder for parent in folders if parent.is_dir() for folder in parent.iterdir() if folder.name.isdigit()
        ]
        found = [folder for folder in found if version in ("", folder.name)]
        return max(found, key=lambda folder: int(folder.name), default=None)
    # A notebook shows the version that it was attached with, and not its number.
    return next((f for f in (home / "datasets" / place.owner / place.slug, home / place.slug) if f.is_dir()), None)


def _archive(client: Any, place: Place, name: str) -> Any:
    """The response whose body is a version's archive, or one file of it."""
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest
    from kagglesdk.models.types.model_api_service import ApiDownloadModelInstanceVersionRequest

    if place.framework:
        asked: Any = fill(ApiDownloadModelInstanceVersionRequest(), version_number=place.version, **model_fields(place))
        if name:
            asked.path = name
        return client.models.model_api_client.download_model_instance_version(asked)
    asked = fill(ApiDownloadDatasetRequest(), owner_slug=place.owner, dataset_slug=place.slug)
    asked.dataset_version_number = place.version
    if name:
        asked.file_name = name
    return client.datasets.dataset_api_client.download_dataset(asked)


def model_fields(place: Place) -> dict[str, Any]:
    """A variation as the client's requests want it. Raises UserError for a framework that Kaggle does not know."""
    from kagglesdk.models.types.model_enums import ModelFramework

    names = {entry.name.removeprefix("MODEL_FRAMEWORK_").replace("_", "").lower(): entry for entry in ModelFramework}
    framework = names.get(place.framework.replace("_", "").lower())
    if framework is None:
        raise UserError(f"{place}: Kaggle knows no framework {place.framework}; birdtpu's weights are keras")
    return {
        "owner_slug": place.owner, "model_slug": place.slug, "framework": framework, "instance_slug": place.variation,
    }  # fmt: skip


def fits(folder: Path, place: str) -> Callable[[int], None]:
    """What raises a UserError where a download of so many bytes does not fit the disk."""

    def check(size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise UserError(f"{place}: {size / 1e6:.0f} MB to come, but {folder} has {free / 1e6:.0f} MB free")

    return check
