"""What a file is by its first bytes, and whether its header tells the truth, before a decoder sees it.

Names and extensions are not believed. Codecs outside a short list are refused here, because decoders of rarely used
ones are where the faults are (libsndfile 1.2.2: IMA-ADPCM in WAV, CVE-2026-37555).
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from birdtpu.errors import UserError


class AudioError(UserError):
    """A file that gives no audio.

    Attributes:
        path: The file, as it was asked for.
        reason: `unreadable`, `empty file`, `no samples`, `constant`, `not finite`, `not audio`, `malformed`,
            `unsupported container`, `unsupported codec`, `too short`, `too long` or `needs PyAV`.
        detail: What was found, or the way out.
    """

    def __init__(self, path: str | os.PathLike, reason: str, detail: str = ""):
        detail = " ".join(detail.split())
        super().__init__(str(path), reason, detail)
        self.path, self.reason, self.detail = str(path), reason, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Container:
    """How to open a file.

    Attributes:
        name: `WAV`, `RIFX`, `RF64`, `W64`, `AIFF`, `CAF`, `AU`, `FLAC`, `OGG`, `MP3`, `MP4` or `AAC`.
        skip: Where in the file to begin.
        prefix: Bytes that stand in for what is skipped: a mended header.
        counted: Whether a header tells how many frames there are.
        remarks: What is wrong with a file that still gives audio.
    """

    name: str
    skip: int = 0
    prefix: bytes = b""
    counted: bool = True
    remarks: tuple[str, ...] = ()


class _Layout(NamedTuple):
    """How a family of chunked files is laid out."""

    header: int
    name_bytes: int
    length: str
    length_covers_head: bool
    alignment: int
    format_chunk: bytes
    data_chunk: bytes


_LAYOUTS = {
    "WAV": _Layout(12, 4, "<I", False, 2, b"fmt ", b"data"),
    "RIFX": _Layout(12, 4, ">I", False, 2, b"fmt ", b"data"),
    "RF64": _Layout(12, 4, "<I", False, 2, b"fmt ", b"data"),
    "W64": _Layout(40, 16, "<Q", True, 8, b"fmt ", b"data"),
    "AIFF": _Layout(12, 4, ">I", False, 2, b"COMM", b"SSND"),
    "CAF": _Layout(8, 4, ">q", False, 1, b"desc", b"data"),
}
_MAX_CHUNKS = 1000
# Writers to a pipe do not know the length; each has its own number for that, all near 2^31, 2^32 or -1.
_UNKNOWN_LENGTHS = (range(0x7FFFF000, 0x80000001), range(0xFFFFF000, 0x100000000), range(-1, 0))
# Behind the audio, so much is a tag or padding and no more audio; and a chunk so short may be cut.
_STRAY_BYTES = 512
_CHUNK_BYTES = 1 << 20

# PCM, MS-ADPCM, float, A-law, mu-law, MPEG layers 1-2 and 3.
_WAV_CODECS = {0x01, 0x02, 0x03, 0x06, 0x07, 0x50, 0x55}
_WAV_EXTENSIBLE = 0xFFFE
_AIFF_CODECS = {b"none", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"fl32", b"fl64", b"alaw", b"ulaw"}
_CAF_CODECS = {b"lpcm", b"alaw", b"ulaw"}
# mu-law, PCM of 8 to 32 bits, float of 32 and 64, A-law.
_AU_CODECS = {1, 2, 3, 4, 5, 6, 7, 27}
_FOREIGN = {bytes.fromhex("3026b2758e66cf11"): "WMA", bytes.fromhex("1a45dfa3"): "WebM or Matroska"}
_MIRRORED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")

_MP3_SEARCH_BYTES = 1 << 16
_MP3_THREE_FRAMES_BYTES = 3 * 2881
_MP3_KBPS = {  # (MPEG 1?, layer): kbit/s by the header's index
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def identify(file: BinaryIO, path: str | os.PathLike) -> Container:
    """Find out what `file` holds.

    Args:
        file: Opened for reading; its position is moved.
        path: Its name, for messages alone.

    Raises:
        AudioError: `empty file`, `not audio`, `malformed` (no format or data chunk), `no samples`,
            `unsupported container`, `unsupported codec`.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise AudioError(path, "empty file")
    start = _behind_id3(file, size)
    if start >= size:
        raise AudioError(path, "no samples", "tags alone")
    head = _read(file, start, 64)
    if name := _magic(head):
        # libsndfile skips tags itself; our own offsets have to count from where it will read.
        if name in _LAYOUTS:
            return _check_chunks(file, path, name, start, size)
        if name == "AU":
            return _check_au(file, path, start, size)
        if name == "OGG":
            return _check_ogg(file, path, start)
        return Container(name, counted=name != "AAC")
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise AudioError(path, "unsupported container", f"{name}; convert it to FLAC or WAV")
    return _find_mp3(file, path, start)


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _behind_id3(file: BinaryIO, size: int, position: int = 0) -> int:
    """Where the last of the ID3v2 tags that begin at `position` ends."""
    while position < size:
        head = _read(file, position, 10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        length = 0
        for byte in head[6:10]:  # seven bits a byte
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if head[5] & 0x10 else 0)
    return position


def _magic(head: bytes) -> str | None:
    kind = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return {b"RIFF": "WAV"}.get(head[:4], head[:4].decode()) if kind == b"WAVE" else None
    if head.startswith(bytes.fromhex("726966662e91cf11a5d628db04c10000")):
        return "W64"
    if head.startswith(b"FORM"):
        return "AIFF" if kind in (b"AIFF", b"AIFC") else None
    for start, name in ((b"caff", "CAF"), (b".snd", "AU"), (b"fLaC", "FLAC"), (b"OggS", "OGG")):
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "MP4"
    if len(head) > 5 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # the layer that MPEG audio proper never uses
        return "AAC"
    return None


def _chunks(file: BinaryIO, layout: _Layout, start: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and claimed length of each chunk's body."""
    position = start + layout.header
    head_bytes = layout.name_bytes + struct.calcsize(layout.length)
    for _ in range(_MAX_CHUNKS):
        head = _read(file, position, head_bytes)
        if len(head) < head_bytes:
            return
        (length,) = struct.unpack(layout.length, head[layout.name_bytes :])
        length -= head_bytes if layout.length_covers_head else 0
        yield head[:4], position + head_bytes, length
        position += head_bytes + length
        if length < 0 or position > size:
            return
        position += -position % layout.alignment


def _length_fault(file: BinaryIO, data: int, claimed: int, size: int, layout: _Layout | None) -> tuple[str, bool]:
    """What is wrong with the claimed bytes of audio, "" if nothing, and whether all that is there is audio."""
    there = size - data
    if claimed > there:
        return f"cut short: the header claims {claimed} bytes of audio, {there} are there", False
    end = data + claimed
    behind = _read(file, end, 1 << 12)
    # Recorders that book a file's place beforehand leave zeros behind the audio.
    if len(behind) <= _STRAY_BYTES or (claimed and not any(behind)):
        return "", False
    # An odd chunk may lack its padding.
    if layout and any(_is_chunk(file, layout, at, size) for at in (end, end + -end % layout.alignment)):
        return "", False
    return f"the header claims {claimed or 'no'} bytes of audio, {there} are there and were taken", True


def _is_chunk(file: BinaryIO, layout: _Layout, at: int, size: int) -> bool:
    """Whether a chunk begins there: a name that can be read, and a length that can be."""
    head_bytes = layout.name_bytes + struct.calcsize(layout.length)
    head = _read(file, at, head_bytes)
    if len(head) < head_bytes or not all(32 <= byte < 127 for byte in head[:4]):
        return False
    (length,) = struct.unpack(layout.length, head[layout.name_bytes :])
    return 0 <= length <= max(_CHUNK_BYTES, size - at)


def _mended(file: BinaryIO, path: str | os.PathLike, name: str, data: int, there: int, body: bytes) -> bytes:
    """What stands before the audio, so that it claims the bytes that are there."""
    layout, none = _LAYOUTS[name], b"\xff" * 4
    if name == "RF64" or (name == "WAV" and there >> 32):
        sizes = struct.pack("<IQQQI", 28, 0, there, 0, 0)
        form = struct.pack("<I", len(body)) + body
        return b"RF64" + none + b"WAVEds64" + sizes + b"fmt " + form + b"data" + none
    length_bytes = struct.calcsize(layout.length)
    if there >> 8 * length_bytes:
        raise AudioError(path, "malformed", f"{there} bytes of audio are more than {name} can hold")
    length = there + (layout.name_bytes + length_bytes if layout.length_covers_head else 0)
    return _read(file, 0, data - length_bytes) + struct.pack(layout.length, length)


def _check_chunks(file: BinaryIO, path: str | os.PathLike, name: str, start: int, size: int) -> Container:
    layout = _LAYOUTS[name]
    body, data, claimed, claimed64 = None, None, 0, 0
    for chunk, offset, length in _chunks(file, layout, start, size):
        if chunk == layout.format_chunk and body is None:
            body = _read(file, offset, min(max(length, 0), 64))
        elif chunk == b"ds64":
            claimed64 = int.from_bytes(_read(file, offset, 16)[8:], "little")
        elif chunk == layout.data_chunk:
            data, claimed = offset, length
            break
    if body is None or data is None:
        missing = layout.data_chunk if data is None else layout.format_chunk
        raise AudioError(path, "malformed", f"{name} without a {missing.decode().strip()} chunk")
    _check_codec(path, name, file, start, body)
    there = size - data
    if name == "RF64" and claimed == 0xFFFFFFFF:
        claimed = claimed64
    elif any(claimed in lengths for lengths in _UNKNOWN_LENGTHS):
        return Container(name)
    fault, understated = _length_fault(file, data, max(claimed, 0), size, layout)
    remarks = [fault] if fault else []
    skip, prefix = (data, _mended(file, path, name, data, there, body)) if understated else (0, b"")
    if name in ("WAV", "RIFX") and remarks and len(body) >= 14:
        frame_bytes = int.from_bytes(body[12:14], "little" if name == "WAV" else "big")
        if frame_bytes and there % frame_bytes:
            remarks.append("the last sample is incomplete and was dropped")
    return Container(name, skip=skip, prefix=prefix, remarks=tuple(remarks))


def _check_au(file: BinaryIO, path: str | os.PathLike, start: int, size: int) -> Container:
    head = _read(file, start, 24)
    if len(head) < 24:
        raise AudioError(path, "malformed", "cut inside the header")
    offset, claimed, codec = struct.unpack(">3I", head[4:16])
    if codec not in _AU_CODECS:
        raise AudioError(path, "unsupported codec", f"{codec} in AU; convert it to PCM or FLAC")
    data = start + offset
    if not 24 <= offset <= size - start:
        raise AudioError(path, "malformed", f"AU whose audio begins at byte {data} of {size}")
    unknown = 0xFFFFFFFF
    fault, understated = ("", False) if claimed == unknown else _length_fault(file, data, claimed, size, None)
    prefix = head[:4] + struct.pack(">II", 24, unknown) + head[12:] if understated else b""
    return Container("AU", skip=data if understated else 0, prefix=prefix, remarks=(fault,) if fault else ())


def _check_codec(path: str | os.PathLike, name: str, file: BinaryIO, start: int, body: bytes) -> None:
    if name in ("AIFF", "CAF"):
        packed = name == "CAF" or _read(file, start + 8, 4) == b"AIFC"
        codec = (body[8:12] if name == "CAF" else body[18:22]).lower() if packed else b"none"
        good = codec in (_CAF_CODECS if name == "CAF" else _AIFF_CODECS)
        shown = codec.decode("ascii", "replace")
    else:
        order = "big" if name == "RIFX" else "little"
        tag = int.from_bytes(body[:2], order)
        if tag == _WAV_EXTENSIBLE:
            tag = int.from_bytes(body[24:26], order)
        good, shown = tag in _WAV_CODECS, f"{tag:#06x}" + (", IMA-ADPCM" if tag == 0x11 else "")
    if not good:
        raise AudioError(path, "unsupported codec", f"{shown} in {name}; convert it to PCM or FLAC")


def _check_ogg(file: BinaryIO, path: str | os.PathLike, start: int) -> Container:
    head = _read(file, start, 27 + 255 + 16)
    if len(head) < 28:
        raise AudioError(path, "malformed", "cut inside the first page")
    packet = head[27 + head[26] :]
    if not packet.startswith(_OGG_CODECS):
        raise AudioError(path, "unsupported codec", "neither Vorbis, Opus nor FLAC in OGG")
    return Container("OGG")


def ogg_damage(file: BinaryIO) -> str:
    """What the pages of an OGG file tell that the decoder does not, "" if all is well.

    libsndfile drops damaged pages, and reads the first of several streams; at either end nothing else would show it.
    """
    start = _behind_id3(file, file.seek(0, os.SEEK_END))
    file.seek(start)
    pages = io.BufferedReader(file, 1 << 18)  # pyright: ignore
    position, damaged = start, 0
    try:
        while len(head := pages.read(27)) == 27 and head.startswith(b"OggS"):
            lengths = pages.read(head[26])
            body = pages.read(sum(lengths))
            position += 27 + len(lengths) + len(body)
            whole = len(lengths) == head[26] and len(body) == sum(lengths)
            unsigned = b"".join((head[:22], bytes(4), head[26:], lengths, body))
            if whole and _ogg_checksum(unsigned) != int.from_bytes(head[22:26], "little"):
                damaged += 1
            elif whole and head[5] & 4:
                remarks = [f"{damaged} pages are damaged and were left out"] if damaged else []
                if (after := pages.read(6)).startswith(b"OggS") and after[5] & 2:
                    remarks.append(_second_stream(position))
                return "; ".join(remarks)
    finally:
        pages.detach()
    return f"cut short or damaged at byte {position}: the last page is missing"


def _second_stream(at: int) -> str:
    return f"a second stream follows at byte {at} and was left out: split the file there"


def _ogg_checksum(page: bytes) -> int:
    # OGG's is CRC-32 most significant bit first and without inversions; zlib has its mirror image.
    mirrored = zlib.crc32(page.translate(_MIRRORED_BYTES), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _mp3_frame(head: bytes) -> tuple[int, tuple] | None:
    """Length in bytes of the MPEG audio frame with this header, and what all frames of a file share."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, kbps_index = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer not in (2, 3) or rate_index == 3 or kbps_index in (0, 15):
        return None
    rate = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = _MP3_KBPS[version == 3, layer][kbps_index - 1]
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples * kbps * 125 // rate + (head[2] >> 1 & 1), (version, layer, rate)


def _mp3_count(head: bytes) -> bytes:
    """A frame that claims more frames than any file has.

    Where no such frame stands in front, libsndfile guesses the length from the first frame's bit rate, and reads no
    further: of a file of variable bit rate it may leave out most.
    """
    # The highest bit rate, no checksum, so that the frame has room.
    head = bytes([head[0], head[1] | 1, 0xE0 | head[2] & 0x0D, head[3]])
    frame = _mp3_frame(head)
    assert frame is not None  # the caller found it
    mono, first = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[first, mono]
    return (head + bytes(side) + b"Xing" + struct.pack(">II", 1, 1 << 30)).ljust(frame[0], b"\0")


def _find_mp3(file: BinaryIO, path: str | os.PathLike, start: int) -> Container:
    """The first of three MPEG audio frames in a row, within the first bytes."""
    data = _read(file, start, _MP3_SEARCH_BYTES + _MP3_THREE_FRAMES_BYTES)
    at = data.find(b"\xff")
    while 0 <= at < _MP3_SEARCH_BYTES:
        if _is_mp3(data, at):
            counted = b"Xing" in data[at : at + 200] or b"Info" in data[at : at + 200]
            prefix = b"" if counted else _mp3_count(data[at : at + 4])
            remarks = [f"{at} bytes before the first MP3 frame were skipped"] if at else []
            if counted and (second := _second_mp3(file, start + at, data[at : at + 200])):
                remarks.append(_second_stream(second))
            skip = start + at if at or prefix else 0
            return Container("MP3", skip=skip, prefix=prefix, counted=counted, remarks=tuple(remarks))
        at = data.find(b"\xff", at + 1)
    raise AudioError(path, "not audio", "no WAV, FLAC, OGG, MP3, AIFF, CAF, W64, AU or MP4")


def _is_mp3(data: bytes, at: int) -> bool:
    position, shared, count = at, None, 0
    while count < 3 and (frame := _mp3_frame(data[position : position + 4])) and frame[1] == (shared or frame[1]):
        shared, count = frame[1], count + 1
        position += frame[0]
    # A file may end after its second frame.
    return count == 3 or (count == 2 and position >= len(data))


def _second_mp3(file: BinaryIO, start: int, head: bytes) -> int:
    """Where frames go on behind the bytes that the first frame counts, 0 if nowhere."""
    tag = max(head.find(b"Xing"), head.find(b"Info"))
    has, _, length = struct.unpack(">III", head[tag + 4 : tag + 16].ljust(12, b"\0"))
    if has & 3 != 3:  # frames and bytes
        return 0
    end = start + length
    # ID3v1's tag of 128 bytes closes a file.
    end += 128 if _read(file, end, 3) == b"TAG" else 0
    end = _behind_id3(file, file.seek(0, os.SEEK_END), end)
    return end if _is_mp3(_read(file, end, _MP3_THREE_FRAMES_BYTES), 0) else 0


class View(io.RawIOBase):
    """`prefix`, then a file from `skip` on: what a decoder shall see."""

    def __init__(self, file: BinaryIO, skip: int, prefix: bytes):
        super().__init__()
        self._file, self._skip, self._prefix = file, skip, prefix
        self._length = len(prefix) + file.seek(0, os.SEEK_END) - skip
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._length)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = len(head := self._prefix[self._position : self._position + len(view)])
        view[:count] = head
        if count < len(view):
            self._file.seek(self._skip + self._position + count - len(self._prefix))
            count += self._file.readinto(view[count:])  # pyright: ignore
        self._position += count
        return count
