"""``sweep.json``: a sweep that was written is read back equal."""

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
    support_floor=numbers,
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


def read_back(sweep):
    with tempfile.TemporaryDirectory() as folder:
        path = sweep.write(Path(folder))
        assert path == Path(folder) / "sweep.json"
        return Sweep.read(path)


@given(sweeps)
@settings(max_examples=60)
def test_a_written_sweep_is_read_back(sweep):
    read = read_back(sweep)
    assert read == sweep
    # 1, 1.0 and True are equal, as are -0.0 and 0.0, but their text differs.
    assert repr(read) == repr(sweep)


def test_unusual_names_and_numbers_are_read_back(tmp_path):
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
    assert read_back(sweep) == sweep
    assert math.copysign(1, read_back(sweep).trials[0].curve[12]) == -1


def test_nan_is_read_back():
    """Python reads and writes NaN, although it is not standard JSON."""
    trial = Trial(
        number=0,
        state="COMPLETE",
        params={},
        n_topics=2,
        values={"labels/ari": {"0": [math.nan, 0.5]}},
    )
    value, other = read_back(small(trials=[trial])).trials[0].values["labels/ari"]["0"]
    assert math.isnan(value)
    assert other == 0.5


def test_the_file_is_json_in_ascii(tmp_path):
    path = small(name="β").write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["format"] == FORMAT
    assert document["name"] == "β"
    assert document["trials"] == []
    # ASCII is the same in every encoding.
    assert path.read_bytes().isascii()


@pytest.mark.parametrize("found", [FORMAT + 1, FORMAT - 1, None, str(FORMAT), "missing"])
def test_another_format_is_refused(tmp_path, found):
    path = small().write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["format"] = found
    if found == "missing":
        del document["format"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=r"sweep\.json.*another version"):
        Sweep.read(path)


def test_other_settings_are_all_except_topics_and_seed():
    params = {TOPICS: 5, SEED: 0, "train.learning_rate": 0.1, "model.n_hidden": 8}
    trial = Trial(number=0, state="RUNNING", params=params, n_topics=5)
    assert trial.others == {"train.learning_rate": 0.1, "model.n_hidden": 8}
    assert replace(trial, params={}).others == {}
