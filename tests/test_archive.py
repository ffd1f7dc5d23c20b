"""Archives from elsewhere: what is whole comes out, and what is hostile writes nothing."""

import gzip
import io
import os
import random
import stat
import struct
import tarfile
import zipfile

import pytest

from birdtpu import archive
from birdtpu.errors import UserError

FILES = {"train.csv": b"filename,label\n" * 99, "audio/a b/1.ogg": random.Random(0).randbytes(70_000), "empty": b""}


def zip_of(files, kind=zipfile.ZIP_DEFLATED) -> bytes:
    """(name or ZipInfo) -> bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


def info(name, mode=0):
    made = zipfile.ZipInfo("x")
    made.filename = name
    made.external_attr = mode << 16
    made.compress_type = zipfile.ZIP_DEFLATED
    return made


def tar_of(entries, pack=gzip.compress) -> bytes:
    """(name, type, link's target, bytes) each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, kind, link, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, link, len(data)
            made.addfile(entry, io.BytesIO(data))
    return pack(buffer.getvalue())


def everything(home) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*")}


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA, "tar", "tar.gz"])
def test_a_whole_archive_comes_out(tmp_path, kind):
    if isinstance(kind, str):
        entries = [("./", tarfile.DIRTYPE, "", b"")] + [(f"./{n}", tarfile.REGTYPE, "", d) for n, d in FILES.items()]
        data = tar_of(entries, gzip.compress if kind == "tar.gz" else bytes)
    else:
        data = zip_of({"audio/": b"", **FILES}, kind)
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    (tmp_path / "out" / ".unpacking.0123abcd.tmp").write_text("left by a kill")
    assert sorted(archive.unpack(tmp_path / "one", tmp_path / "out")) == sorted(FILES)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    assert everything(tmp_path / "out") == {*FILES, "audio", "audio/a b", "mine.txt"}
    assert stat.S_IMODE((tmp_path / "out" / "train.csv").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_windows_and_silence_make_comes_out(tmp_path):
    folder = info("train_audio")
    folder.external_attr = 0x10
    silence, real = bytes(4_000_000), os.urandom(60_000)
    made = zip_of({folder: b"", info("train_audio\\a.ogg"): real, info("./quiet.wav"): silence, "n" * 255: b"long"})
    (tmp_path / "one.zip").write_bytes(made)
    names = archive.unpack(tmp_path / "one.zip", tmp_path / "out")
    assert sorted(names) == ["n" * 255, "quiet.wav", "train_audio/a.ogg"]
    assert (tmp_path / "out" / "train_audio" / "a.ogg").read_bytes() == real


def test_what_stands_whole_is_not_written_again(tmp_path):
    (tmp_path / "one.zip").write_bytes(zip_of(FILES))
    archive.unpack(tmp_path / "one.zip", tmp_path)
    kept, other = tmp_path / "audio" / "a b" / "1.ogg", tmp_path / "train.csv"
    other.write_bytes(bytes(other.stat().st_size))
    before = kept.stat().st_ino
    archive.unpack(tmp_path / "one.zip", tmp_path)
    assert kept.stat().st_ino == before and other.read_bytes() == FILES["train.csv"]


def overlapping() -> bytes:
    """Many names in the directory for one file's bytes."""
    data = zip_of({f"file-{i:02}": os.urandom(50_000) for i in range(3)}, zipfile.ZIP_STORED)
    end = data.rindex(b"PK\x05\x06")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    first = data[start : data.index(b"PK\x01\x02", start + 4)]
    names = b"".join(first.replace(b"file-00", f"copy-{i:02}".encode()) for i in range(40))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 40, 40, len(names), start, 0)
    return data[:start] + names + tail


def renamed(old: bytes, new: bytes) -> bytes:
    return zip_of({old.decode(): b"x"}).replace(old, new)


def encrypted() -> bytes:
    data = bytearray(zip_of({"a": b"secret"}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def long_header() -> bytes:
    """A tar whose extended header is read into memory as a whole."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 300 << 20
    return gzip.compress(entry.tobuf() + bytes(300 << 20), 1)


def sparse() -> bytes:
    """A tar of one file that is nearly all hole."""
    entry = tarfile.TarInfo("hole")
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % (1 << 32), b"%011o\0" % 512
    header[483:495] = b"%011o\0" % ((1 << 32) + 512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(512) + bytes(1024))


def far() -> bytes:
    """A tar whose first file ends behind the last place that a file can have."""
    entry = tarfile.TarInfo("far")
    entry.size = (1 << 64) - 512
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


TWO = [(name, tarfile.REGTYPE, "", os.urandom(500)) for name in "ab"]
# Of each member a header and a block of data.
PLAIN, SECOND = tar_of(TWO, bytes), 2 * 512


def damaged_header() -> bytes:
    return PLAIN[:SECOND] + b"x" + PLAIN[SECOND + 1 :]


def flipped(data: bytes) -> bytes:
    """One bit turned in a packed file, of which nothing but the checksum at the end tells."""
    made = bytearray(gzip.compress(data, 0))
    made[made.index(data[SECOND - 60 : SECOND - 20])] ^= 1
    return bytes(made)


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
HOSTILE = {
    "zip-up": (zip_of({"../evil": b"x"}), "leads out"),
    "zip-up-inside": (zip_of({"a/../../evil": b"x"}), "leads out"),
    "zip-up-and-back": (zip_of({"a/../b": b"x"}), "leads out"),
    "zip-up-deep": (zip_of({"../" * 20 + "tmp/evil": b"x"}), "leads out"),
    "zip-up-folder": (zip_of({"../evil/": b""}), "leads out"),
    "zip-up-last": (zip_of({**FILES, "z/../../evil": b"x"}), "leads out"),
    "zip-only-up": (zip_of({"..": b"x"}), "leads out"),
    "zip-absolute": (zip_of({info("/tmp/evil"): b"x"}), "an absolute name"),
    "zip-absolute-twice": (zip_of({info("//tmp/evil"): b"x"}), "an absolute name"),
    "zip-drive": (zip_of({info("C:/evil"): b"x"}), "an absolute name"),
    "zip-windows": (zip_of({info("..\\..\\evil"): b"x"}), "leads out"),
    "zip-share": (zip_of({info("\\\\host\\evil"): b"x"}), "an absolute name"),
    "zip-nul": (renamed(b"good.txtX../../evil", b"good.txt\0../../evil"), "leads out"),
    "zip-newline": (zip_of({info("a\nb"): b"x"}), "not a name"),
    "zip-escape": (zip_of({info("a\x1b[2Jb"): b"x"}), "not a name"),
    "zip-empty": (zip_of({info(""): b"x"}), "not a name"),
    "zip-dot": (zip_of({info("a/./b"): b"x"}), "not a name"),
    "zip-double-slash": (zip_of({info("a//b"): b"x"}), "not a name"),
    "zip-long": (zip_of({"a" * 256: b"x"}), "too long"),
    "zip-link": (zip_of({info("link", stat.S_IFLNK | 0o777): b"/etc/passwd"}), "a link or a device"),
    "zip-link-then-file": (
        zip_of({info("d", stat.S_IFLNK | 0o777): b"/tmp", info("d/evil"): b"x"}), "a link or a device",
    ),
    "zip-device": (zip_of({info("null", stat.S_IFCHR | 0o666): b""}), "a link or a device"),
    "zip-pipe": (zip_of({info("pipe", stat.S_IFIFO | 0o666): b""}), "a link or a device"),
    "zip-bomb": (zip_of({"zeros": bytes(50_000_000)}), "zip bomb"),
    "zip-bomb-of-many": (zip_of({f"zeros-{i}": bytes(900_000) for i in range(20)}), "zip bomb"),
    "zip-overlapping": (overlapping(), "zip bomb"),
    "zip-twice": (zip_of({info("aa"): b"1", info("ab"): b"2"}).replace(b"ab", b"aa"), "twice"),
    "zip-file-and-folder": (zip_of({"a": b"x", "a/b": b"y"}), "a file and a folder"),
    "zip-encrypted": (encrypted(), "encrypted"),
    "zip-cut": (zip_of(FILES)[:-40], "damaged"),
    "zip-head-only": (b"PK\x03\x04", "damaged"),
    "tar-up": (tar_of([("../evil", tarfile.REGTYPE, "", b"x")]), "leads out"),
    "tar-absolute": (tar_of([("/tmp/evil", tarfile.REGTYPE, "", b"x")]), "an absolute name"),
    "tar-link": (tar_of([("link", LINK, "/etc", b"")]), "a link or a device"),
    "tar-link-then-file": (
        tar_of([("d", LINK, "/tmp", b""), ("d/evil", tarfile.REGTYPE, "", b"x")]), "a link or a device",
    ),
    "tar-hard-link": (tar_of([("link", HARD, "../../evil", b"")]), "a link or a device"),
    "tar-device": (tar_of([("null", tarfile.CHRTYPE, "", b"")]), "a link or a device"),
    "tar-block-device": (tar_of([("disk", tarfile.BLKTYPE, "", b"")]), "a link or a device"),
    "tar-pipe": (tar_of([("pipe", tarfile.FIFOTYPE, "", b"")]), "a link or a device"),
    "tar-up-folder": (tar_of([("../evil", tarfile.DIRTYPE, "", b"")]), "leads out"),
    "tar-bomb": (tar_of([("zeros", tarfile.REGTYPE, "", bytes(50_000_000))]), "zip bomb"),
    "tar-long-header": (long_header(), "a header of"),
    "tar-sparse": (sparse(), "zip bomb"),
    "tar-twice": (tar_of([("a", tarfile.REGTYPE, "", b"1"), ("a", tarfile.REGTYPE, "", b"2")]), "twice"),
    "tar-cut-between": (PLAIN[:SECOND], "its end is missing"),
    "tar-cut-before-its-end": (PLAIN[: 2 * SECOND], "its end is missing"),
    "tar-cut-within": (PLAIN[: SECOND + 700], "damaged"),
    "tar-gz-of-a-cut-one": (gzip.compress(PLAIN[:SECOND]), "its end is missing"),
    "tar-damaged-header": (damaged_header(), "its end is missing"),
    "tar-gz-flipped": (flipped(PLAIN), "CRC check failed"),
    "tar-gz-cut-in-its-checksum": (gzip.compress(PLAIN)[:-3], "damaged"),
    "tar-tail": (gzip.compress(PLAIN + bytes(150 << 20), 1), "too much follows its end"),
    "tar-far": (far(), "zip bomb|damaged"),
    "tar-c1": (tar_of([("a\x9bb", tarfile.REGTYPE, "", b"x")]), "not a name"),
    "tar-cut": (tar_of([("a", tarfile.REGTYPE, "", os.urandom(90_000))])[:50_000], "damaged"),
    "zip-nothing-in-it": (zip_of({"folder/": b""}), "no file in it"),
    "zip-deflate64": (zip_of({"a": b"x"}).replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x09\0"), "method 9"),
    "zip-not-utf8": (zip_of({"aé": b"x"}).replace("é".encode(), b"\xff\xfe"), "damaged"),
    "zip-version": (zip_of({"a": b"x"}).replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff"), "damaged"),
    "no-archive": (b"<html>Sign in</html>", "no archive"),
    "nothing": (b"", "no archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_writes_nothing(tmp_path, name):
    data, reason = HOSTILE[name]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "one"
    path.write_bytes(data)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        archive.unpack(path, tmp_path / "in" / "deep" / "out")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    assert everything(tmp_path) - before <= {"in/deep", "in/deep/out"}


def test_there_are_sixty_hostile_archives():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", ["notes.json", "NOTES.json", "notes.json/inside", "./notes.json"])
@pytest.mark.parametrize("pack", ["zip", "tar"])
def test_the_callers_notes_are_not_overwritten(tmp_path, name, pack):
    entries = {"train.csv": b"x", name: b"evil"}
    data = zip_of(entries) if pack == "zip" else tar_of([(n, tarfile.REGTYPE, "", d) for n, d in entries.items()])
    (tmp_path / "one").write_bytes(data)
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(UserError, match="a name under which birdtpu keeps its own notes"):
        archive.unpack(tmp_path / "one", tmp_path, ours=["notes.json"])
    assert (tmp_path / "notes.json").read_text() == "mine" and everything(tmp_path) == {"one", "notes.json"}
    # Deeper it is a name like any other.
    (tmp_path / "two").write_bytes(zip_of({"deep/notes.json": b"x"}))
    assert archive.unpack(tmp_path / "two", tmp_path, ours=["notes.json"]) == ["deep/notes.json"]


def test_damage_within_a_file_is_told_and_leaves_no_part_of_it(tmp_path):
    data = bytearray(zip_of({"first": b"1", "second": os.urandom(90_000)}))
    data[len(data) // 2] ^= 1
    (tmp_path / "one.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"second is damaged \(Bad CRC-32.*fetch the archive again"):
        archive.unpack(tmp_path / "one.zip", tmp_path / "out")
    assert everything(tmp_path / "out") == {"first"}


def test_what_the_disk_cannot_hold_is_told_before(tmp_path, monkeypatch):
    (tmp_path / "one.zip").write_bytes(zip_of(FILES))
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"its files need 0 MB, but .* has 0 MB free"):
        archive.unpack(tmp_path / "one.zip", tmp_path / "out")
    assert everything(tmp_path / "out") == set()
