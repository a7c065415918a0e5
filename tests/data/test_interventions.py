from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.data import InterventionCodec

name = st.text(alphabet="ABCDEFG12-:. ", min_size=1, max_size=6).map(str.strip).filter(lambda s: s and s != "ctrl")
targets = st.lists(name, min_size=1, max_size=8, unique=True)


@st.composite
def codec_and_rows(draw):
    codec = InterventionCodec(tuple(draw(targets)), "ctrl")
    n = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=len(codec), max_size=len(codec)), min_size=n, max_size=n))
    return codec, np.array(rows, dtype=np.float32)


@settings(max_examples=80, deadline=None)
@given(codec_and_rows())
def test_decode_then_encode_is_identity(case):
    codec, rows = case
    np.testing.assert_array_equal(codec.encode(codec.decode(rows)), rows)


@settings(max_examples=80, deadline=None)
@given(codec_and_rows(), st.randoms(use_true_random=False))
def test_order_of_targets_in_a_label_does_not_matter(case, random):
    codec, rows = case
    for label, row in zip(codec.decode(rows), rows, strict=True):
        parts = label.split("+")
        random.shuffle(parts)
        np.testing.assert_array_equal(codec.parse("+".join(parts)), row)
        assert codec.canonical("+".join(parts)) == label


@settings(max_examples=60, deadline=None)
@given(codec_and_rows(), st.integers(0, 1000))
def test_order_of_cells_does_not_matter(case, seed):
    codec, rows = case
    labels = pd.Series([*codec.decode(rows), "ctrl", codec.targets[0]])
    order = np.random.default_rng(seed).permutation(len(labels))
    fitted, shuffled = (InterventionCodec.fit(x, "ctrl") for x in (labels, labels.iloc[order]))
    assert fitted == shuffled
    np.testing.assert_array_equal(fitted.encode(labels)[order], fitted.encode(labels.iloc[order]))


@settings(max_examples=60, deadline=None)
@given(targets, st.data())
def test_doses_survive_label_and_json(names, data):
    codec = InterventionCodec(tuple(names), "ctrl")
    dose = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
    row = np.array(data.draw(st.lists(dose, min_size=len(codec), max_size=len(codec))), dtype=np.float32)
    again = InterventionCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert again == codec
    shown = again.label(row, with_dose=True)
    try:
        np.testing.assert_array_equal(again.parse(shown), row)
    except (AssertionError, UnknownNameError):
        # only where "A:0.5" is itself the name of a target can a dose be misread
        assert any(":" in t for t in names)


def test_forms_of_one_intervention_agree():
    codec = InterventionCodec(("A", "B", "C"), "NT")
    for form in ("B+A", "A+B+NT", "A + B", ("B", "A"), ["A", "B", "NT"], {"A": 1, "B": 1.0, "NT": 1}, "A+A+B"):
        np.testing.assert_array_equal(codec.parse(form), [1, 1, 0])
    np.testing.assert_array_equal(codec.parse({"C": 0.5}), [0, 0, 0.5])
    for form in ("NT", (), {}, "NT+NT"):
        assert codec.label(codec.parse(form)) == "NT"
    assert codec.parse_many(["A", ("A", "C")]).shape == (2, 3)
    assert codec.parse_many("A").shape == (1, 3)
    assert codec.parse("A").dtype == np.float32


def test_unseen_combination_is_fine_and_unseen_target_is_not():
    codec = InterventionCodec.fit(["NT", "KLF1", "MAP2K6"], "NT")
    np.testing.assert_array_equal(codec.parse("MAP2K6+KLF1"), [1, 1])
    with pytest.raises(UnknownNameError, match="Did you mean 'KLF1'"):
        codec.parse("KLF2")


def test_missing_labels_are_counted():
    with pytest.raises(SetupError, match="'pert' has no label in 2 of 4"):
        InterventionCodec.fit(pd.Series(["NT", None, "A", np.nan], name="pert"), "NT")


@pytest.mark.parametrize(
    ("labels", "control", "message"),
    [
        (["ctrl", "A"], "control", "Did you mean 'ctrl'"),
        (["non-targeting", "A"], None, "control='non-targeting'"),
        (["NT", "NT"], "NT", "no intervention"),
        (["NT", "CD4+"], "NT", "empty part"),
    ],
)
def test_unusable_labels_name_the_cure(labels, control, message):
    with pytest.raises(SetupError, match=message):
        InterventionCodec.fit(labels, control)


@pytest.mark.parametrize("names", [(), ("A", "A"), ("A", "NT"), ("A+B",), ("",)])
def test_unusable_targets_are_refused(names):
    with pytest.raises(SetupError):
        InterventionCodec(names, "NT")


def test_without_separator_a_label_is_one_target():
    codec = InterventionCodec.fit(["ctrl", "CD14+ Monocytes"], "ctrl", sep=None)
    assert codec.targets == ("CD14+ Monocytes",)
    np.testing.assert_array_equal(codec.encode(["CD14+ Monocytes", "ctrl"]), [[1], [0]])


def test_doses_of_labels():
    codec = InterventionCodec(("A", "B"), "NT")
    np.testing.assert_array_equal(codec.encode(["B", "NT", "A+B"], [2, 7, 0.5]), [[0, 2], [0, 0], [0.5, 0.5]])
    text = codec.encode(["B+A", "A+NT", "NT"], ["0.5+2", "3+1", "1"])
    np.testing.assert_array_equal(text, [[2, 0.5], [3, 0], [0, 0]])
    for wrong in (["x"], ["1+2"], [np.inf], [None]):
        with pytest.raises(InputDataError):
            codec.encode(["A"], wrong)


def test_frame_columns_are_matched_by_name():
    codec = InterventionCodec(("A", "B"), "NT")
    frame = pd.DataFrame({"B": [1.0, 0.0], "Z": [0.0, 0.0]})
    np.testing.assert_array_equal(codec.encode(frame), [[0, 1], [0, 0]])
    with pytest.raises(UnknownNameError, match="'Z'"):
        codec.encode(frame.assign(Z=[0.0, 1.0]))
    with pytest.raises(InputDataError, match="B"):
        codec.encode(frame.assign(B=[np.nan, 1.0]))
