"""What ``sweep.json`` holds comes back as it was."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.errors import InputError
from topicell.sweep.trials import FORMAT, PERPLEXITY, SEED, TOPICS, Sweep, Trial

words = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats(allow_nan=False)
settings_of = st.one_of(st.none(), st.booleans(), st.integers(), numbers, words)
of_splits = st.dictionaries(words, st.lists(numbers, max_size=4), max_size=3)
trials = st.builds(
    Trial,
    number=st.integers(0),
    state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL", "RUNNING"]),
    params=st.dictionaries(words, st.one_of(settings_of, st.lists(settings_of)), max_size=4),
    n_topics=st.integers(1),
    values=st.dictionaries(words, of_splits, max_size=3),
    curve=st.dictionaries(st.integers(0), numbers, max_size=4),
    epochs=st.integers(0),
    seconds=st.none() | numbers,
    ended=words,
    run_id=words,
    run_name=words,
    folder=words,
    error=words,
)
sweeps = st.builds(
    Sweep,
    name=words,
    data=words,
    kind=st.sampled_from(["sweep", "multirun"]),
    bounds=st.none() | st.tuples(st.integers(), st.integers()),
    space=st.dictionaries(words, words, max_size=3),
    trials=st.lists(trials, max_size=3),
    importance=st.dictionaries(words, numbers, max_size=3),
    storage=words,
    sampler=words,
    pruner=words,
    seconds=st.none() | numbers,
    n_jobs=st.integers(),
    stability_floor=numbers,
    parent_id=words,
    experiment_id=words,
    tracking=words,
    version=words,
    created=words,
)


def small(**fields):
    return Sweep(
        **{"name": "", "data": "", "kind": "sweep", "bounds": None, "space": {}, "trials": []}
        | fields
    )


def again(sweep):
    with tempfile.TemporaryDirectory() as folder:
        path = sweep.write(Path(folder))
        assert path == Path(folder) / "sweep.json"
        return Sweep.read(path)


@given(sweeps)
@settings(max_examples=60)
def test_what_was_written_is_read_back(sweep):
    read = again(sweep)
    assert read == sweep
    # 1, 1.0 and True are equal, and -0.0 and 0.0; written, they are not.
    assert repr(read) == repr(sweep)


def test_odd_names_and_numbers_come_back(tmp_path):
    sweep = small(
        name='β "quoted" \\ \n\t ☂ 𝜃 </script>',
        bounds=(2, 30),
        trials=[
            Trial(
                number=0,
                state="COMPLETE",
                params={TOPICS: 5, SEED: 1, "": None, "train.a/b.ü": 1e-5, "x": "0.1"},
                n_topics=5,
                values={PERPLEXITY: {"0": [0.1 + 0.2, 5e-324, math.inf], "4294967295": []}},
                curve={1: 1.5, 12: -0.0},
            )
        ],
    )
    assert again(sweep) == sweep
    assert math.copysign(1, again(sweep).trials[0].curve[12]) == -1


def test_epochs_are_whole_numbers_and_bounds_a_pair_again():
    trial = Trial(number=0, state="PRUNED", params={}, n_topics=2, curve={2: 5.0, 10: 4.0})
    read = again(small(bounds=(2, 9), trials=[trial]))
    assert list(read.trials[0].curve) == [2, 10]
    assert all(type(epoch) is int for epoch in read.trials[0].curve)
    assert read.bounds == (2, 9)
    assert type(read.bounds) is tuple
    assert isinstance(read.trials[0], Trial)


def test_a_metric_that_is_no_number_stays_none():
    """Python writes and reads NaN; the file is no JSON to others then."""
    trial = Trial(
        number=0,
        state="COMPLETE",
        params={},
        n_topics=2,
        values={"labels/ari": {"0": [math.nan, 0.5]}},
    )
    value, other = again(small(trials=[trial])).trials[0].values["labels/ari"]["0"]
    assert math.isnan(value)
    assert other == 0.5


def test_what_the_file_says(tmp_path):
    path = small(name="β").write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["format"] == FORMAT
    assert document["name"] == "β"
    assert document["trials"] == []
    # As text it is ASCII: no reader can take it for another encoding.
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("found", [FORMAT + 1, FORMAT - 1, None, str(FORMAT)])
def test_another_format_is_not_read(tmp_path, found):
    path = small().write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"format": found}), encoding="utf-8")
    with pytest.raises(InputError, match=r"sweep\.json"):
        Sweep.read(path)


def test_a_file_without_a_format_is_not_read(tmp_path):
    path = small().write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["format"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match="another version"):
        Sweep.read(path)


def test_the_other_settings_are_all_but_topics_and_seed():
    params = {TOPICS: 5, SEED: 0, "train.learning_rate": 0.1, "model.n_hidden": 8}
    trial = Trial(number=0, state="RUNNING", params=params, n_topics=5)
    assert trial.others == {"train.learning_rate": 0.1, "model.n_hidden": 8}
    assert replace(trial, params={}).others == {}
