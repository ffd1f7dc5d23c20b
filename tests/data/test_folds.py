import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdtpu.data.folds import assign_folds, folds_from_csv, groups, roles, split
from birdtpu.errors import UserError

NAN = float("nan")
quick = settings(max_examples=60, deadline=None, database=None)


def make_table(rows):
    """Recordings from tuples `(recording, primary_label, author, latitude, longitude)`, with paths of their own."""
    table = pd.DataFrame(rows, columns=["recording", "primary_label", "author", "latitude", "longitude"])
    return table.assign(data_set="set", path=[f"{row[1]}/{i}.ogg" for i, row in enumerate(rows)], fold="")


def singles(**counts):
    """Recordings of unknown authors: each is its own group."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return make_table([(f"XC{i}", label, "", NAN, NAN) for i, label in enumerate(labels)])


tables = st.lists(
    st.tuples(
        st.sampled_from(["", *(f"XC{i}" for i in range(20))]),
        st.sampled_from(["a", "b", "c", "rare", ""]),
        st.sampled_from(["", "Ann", "ann ", "Bob", "Cy"]),
        st.sampled_from([NAN, 1.0, 1.001, 2.0]),
        st.sampled_from([NAN, 7.0, -0.001, 0.001]),
    ),
    min_size=4,
    max_size=40,
).map(make_table)


def units(table):
    return [row.recording or row.path for row in table.itertuples()]


def linked(table):
    """Pairs of rows that may not be parted: the definition, read slowly."""

    def place(row):
        known = row.author.strip() and not np.isnan(row.latitude) and not np.isnan(row.longitude)
        return known and (row.author.strip().casefold(), round(row.latitude, 2) + 0, round(row.longitude, 2) + 0)

    rows, names = list(table.itertuples()), units(table)
    for i in range(len(rows)):
        for j in range(i):
            if names[i] == names[j] or (place(rows[i]) and place(rows[i]) == place(rows[j])):
                yield i, j


def assert_whole(table, sides):
    sides = list(sides)
    assert [(i, j) for i, j in linked(table) if sides[i] != sides[j]] == []


def or_none(call):
    """The result, or None where the table is too small for it."""
    try:
        return call()
    except UserError:
        return None


@quick
@given(tables)
def test_groups_match_slow_twin(table):
    twin = list(range(len(table)))
    for i, j in list(linked(table)):
        twin = [twin[j] if name == twin[i] else name for name in twin]
    pairs = set(zip(twin, groups(table), strict=True))
    assert len(pairs) == len(set(twin)) == groups(table).nunique()


def test_unknown_author_or_place_is_a_group_of_its_own():
    table = make_table([("XC1", "a", "", 1.0, 1.0), ("XC2", "a", "", 1.0, 1.0), ("XC3", "a", "Ann", NAN, 1.0)])
    assert groups(table).tolist() == ["XC1", "XC2", "XC3"]


def test_same_audio_is_one_group():
    table = singles(a=4).assign(audio_hash=["x", "", "x", ""])
    assert groups(table).tolist() == ["XC0", "XC1", "XC0", "XC3"]


def test_many_recordings_of_one_place_are_one_group():
    assert groups(make_table([("XC1", "a", "Ann", 1.0, 1.0)] * 256 + [("XC2", "a", "Ann", 1.0, 1.0)])).nunique() == 1


@quick
@given(tables, st.integers(2, 4), st.integers(0, 3), st.integers(0, 3))
def test_folds_split_no_group_and_keep_rare_species_in_training(table, folds, seed, rare_at_most):
    fold = or_none(lambda: assign_folds(table, folds=folds, seed=seed, rare_at_most=rare_at_most))
    if fold is None:
        return
    assert_whole(table, fold)
    assert set(fold) - {"train"} == {str(i) for i in range(folds)}
    recordings_of = {label: set() for label in table["primary_label"]}
    for name, label in zip(units(table), table["primary_label"], strict=True):
        recordings_of[label].add(name)
    for label, names in recordings_of.items():
        if label and len(names) <= rare_at_most:
            assert set(fold[table["primary_label"] == label]) == {"train"}
    if not rare_at_most:
        assert "train" not in set(fold)


@quick
@given(tables, st.randoms(use_true_random=False))
def test_row_order_does_not_matter(table, random):
    order = random.sample(range(len(table)), len(table))
    calls = [
        lambda rows: assign_folds(rows, folds=2, seed=1, rare_at_most=1),
        lambda rows: split(rows, parts={"train": 0.7, "validation": 0.3}, seed=1),
        lambda rows: roles(rows, fold=None, validation_fraction=0.3, seed=1),
    ]
    for call in calls:
        straight, mixed = (or_none(lambda c=call, t=rows: c(t)) for rows in (table, table.iloc[order]))
        assert (straight is None) == (mixed is None)
        if straight is not None:
            pd.testing.assert_series_equal(straight, mixed.sort_index())


def test_folds_spread_every_species_evenly():
    table = singles(a=40, b=20, c=10)
    fold = assign_folds(table, folds=5, seed=0)
    assert (pd.crosstab(table["primary_label"], fold).to_numpy() == [[8] * 5, [4] * 5, [2] * 5]).all()


def test_seed_decides_folds():
    table = singles(a=40, b=20)
    first = assign_folds(table, folds=4, seed=0)
    assert first.equals(assign_folds(table, folds=4, seed=0))
    assert not first.equals(assign_folds(table, folds=4, seed=1))


def test_rare_species_takes_its_group_along():
    table = pd.concat([singles(a=9), make_table([("XC90", "rare", "Ann", 1, 1), ("XC91", "a", "Ann", 1, 1)])])
    fold = assign_folds(table, folds=2, seed=0, rare_at_most=1).tolist()
    assert fold[-2:] == ["train", "train"] and "train" not in fold[:-2]


def test_copies_of_a_recording_do_not_make_a_species_common():
    table = make_table([("XC1", "rare", "", NAN, NAN)] * 3 + [(f"XC{i}", "a", "", NAN, NAN) for i in range(2, 9)])
    assert assign_folds(table, folds=2, seed=0, rare_at_most=1).tolist()[:3] == ["train"] * 3


@pytest.mark.parametrize("table", [singles(a=3, b=3), make_table([("", "a", "Ann", 1, 1)] * 9), singles()])
def test_too_few_for_folds_is_a_user_error(table):
    with pytest.raises(UserError, match="4 folds"):
        assign_folds(table, folds=4, seed=0)


@quick
@given(tables, st.integers(0, 3))
def test_split_has_all_parts_and_splits_no_group(table, seed):
    part = or_none(lambda: split(table, parts={"test": 0.1, "train": 0.7, "validation": 0.2}, seed=seed))
    if part is not None:
        assert_whole(table, part)
        assert set(part) == {"train", "validation", "test"}


def test_split_meets_its_shares_in_every_species():
    table = singles(a=200, b=60)
    shares = {"train": 56863 / 62874, "validation": 2997 / 62874, "test": 3014 / 62874}
    part = split(table, parts=shares, seed=0)
    got = pd.crosstab(table["primary_label"], part, normalize="index", margins=True)[list(shares)]
    error = np.abs(got - pd.Series(shares)).max(axis=1)
    # Two recordings of 60 are 0.033.
    assert error["All"] < 0.02 and error.max() < 0.04


def test_recordist_of_half_the_recordings_is_trained_on():
    table = pd.concat([make_table([("", "a", "Ann", 1, 1)] * 50), singles(a=50)], ignore_index=True)
    for seed in range(5):
        part = split(table, parts={"train": 0.8, "validation": 0.1, "test": 0.1}, seed=seed)
        assert (part[:50] == "train").all()
        assert part.value_counts()["validation"] <= 10


@pytest.mark.parametrize(
    "parts", [{"train": 1.0}, {"train": 0.5, "test": 0.6}, {"train": 0.5, "dev": 0.5}, {"train": 1.5, "test": -0.5}]
)
def test_shares_that_are_none_are_refused(parts):
    with pytest.raises(UserError, match="add up to 1"):
        split(singles(a=20), parts=parts, seed=0)


@pytest.fixture
def csv(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "folds.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_folds_are_read_by_path_then_by_unique_name(csv):
    table = singles(a=3).assign(path=["deep/a/0.ogg", "a/1.ogg", "b/1.ogg"])
    path = csv("\ufefffilename,other,fold\na/1.ogg,x,NA\n.\\b\\1.ogg,x,1\n0.ogg,x, 2 \nelsewhere.ogg,x,3\n")
    assert folds_from_csv(path, table).tolist() == ["2", "NA", "1"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("filename;fold\na/Gérard.ogg;0\na/1.ogg;1\n", "utf-8"),
        ("filename, fold\na/Gérard.ogg, 0\na/1.ogg, 1\n", "utf-8"),
        ("Filename,Fold\na/Gérard.ogg,0\na/1.ogg,1\n", "cp1252"),
        ("filename,fold\na/Gérard.ogg,0\na/1.ogg,1\n", "utf-16"),
        ("filename,fold\na/Gérard.ogg,0,\na/1.ogg,1,\n", "utf-8"),
        ("filename,fold\na/Ge\u0301rard.ogg,0\na/1.ogg,1\n", "utf-8"),
    ],
    ids=["semicolons", "spaces", "capitals in cp1252", "utf-16", "trailing commas", "a Mac's é"],
)
@pytest.mark.parametrize("name", ["a/Gérard.ogg", "a/Ge\u0301rard.ogg"])
def test_folds_are_read_as_programs_save_them(csv, text, encoding, name):
    table = singles(a=2).assign(path=[name, "a/1.ogg"])
    assert folds_from_csv(csv(text, encoding), table).tolist() == ["0", "1"]


def test_bare_name_of_two_files_finds_neither(csv):
    table = singles(a=3).assign(path=["a/0.ogg", "b/0.ogg", "c/1.ogg"])
    with pytest.raises(UserError, match=r"none for 2 of 3 recordings \(a/0.ogg, b/0.ogg\)"):
        folds_from_csv(csv("filename,fold\n0.ogg,1\n1.ogg,2\n"), table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("filename,fold\na/0.ogg,1,x\n", "row 1 has 3 cells"),
        ("file,fold\na/0.ogg,1\n", "needs the columns"),
        ("filename,fold\na/0.ogg,1\na/0.ogg,2\n", "a/0.ogg has two folds"),
        ("filename,fold\na/0.ogg,\n", "none for 1 of 1"),
    ],
)
def test_faulty_fold_table_is_named(csv, text, message):
    with pytest.raises(UserError, match=message) as error:
        folds_from_csv(csv(text), singles(a=1))
    assert "folds.csv" in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        folds_from_csv("nowhere.csv", singles(a=1))


def test_torn_group_in_given_folds_is_a_warning(csv):
    table = make_table([("", "a", "Ann", 1, 1), ("", "a", "Ann", 1, 1), ("", "a", "Bob", 1, 1)])
    with pytest.warns(UserWarning, match="1 of 2 groups .*a/0.ogg and a/1.ogg"):
        assert folds_from_csv(csv("filename,fold\n0.ogg,0\n1.ogg,1\n2.ogg,1\n"), table).tolist() == ["0", "1", "1"]


def test_given_folds_of_real_recordings(shared_audio):
    folder = shared_audio / "birdclef-mini"
    meta = pd.read_csv(folder / "train_metadata.csv", dtype=str, keep_default_na=False)
    table = meta.assign(recording="", data_set="mini", path="train_audio/" + meta["filename"], fold="")
    table[["latitude", "longitude"]] = meta[["latitude", "longitude"]].apply(pd.to_numeric)
    # These folds were drawn within each species, so two recordists' places stand in two folds.
    with pytest.warns(UserWarning, match="2 of .* groups"):
        given = folds_from_csv(folder / "folds.csv", table)
    want = pd.read_csv(folder / "folds.csv", dtype=str).set_index("filename")["fold"]
    assert given.tolist() == want[meta["filename"]].tolist()
    ours = assign_folds(table, folds=4, seed=0)
    assert_whole(table, ours)
    assert pd.crosstab(table["primary_label"], ours).to_numpy().min() >= 1


@quick
@given(tables, st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.4]))
def test_roles_of_every_fold_split_no_group(table, seed, fraction):
    fold = or_none(lambda: assign_folds(table, folds=3, seed=seed, rare_at_most=1))
    if fold is None:
        return
    table = table.assign(fold=fold)
    for tested in sorted(set(fold) - {"train"}):
        role = or_none(lambda k=tested: roles(table, fold=k, validation_fraction=fraction, seed=seed))
        if role is None:
            assert fraction > 0
            continue
        assert_whole(table, role)
        assert (role[fold == tested] == "test").all() and not (role[fold != tested] == "test").any()
        assert (role[fold == "train"] == "train").all()
        assert ("validation" in set(role)) == (fraction > 0)


def test_without_a_fold_everything_is_trained_on():
    table = singles(a=20, b=20).assign(fold=["0", "1"] * 20)
    assert set(roles(table, fold=None)) == {"train"}
    role = roles(table, fold=None, validation_fraction=0.1, seed=3)
    assert pd.crosstab(table["primary_label"], role)["validation"].tolist() == [2, 2]


def test_fold_number_may_be_given_as_number():
    table = singles(a=4).assign(fold=["0", "1", "0", "train"])
    assert roles(table, fold=0).tolist() == ["test", "train", "test", "train"]


def test_split_says_its_roles_itself():
    table = singles(a=4).assign(fold=["train", "validation", "test", "train"])
    for fold in (None, "test"):
        assert roles(table, fold=fold, validation_fraction=0.5).tolist() == table["fold"].tolist()


def test_validation_part_leaves_groups_alone_that_given_folds_tear():
    kin = [(f"XC{i}", "a", "Ann", 1, 1) for i in range(6)]
    table = pd.concat([make_table(kin), singles(a=20)], ignore_index=True)
    table["recording"] = [f"XC{i}" for i in range(26)]
    table["fold"] = ["0"] + ["1"] * 25
    for seed in range(5):
        role = roles(table, fold="0", validation_fraction=0.4, seed=seed)
        assert role.tolist()[:6] == ["test"] + ["train"] * 5
        assert "validation" in set(role)


@pytest.mark.parametrize(
    ("folds", "options", "message"),
    [
        (["0", "1", "1"], {"fold": 7}, r"no recording has it \(folds: 0, 1\)"),
        (["0", "1", ""], {"fold": 0}, r"1 recordings have no fold \(a/2.ogg"),
        (["0", "1", "train"], {"fold": "train"}, "never tested"),
        (["0", "1", "1"], {"fold": 0, "validation_fraction": 1.0}, "share below 1"),
        (["0", "1", "1"], {"fold": 1, "validation_fraction": 0.1}, "too few recordings or groups"),
    ],
)
def test_impossible_roles_are_refused(folds, options, message):
    with pytest.raises(UserError, match=message):
        roles(singles(a=3).assign(fold=folds), **options)


def test_recording_in_two_folds_is_refused():
    table = make_table([("XC1", "a", "", NAN, NAN), ("XC1", "a", "", NAN, NAN), ("XC2", "a", "", NAN, NAN)])
    with pytest.raises(UserError, match="recording XC1 is in the folds 0 and 1"):
        roles(table.assign(fold=["0", "1", "1"]), fold=0)
