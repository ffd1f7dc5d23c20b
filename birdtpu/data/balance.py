"""Balance of the training recordings over species, by recordings left out and recordings cut in sections."""

import heapq

import pandas as pd

from birdtpu.errors import UserError

# Durations are quotients of samples: 30 s in three must still count as 10 s each.
ROUNDING_SECONDS = 1e-9


def balance(
    recordings: pd.DataFrame,
    *,
    down_to: int | None = 80,
    up_to: int | None = 60,
    min_section_seconds: float,
    repeat: bool = False,
    keep: str = "shortest",
    first_seconds: float = 0.0,
    last_seconds: float = 0.0,
    sample_power: float = 0.0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sections of a training part such that no species has too many or, where its audio allows, too few.

    Each species by itself, by primary label. Above `down_to` recordings: the longest are dropped (of equals, the first
    by id) until `down_to` are left. Below `up_to`: the recording whose sections are longest (again the first by id) is
    cut into one more equal, non-overlapping section, again and again, among those whose sections stay at least
    `min_section_seconds`, until there are `up_to`. Then, with `repeat`, sections are repeated in turn, the longest
    first, until an epoch has `up_to` samples; without it the species stays short.

    With `keep="recent"` the oldest are dropped instead: of the data sets in the order of their first recordings here,
    the later ones first, and in each the recordings without a date before those with the earliest. With
    `first_seconds` or `last_seconds` recordings are not cut: a section is the recording's first so many seconds, or
    its last, or there is one of each; the two are one where they meet.

    Last, with a `sample_power` p, the sections of rarer species are repeated, as evenly as above, until a species of n
    samples has `n * (most / n) ** p` (rounded), where the commonest has `most`: as a sampler would draw them that
    weighs each sample by n ^ -p.

    Args:
        recordings: The training part; rows of the same `recording` count once, as the first of them.
        down_to: The most recordings a species keeps; None or 0: all.
        up_to: The samples a species is raised to; None or 0: every recording is one section.
        min_section_seconds: The shortest section that a cut may leave.
        repeat: Whether to repeat the sections of a species that is still short.
        keep: `"shortest"` or `"recent"`.
        first_seconds, last_seconds: 0: recordings are cut as above.
        sample_power: Between 0 (none) and 1 (every species as often as the commonest).

    Returns:
        Sections, sorted: `recording, start_seconds, end_seconds, repeats` (samples an epoch). A recording without a
        primary label is outside the balance: one section.
        A report: a row a species, sorted, `species, recordings, kept, dropped, sections, repeats` (samples beyond one a
        section), `short_by` (samples missing to `up_to`); recordings without a label stand in the row of species `""`.

    Raises: UserError where `up_to` is above `down_to`, `min_section_seconds` is not positive, or a duration is unknown.

    Source: write-up of the 108th place in Cornell Birdcall Identification 2020 (the counts 80 and 60, longest first);
        jfpuget's of BirdCLEF 2024 (the most recent 500, the first and last 6 s).
    """
    if down_to and up_to and up_to > down_to:
        raise UserError(f"balance: up_to = {up_to} is above down_to = {down_to}")
    if not min_section_seconds > 0:
        raise UserError(f"balance: min_section_seconds = {min_section_seconds}: give more than 0")
    table = recordings.drop_duplicates("recording")
    unknown = table.loc[~(table["duration_seconds"] > 0), "recording"]
    if len(unknown):
        raise UserError(f"balance: {len(unknown)} recordings without duration ({unknown.iloc[0]}, ...): run prepare")
    parts: dict[str, tuple[list, list[int], int, int]] = {}
    order = _dropped_first(table, keep)
    for species, part in table.groupby("primary_label", sort=True):
        aim = up_to if species and up_to else 0
        dropped = max(0, len(part) - down_to) if species and down_to else 0
        durations = dict(zip(part["recording"], part["duration_seconds"], strict=True))
        kept = {name: durations[name] for name in sorted(durations, key=order.__getitem__)[dropped:]}
        if species and (first_seconds or last_seconds):
            pieces = [piece for item in kept.items() for piece in _ends(*item, first_seconds, last_seconds)]
        else:
            pieces = [
                (name, kept[name] * i / count, kept[name] * (i + 1) / count)
                for name, count in _cut(kept, aim, min_section_seconds).items()
                for i in range(count)
            ]
        parts[species] = pieces, _repeat(pieces, aim if repeat else 0), len(part), dropped
    most = max((sum(times) for species, (_, times, *_) in parts.items() if species), default=0)
    sections, report = [], []
    for species, (pieces, times, count, dropped) in parts.items():
        if species and sample_power:
            times = _repeat(pieces, round(most**sample_power * sum(times) ** (1 - sample_power)))
        sections += [(*piece, number) for piece, number in zip(pieces, times, strict=True)]
        samples, aim = sum(times), up_to if species and up_to else 0
        short_by = max(0, aim - samples)
        report.append((species, count, count - dropped, dropped, len(pieces), samples - len(pieces), short_by))
    return (
        pd.DataFrame(sorted(sections), columns=["recording", "start_seconds", "end_seconds", "repeats"]),
        pd.DataFrame(report, columns=["species", "recordings", "kept", "dropped", "sections", "repeats", "short_by"]),
    )


def _dropped_first(table: pd.DataFrame, keep: str) -> dict[str, tuple]:
    """Recording -> its place among those of its species: the lowest is dropped first."""
    if keep == "shortest":
        return {
            name: (-seconds, name) for name, seconds in zip(table["recording"], table["duration_seconds"], strict=True)
        }
    data_set = pd.factorize(table["data_set"])[0]
    dates = table["date"].fillna("").astype(str)
    # ISO dates sort as text; none stands before all.
    return {name: (-number, date, name) for name, number, date in zip(table["recording"], data_set, dates, strict=True)}


def _ends(name: str, seconds: float, first: float, last: float) -> list[tuple[str, float, float]]:
    """The first and the last seconds of a recording."""
    if first and last and first + last >= seconds:
        return [(name, 0.0, seconds)]
    begin = [(name, 0.0, min(first, seconds))] if first else []
    return begin + ([(name, max(0.0, seconds - last), seconds)] if last else [])


def _cut(durations: dict[str, float], aim: int, shortest: float) -> dict[str, int]:
    """How many sections each recording is cut into."""
    counts = dict.fromkeys(durations, 1)
    heap = [(-seconds, name) for name, seconds in durations.items() if _may_cut(seconds, 2, shortest)]
    heapq.heapify(heap)
    for _ in range(aim - len(counts)):
        if not heap:
            break
        _, name = heapq.heappop(heap)
        counts[name] += 1
        if _may_cut(durations[name], counts[name] + 1, shortest):
            heapq.heappush(heap, (-durations[name] / counts[name], name))
    return counts


def _may_cut(seconds: float, count: int, shortest: float) -> bool:
    return seconds / count >= shortest - ROUNDING_SECONDS


def _repeat(pieces: list[tuple[str, float, float]], aim: int) -> list[int]:
    """How often an epoch takes each section."""
    each, more = divmod(max(aim, len(pieces)), len(pieces))
    order = sorted(range(len(pieces)), key=lambda i: (pieces[i][1] - pieces[i][2], pieces[i]))
    times = [each] * len(pieces)
    for i in order[:more]:
        times[i] += 1
    return times
