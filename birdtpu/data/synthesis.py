"""A small seeded world of bird-like species, as recordings in the BirdCLEF 2023 layout.

Each recordist's place holds one individual a species (own pitch and tempo), its own noise and microphone. Nothing here
is a real bird, recordist or xeno-canto number.
"""

import io
import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from birdtpu import storage
from birdtpu.data.voices import Species, make_species, render_phrase
from birdtpu.errors import UserError

# Noise is scaled to unit RMS in this band, where most birds sing: levels below are relative to it.
BAND_HZ = (1500.0, 8000.0)
FOCAL_SNR_DB = (3.0, 30.0)
# Birds behind the focal one, relative to it.
BACKGROUND_DB = (-20.0, -6.0)
SOUNDSCAPE_SNR_DB = (0.0, 20.0)
ROW_SECONDS = 5
# A 5-s row names a species that sounds at least this long in it.
AUDIBLE_SECONDS = 0.1
# Above what xeno-canto has given out.
RECORDING_NUMBER = 90_000_000
SOUNDSCAPE_NUMBER = 900_001
ROW_COLUMNS = ["row_id", "site", "audio_id", "seconds", "birds"]
EVENT_COLUMNS = ["filename", "onset_s", "offset_s", "species", "low_hz", "high_hz"]

RECORDISTS = (
    "Ada Quill",
    "Bo Lindqvist",
    "Chioma Reed",
    "Dário Vale",
    "Emi Sato",
    "Farid Noor",
    "Greta Ólafs",
    "Hugo Pech",
)
LICENCE = "Creative Commons Zero 1.0"


@dataclass(frozen=True)
class Place:
    """A recordist at a place: the unit that a fold must not split."""

    author: str
    latitude: float
    longitude: float
    slope: float  # of the noise's amplitude over frequency
    low_cut_hz: float
    insect_hz: float  # 0: none
    insect_pulse_hz: float
    wind: float
    rain: bool
    echo_seconds: float


@dataclass(frozen=True)
class World:
    seed: int
    sample_rate: int
    species: tuple[Species, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Event:
    """One rendering of a phrase in a recording."""

    onset_seconds: float
    samples: np.ndarray = field(repr=False)
    code: str
    low_hz: float
    high_hz: float
    gain: float
    far: bool


def _make_place(index: int, seed: int) -> Place:
    rng = np.random.default_rng([seed, 2, index])
    return Place(
        author=RECORDISTS[index % len(RECORDISTS)],
        latitude=round(float(rng.uniform(-4, 4)), 4),
        longitude=round(float(rng.uniform(30, 40)), 4),
        slope=float(rng.uniform(0.3, 1.1)),
        low_cut_hz=float(rng.uniform(60, 350)),
        insect_hz=float(rng.uniform(4200, 8500)) if rng.random() < 0.45 else 0.0,
        insect_pulse_hz=float(rng.uniform(2, 25)),
        wind=float(rng.uniform(0, 6)),
        rain=bool(rng.random() < 0.2),
        echo_seconds=float(rng.uniform(0.05, 0.35)),
    )


def _sing(
    world: World,
    species: Species,
    at_place: int,
    rng: np.random.Generator,
    *,
    seconds: float,
    stretch: tuple[float, float],
    gap_seconds: float,
    call_share: float,
    gain: float,
    far: bool,
) -> list[Event]:
    """One individual's events in a stretch of a recording; at least one."""
    individual = np.random.default_rng([world.seed, 3, at_place, *species.code.encode()])
    pitch, tempo = individual.normal(0, 0.15), float(np.exp(individual.normal(0, 0.12)))
    # Most individuals have a favourite song.
    second_song = individual.random()
    events: list[Event] = []
    at = stretch[0] + rng.uniform(0, min(gap_seconds, 1.5))
    while not events or at < stretch[1]:
        song = species.songs[int(rng.random() < second_song)]
        phrase = species.call if rng.random() < call_share else song
        samples, low_hz, high_hz = render_phrase(species, phrase, pitch, tempo, rng, world.sample_rate)
        latest = seconds - samples.size / world.sample_rate
        if at > latest and events:
            break
        at = max(0.0, min(at, latest))
        events.append(Event(at, samples, species.code, low_hz, high_hz, gain * rng.uniform(0.7, 1.0), far))
        at += samples.size / world.sample_rate + gap_seconds * rng.uniform(0.4, 1.8)
    return events


def _noise(place: Place, rng: np.random.Generator, samples: int, sample_rate: int) -> np.ndarray:
    """`(samples,)` wind and air, insects and rain, unit RMS of the air within `BAND_HZ`."""
    hz = np.fft.rfftfreq(samples, 1 / sample_rate)
    draw = rng.standard_normal((2, hz.size), np.float32)
    draw = draw[0] + 1j * draw[1]
    tilt = (np.maximum(hz, 40) / 1000) ** -place.slope
    cut = 1 / (1 + (place.low_cut_hz / np.maximum(hz, 1)) ** 4)
    air = np.fft.irfft(draw * tilt * cut, samples)
    band = (hz >= BAND_HZ[0]) & (hz <= BAND_HZ[1])
    unit = samples / np.sqrt(4 * np.sum(tilt[band] ** 2))
    noise = air * unit
    seconds = np.arange(samples) / sample_rate
    gusts = np.interp(
        seconds, np.arange(0, seconds[-1] + 2, 1.3), rng.uniform(0, 1, int((seconds[-1] + 2) / 1.3) + 1) ** 2
    )
    noise += place.wind * gusts * np.fft.irfft(draw[::-1] * np.exp(-hz / 180) * cut, samples) * unit
    if place.insect_hz and rng.random() < 0.8:
        width = rng.uniform(60, 250)
        carrier = np.fft.irfft(draw * np.exp(-(((hz - place.insect_hz) / width) ** 2)), samples)
        pulse = 0.5 + 0.5 * np.sin(2 * np.pi * place.insect_pulse_hz * seconds + rng.uniform(0, 6.28))
        noise += carrier / carrier.std() * pulse**2 * rng.uniform(0.4, 1.6)
    if place.rain and rng.random() < 0.7:
        _add_rain(noise, rng, sample_rate)
    return noise


def _add_rain(noise: np.ndarray, rng: np.random.Generator, sample_rate: int) -> None:
    drop = int(0.006 * sample_rate)
    decay = np.exp(-np.arange(drop) / (0.0012 * sample_rate))
    for start in rng.integers(0, noise.size - drop, rng.poisson(noise.size / sample_rate * rng.uniform(8, 40))):
        noise[start : start + drop] += rng.standard_normal(drop) * decay * rng.lognormal(0.7, 0.7)


def _mix(events: list[Event], place: Place, rng: np.random.Generator, seconds: float, sample_rate: int) -> np.ndarray:
    """`(samples,)` float32: events with the place's echo (far ones dulled) over its noise, at a random level."""
    total = int(seconds * sample_rate)
    # Whole seconds, and one to spare for the echo: a length that the FFT likes, and no wrapping round.
    padded = (int(seconds) + 2) * sample_rate
    tracks = np.zeros((2, padded))
    for event in events:
        start = int(event.onset_seconds * sample_rate)
        tracks[int(event.far), start : start + event.samples.size] += event.gain * event.samples
    tail = int(min(4 * place.echo_seconds, 1.0) * sample_rate)
    echo = rng.standard_normal((2, tail)) * np.exp(-np.arange(tail) / (place.echo_seconds * sample_rate))
    echo /= np.sqrt(np.sum(echo**2, axis=1, keepdims=True))
    echo *= np.array([[0.22], [0.7]])
    echo[:, 0] += 1
    spectrum = np.fft.rfft(tracks) * np.fft.rfft(echo, padded)
    spectrum[1] *= np.exp(-np.fft.rfftfreq(padded, 1 / sample_rate) / 7000)
    audio = np.fft.irfft(spectrum.sum(0), padded)[:total] + _noise(place, rng, padded, sample_rate)[:total]
    return (audio / np.abs(audio).max() * 10 ** (rng.uniform(-14, -1) / 20)).astype(np.float32)


def _gain(rng: np.random.Generator, snr_db: tuple[float, float]) -> tuple[float, float]:
    # A tone of amplitude sqrt(2) has the unit RMS of the noise.
    snr = rng.uniform(*snr_db)
    return float(np.sqrt(2) * 10 ** (snr / 20)), float(snr)


_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _set_ogg_serial(data: bytes, serial: int) -> bytes:
    """Put `serial` in each page: libsndfile draws it from the clock, and the same seed shall give the same bytes.

    Reference: RFC 3533 section 6 (the page's checksum is CRC-32 0x04c11db7, most significant bit first, no inversion).
    """
    out, start = bytearray(data), 0
    while start < len(out):
        lacing = out[start + 26]
        end = start + 27 + lacing + sum(out[start + 27 : start + 27 + lacing])
        out[start + 14 : start + 18] = serial.to_bytes(4, "little")
        out[start + 22 : start + 26] = bytes(4)
        # zlib runs the same polynomial least significant bit first: mirror what goes in and what comes out.
        mirrored = zlib.crc32(bytes(out[start:end]).translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
        out[start + 22 : start + 26] = mirrored.to_bytes(4, "big").translate(_MIRROR)
        start = end
    return bytes(out)


def _write_ogg(path: Path, audio: np.ndarray, sample_rate: int, serial: int) -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, 1, "VORBIS", format="OGG") as file:
        # libvorbis keeps what one call gives it on the stack: a minute at once ends the process.
        for start in range(0, audio.size, sample_rate):
            file.write(audio[start : start + sample_rate])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_set_ogg_serial(buffer.getvalue(), serial))


def _focal(world: World, label: int, index: int, number: int, folder: Path) -> dict:
    """Make and write one recording of species `label`; its row of train_metadata.csv, and `seconds`."""
    rng = np.random.default_rng([world.seed, 4, label, index])
    species = world.species[label]
    # A species is known from half the places, and from some far more than from others.
    known = np.random.default_rng([world.seed, 5, label]).permutation(len(world.places))[: len(world.places) // 2]
    at = int(known[min(int(rng.exponential(len(known) / 3)), len(known) - 1)])
    seconds = round(float(np.clip(np.exp(rng.normal(np.log(12), 0.5)), 6, 60)), 3)
    gain, snr_db = _gain(rng, FOCAL_SNR_DB)
    calls = bool(rng.random() < 0.15)
    # Weak labels: in many recordings the bird is silent for a while before or after.
    sings = seconds * rng.uniform(0.3, 1.0)
    start = rng.uniform(0, seconds - sings)
    events = _sing(
        world, species, at, rng,
        seconds=seconds, stretch=(start, start + sings), gap_seconds=rng.uniform(0.6, 3.0),
        call_share=0.75 if calls else 0.1, gain=gain, far=False,
    )  # fmt: skip
    named = []
    for other in rng.permutation(len(world.species))[: int(rng.choice([0, 1, 2], p=[0.55, 0.3, 0.15]))]:
        if other == label:
            continue
        events += _sing(
            world, world.species[other], at, rng,
            seconds=seconds, stretch=(0, seconds), gap_seconds=rng.uniform(2, 6),
            call_share=0.2, gain=gain * 10 ** (rng.uniform(*BACKGROUND_DB) / 20), far=True,
        )  # fmt: skip
        # Recordists do not name every bird behind theirs.
        if rng.random() < 0.8:
            named.append(world.species[other].code)
    place = world.places[at]
    filename = f"{species.code}/XC{number}.ogg"
    audio = _mix(events, place, rng, seconds, world.sample_rate)
    _write_ogg(folder / "train_audio" / filename, audio, world.sample_rate, number)
    return {
        "primary_label": species.code,
        "secondary_labels": str(sorted(named)),
        "type": "['call']" if calls else "['song']",
        "latitude": place.latitude,
        "longitude": place.longitude,
        "scientific_name": species.scientific_name,
        "common_name": species.common_name,
        "author": place.author,
        "license": LICENCE,
        "rating": float(np.clip(np.round((snr_db + 12) / 8 * 2) / 2, 0.5, 5)),
        "url": f"https://example.org/{number}",
        "filename": filename,
        "seconds": seconds,
    }


def _soundscape(world: World, index: int, folder: Path) -> tuple[list[dict], list[dict]]:
    """Make and write one soundscape; its 5-s rows and its strong labels."""
    rng = np.random.default_rng([world.seed, 6, index])
    at = int(rng.integers(len(world.places)))
    seconds = int(rng.integers(12, 25)) * ROW_SECONDS
    events: list[Event] = []
    for species in world.species:
        for _ in range(int(rng.choice([0, 1, 2], p=[0.2, 0.4, 0.4]))):
            sings = rng.uniform(5, 25)
            start = rng.uniform(0, seconds - 10)
            events += _sing(
                world, species, at, rng,
                seconds=seconds, stretch=(start, min(start + sings, seconds)), gap_seconds=rng.uniform(1.5, 6),
                call_share=0.15, gain=_gain(rng, SOUNDSCAPE_SNR_DB)[0], far=bool(rng.random() < 0.6),
            )  # fmt: skip
    audio_id, site = SOUNDSCAPE_NUMBER + index, "SYN"
    name = f"{audio_id}_{site}_{20240501 + index % 28}.ogg"
    audio = _mix(events, world.places[at], rng, seconds, world.sample_rate)
    _write_ogg(folder / "train_soundscapes" / name, audio, world.sample_rate, audio_id)
    strong = [
        {
            "filename": f"train_soundscapes/{name}",
            "onset_s": round(event.onset_seconds, 3),
            "offset_s": round(event.onset_seconds + event.samples.size / world.sample_rate, 3),
            "species": event.code,
            "low_hz": round(event.low_hz),
            "high_hz": round(event.high_hz),
        }
        for event in sorted(events, key=lambda event: event.onset_seconds)
    ]
    rows = []
    for end in range(ROW_SECONDS, seconds + 1, ROW_SECONDS):
        heard = {
            one["species"]
            for one in strong
            if min(one["offset_s"], end) - max(one["onset_s"], end - ROW_SECONDS)
            >= min(AUDIBLE_SECONDS, one["offset_s"] - one["onset_s"])
        }
        rows.append(
            {
                "row_id": f"{audio_id}_{site}_{end}",
                "site": site,
                "audio_id": audio_id,
                "seconds": end,
                "birds": " ".join(sorted(heard)) or "nocall",
            }
        )
    return rows, strong


def synthesize(
    folder: str | os.PathLike,
    *,
    species: int = 6,
    recordings: int = 40,
    soundscapes: int = 2,
    seed: int = 0,
    sample_rate: int = 32000,
    workers: int = 2,
) -> dict:
    """Write a made-up data set in the layout of BirdCLEF 2023, with labelled soundscapes.

    `folder` gets `train_metadata.csv`, `train_audio/<code>/XC*.ogg` (6 to 60 s; weak labels: the species may be silent
    for a while; some secondary species unnamed), `train_soundscapes/*.ogg` (60 to 120 s),
    `train_soundscape_labels.csv` (5-s rows as in 2021: `row_id,site,audio_id,seconds,birds`),
    `train_soundscape_events.csv` (`filename,onset_s,offset_s,species,low_hz,high_hz`) and `synthesis.json`, which is
    what is returned. The folder appears when it is whole. The same arguments give the same bytes, whatever the number
    of workers, as long as NumPy and libsndfile are the same.

    Args:
        folder: A local folder that is not there yet or is empty. One that the same call made is left as it is.
        species: Number of species, 2 to 100. The first ones do not change with it, nor do their songs.
        recordings: Recordings of the commonest species; they fall geometrically to 3/8 of it for the rarest.
        soundscapes: Number of soundscapes.
        seed: Of everything; not negative.
        sample_rate: Hz, 16000 to 48000.
        workers: Threads.

    Returns: `species`, `recordings`, `soundscapes`, `seed`, `sample_rate` as given; `files`, `seconds`, `bytes` of all
    audio; `classes`, recordings per species code.

    Raises: UserError where an argument is out of range or the folder holds something else.
    """
    asked = {
        "species": species,
        "recordings": recordings,
        "soundscapes": soundscapes,
        "seed": seed,
        "sample_rate": sample_rate,
    }
    _check(asked, folder)
    folder = Path(folder).resolve()
    summary = folder / "synthesis.json"
    if asked.items() <= (made := _read_summary(summary)).items():
        return made
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: holds something else already; give a new folder to synthesise into")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    made = asked | _write_world(partial, asked, workers)
    (partial / "synthesis.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    partial.replace(folder)
    storage.sync_folder(folder.parent)
    return made


def _read_summary(path: Path) -> dict:
    """What an earlier call returned, empty where none did or the file is damaged."""
    try:
        made = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return made if isinstance(made, dict) else {}


def _check(asked: dict, folder: str | os.PathLike) -> None:
    if storage.is_remote(folder):
        raise UserError(f"{folder}: recordings are synthesised into a local folder; copy it from there")
    bounds = {
        "species": (2, 100),
        "recordings": (1, 100_000),
        "soundscapes": (0, 10_000),
        "seed": (0, 2**63),
        "sample_rate": (16000, 48000),
    }
    for key, (low, high) in bounds.items():
        if not low <= asked[key] <= high:
            raise UserError(f"synthesize: {key} must lie in {low}..{high}, not {asked[key]}")


def _write_world(folder: Path, asked: dict, workers: int) -> dict:
    count, seed = asked["species"], asked["seed"]
    world = World(
        seed,
        asked["sample_rate"],
        tuple(make_species(i, seed) for i in range(count)),
        tuple(_make_place(i, seed) for i in range(max(24, 2 * count))),
    )
    sizes = np.maximum(1, np.rint(asked["recordings"] * np.geomspace(1, 3 / 8, count))).astype(int)
    # Which species is common is drawn, so that no kind of voice always is.
    sizes = np.random.default_rng([seed, 7]).permutation(sizes)
    tasks = [(label, index) for label in range(count) for index in range(sizes[label])]
    (folder / "train_audio").mkdir(parents=True)
    (folder / "train_soundscapes").mkdir()
    with ThreadPoolExecutor(workers) as pool:
        field = list(pool.map(lambda index: _soundscape(world, index, folder), range(asked["soundscapes"])))
        focal = list(
            pool.map(lambda task: _focal(world, *task[1], RECORDING_NUMBER + task[0], folder), enumerate(tasks))
        )
    metadata = pd.DataFrame(focal).sort_values("filename")
    _write_table(folder / "train_metadata.csv", metadata.drop(columns="seconds"))
    rows = [row for rows, _ in field for row in rows]
    strong = [row for _, rows in field for row in rows]
    if rows:
        _write_table(folder / "train_soundscape_labels.csv", pd.DataFrame(rows, columns=ROW_COLUMNS))
        _write_table(folder / "train_soundscape_events.csv", pd.DataFrame(strong, columns=EVENT_COLUMNS))
    audio = sorted(folder.rglob("*.ogg"))
    return {
        "files": len(audio),
        "seconds": round(float(metadata["seconds"].sum()) + ROW_SECONDS * len(rows), 3),
        "bytes": sum(path.stat().st_size for path in audio),
        "classes": {one.code: int(size) for one, size in zip(world.species, sizes, strict=True)},
    }


def _write_table(path: Path, table: pd.DataFrame) -> None:
    path.write_text(table.to_csv(index=False, lineterminator="\n"), "utf-8", newline="\n")
