"""Hydra's grammar of sweeps as distributions: the same values, also after Optuna stored them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.distributions import distribution_to_json as as_json

from hydra_plugins.topicell_sweeper._space import bounds_of, distribution, space_of
from topicell.errors import InputError

PARSER = OverridesParser.create()


def parsed(text):
    return PARSER.parse_override(text)


def found(text, name="a"):
    return distribution(parsed(f"{name}={text}"))


def enumerated(one):
    """Return every value of a finite distribution."""
    if isinstance(one, CategoricalDistribution):
        return list(one.choices)
    if isinstance(one, IntDistribution):
        return list(range(one.low, one.high + 1, one.step))
    n = 1 if one.low == one.high else round((one.high - one.low) / one.step) + 1
    return [one.low + i * (one.step or 0.0) for i in range(n)]


def received(value, name="a"):
    """Return what a run receives for a proposed value."""
    return parsed(f"{name}={value}").value()


def same(a, b):
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("range(5)", [0, 1, 2, 3, 4]),
        ("range(5,52,5)", list(range(5, 52, 5))),
        ("range(2,3)", [2]),
        ("range(10,0,-3)", [1, 4, 7, 10]),
        ("range(start=2,stop=9,step=3)", [2, 5, 8]),
        ("int(range(2.0,5.5))", [2, 3, 4]),
        ("sort(range(1,4),reverse=true)", [1, 2, 3]),
        ("shuffle(range(1,4))", [1, 2, 3]),
    ],
)
def test_a_range_of_integers_ends_before_its_stop(text, values):
    one = found(text)
    assert isinstance(one, IntDistribution)
    assert enumerated(one) == values
    assert sorted(parsed(f"a={text}").sweep_iterator()) == values
    assert not one.log


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("range(0,1,0.1)", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("range(2,8,2.5)", [2, 4.5, 7]),
        ("float(range(1,4))", [1, 2, 3]),
        ("range(0.5,0.6)", [0.5]),
        ("range(1e-3,4e-3,1e-3)", [1e-3, 2e-3, 3e-3]),
        # Hydra's sums give 2.9000000000000004 as the last value; here 0.7999999999999999.
        ("range(1.1,3,0.2)", [1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3, 2.5, 2.7, 2.9]),
        ("range(0.6,0.85,0.1)", [0.6, 0.7, 0.8]),
    ],
)
def test_a_range_of_floats_ends_before_its_stop(text, values):
    one = found(text)
    assert isinstance(one, FloatDistribution)
    assert enumerated(one) == pytest.approx(values)
    assert one.high == pytest.approx(values[-1])


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_ranges_of_integers_have_the_values_that_hydra_enumerates(start, stop, step):
    assume(range(start, stop, step))
    override = parsed(f"a=range({start},{stop},{step})")
    assert enumerated(distribution(override)) == sorted(override.sweep_iterator())


@given(
    st.integers(-500, 500),
    st.integers(-500, 500),
    st.integers(-300, 300).filter(bool),
    st.sampled_from([1, 10, 100, 1000]),
)
def test_ranges_of_floats_have_the_values_that_hydra_enumerates(start, stop, step, scale):
    override = parsed(f"a=range({start / scale},{stop / scale},{step / scale})")
    values = sorted(override.sweep_iterator())
    assume(values)
    one = distribution(override)
    assert isinstance(one, FloatDistribution)
    assert enumerated(one) == pytest.approx(values, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5,10,20", [5, 10, 20]),
        ("choice(5,10,20)", [5, 10, 20]),
        ("choice(20,5)", [20, 5]),
        ("choice(5)", [5]),
        ("int(5.0,10.0)", [5, 10]),
        ("sort(3,1,2)", [1, 2, 3]),
        ("0.1,1e-3", [0.1, 1e-3]),
        ("1,0.5", [1, 0.5]),
        ("true,false", [True, False]),
        ("choice(True,False)", [True, False]),
        ("0,false", [0, False]),
        ("null,5", [None, 5]),
        ("null,'null'", [None, "null"]),
        ("adam,sgd", ["adam", "sgd"]),
        ("'1',1", ["1", 1]),
        ("'a b',\"c, d\"", ["a b", "c, d"]),
        ("choice('a b',\"c, d\")", ["a b", "c, d"]),
        ('"it\'s",\'say "so"\'', ["it's", 'say "so"']),
        ("'',x", ["", "x"]),
        ("choice('',x)", ["", "x"]),
        (r"a\ b,c\,d", ["a b", "c,d"]),
        ("/data/a-b.h5ad,s3://x/y", ["/data/a-b.h5ad", "s3://x/y"]),
        ("[1,2],[3]", [[1, 2], [3]]),
        ("choice([a,'b c'],[])", [["a", "b c"], []]),
        ("{x:1},{y:{z:2}}", [{"x": 1}, {"y": {"z": 2}}]),
        ("'θ','β γ'", ["θ", "β γ"]),
        ('choice("it\'s",x)', ["it's", "x"]),
    ],
)
def test_choices_arrive_as_they_were_written(text, values):
    one = found(text)
    assert isinstance(one, CategoricalDistribution)
    arrived = [received(choice) for choice in one.choices]
    assert arrived == values
    assert all(same(a, b) for a, b in zip(arrived, values, strict=True))


def test_choices_of_numbers_are_numbers_for_the_sampler():
    assert found("5,0.5,10").choices == (5, 0.5, 10)


@pytest.mark.parametrize(
    "text",
    [
        "5,10",
        "choice('1',2)",
        "choice('true',x)",
        "choice('null',x)",
        "choice('',x)",
        "choice(' a ',x)",
        "choice('a=b','c:d','e\\\\f','(g)')",
        "'x y','1e3',null",
        "range(0,1,0.25)",
        "range(3)",
        "true,false",
    ],
)
def test_a_run_receives_what_hydras_own_sweeper_gives(text):
    override = parsed(f"a={text}")
    own = [parsed(f"a={one}").value() for one in override.sweep_string_iterator()]
    ours = [received(value) for value in enumerated(distribution(override))]
    assert ours == own
    assert all(same(a, b) for a, b in zip(ours, own, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1,1)", FloatDistribution(0.1, 1)),
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("interval(-1,1)", FloatDistribution(-1, 1)),
        ("interval(1,1)", FloatDistribution(1, 1)),
        ("interval(start=1,end=2)", FloatDistribution(1, 2)),
        ("int(interval(2,30))", IntDistribution(2, 30)),
        ("int(interval(5,5))", IntDistribution(5, 5)),
        ("tag(log,interval(1e-3,1))", FloatDistribution(1e-3, 1, log=True)),
        ("tag(log,int(interval(2,64)))", IntDistribution(2, 64, log=True)),
        ("int(tag(log,interval(2,64)))", IntDistribution(2, 64, log=True)),
        ("tag(log,x,interval(1,2))", FloatDistribution(1, 2, log=True)),
        ("tag(other,interval(1,2))", FloatDistribution(1, 2)),
    ],
)
def test_an_interval_includes_both_ends(text, expected):
    one = found(text)
    assert one == expected
    assert type(one.low) is type(expected.low)


def test_overrides_are_split_into_searched_and_fixed():
    space, written, fixed = space_of(
        {"model.n_topics": "int(interval(2,30))"},
        [
            "train.epochs=50",
            "train.learning_rate=tag(log,interval(1e-3,1))",
            "model=scvi_lda,gensim_lda",
            "+note='a b'",
            "~report.title",
            "hydra.sweep.dir=x",
        ],
        None,
    )
    assert list(space) == ["model.n_topics", "train.learning_rate", "model"]
    assert space["model.n_topics"] == IntDistribution(2, 30)
    assert space["model"].choices == ("scvi_lda", "gensim_lda")
    assert written == {
        "model.n_topics": "int(interval(2,30))",
        "train.learning_rate": "tag(log,interval(1e-3,1))",
        "model": "scvi_lda,gensim_lda",
    }
    assert fixed == ["train.epochs=50", "+note='a b'", "~report.title", "hydra.sweep.dir=x"]


def test_fixed_overrides_pass_unchanged():
    fixed = ["a=${b}", 'b="x, y"', "c=[1,2]", "d={e:1}", "f=", "++g=null", r"h=x\ y", "data=file"]
    assert space_of({}, [*fixed, "k=1,2"], None)[2] == fixed


@pytest.mark.parametrize("text", ["range(5,9)", "choice(3,4)", "tag(log,int(interval(2,64)))"])
def test_the_command_line_overrides_the_parameters(text):
    space, written, fixed = space_of(
        {"model.n_topics": "range(2,31)", "train.batch_size": "0,1"},
        [f"model.n_topics={text}"],
        None,
    )
    assert space["model.n_topics"] == found(text)
    assert written == {"train.batch_size": "0,1", "model.n_topics": text}
    assert fixed == []


@pytest.mark.parametrize("sign", ["", "++"])
def test_a_value_on_the_command_line_ends_the_search_of_its_setting(sign):
    space, written, fixed = space_of(
        {"model.n_topics": "range(2,31)", "train.batch_size": "0,1"},
        [f"{sign}model.n_topics=7"],
        None,
    )
    assert list(space) == list(written) == ["train.batch_size"]
    assert fixed == [f"{sign}model.n_topics=7"]


def test_a_parameter_of_one_value_is_fixed():
    space, _, fixed = space_of({"model.n_topics": "range(2,31)", "seed": "3"}, [], None)
    assert list(space) == ["model.n_topics"]
    assert fixed == ["seed=3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=range(5,2)", r"a = range\(5,2\): the range is empty"),
        ("a=range(2,2)", "the range is empty"),
        ("a=range(0,1,-0.1)", "the range is empty"),
        ("a=interval(3,2)", r"a = interval\(3,2\): its start is above its end"),
        ("a=int(interval(3,2))", "its start is above its end"),
        ("a=tag(log,interval(0,2))", r"interval\(0,2\)\): a logarithmic .* begin above 0"),
        ("a=tag(log,interval(-1,2))", "must begin above 0"),
        ("a=tag(log,int(interval(0,2)))", "must begin above 0"),
        (
            "model.n_topics=interval(2,30)",
            r"the number of topics must be a whole number; write int\(interval\(2,30\)\)",
        ),
        ("model.n_topics=tag(log,interval(2,30))", r"write int\(tag\(log,interval\(2,30\)\)\)"),
        ("a=5,10,5", r"a = 5,10,5: a choice is repeated"),
        ("a=choice(x,y,x)", "a choice is repeated"),
        ("a=x,'x'", "a choice is repeated"),
        ("a=true,True", "a choice is repeated"),
        ("a=null,null", "a choice is repeated"),
        # To Optuna these are equal, so that one would never be tried.
        ("a=1,1.0", "a choice is repeated"),
        ("a=choice(0,0.0,2)", "a choice is repeated"),
        ("a=range(0,10,0)", r"a = range\(.*step"),
        ("a=range(0,1,0.0)", r"a = range\(.*step"),
        ("a=interval(0,inf)", "a = interval"),
        ("a=interval(-inf,0)", "a = interval"),
        ("a=interval(nan,1)", "a = interval"),
        ("a=interval(0,nan)", "a = interval"),
        ("a=glob(*)", r"cannot be searched; give choice"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_fix(override, message):
    with pytest.raises(InputError, match=message):
        space_of({}, [override], None)
    with pytest.raises(InputError, match=message):
        space_of(dict([override.split("=", 1)]), ["b=1"], None)


@pytest.mark.parametrize("arguments", [[], ["model.n_topics=5", "seed=1"], ["a=[1,2]"]])
def test_nothing_to_search_is_refused(arguments):
    with pytest.raises(InputError, match=r"nothing to search.*model\.n_topics=range\(2,31\)"):
        space_of({}, arguments, None)
    with pytest.raises(InputError, match="nothing to search"):
        space_of({"model.n_topics": "range(2,31)"}, ["model.n_topics=5"], None)


words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)


def written(value):
    """Return a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


def distinct(values):
    """Return whether no two values are equal to Optuna, for which 1 = 1.0."""
    return len({(isinstance(v, (bool, str)), v) for v in values}) == len(values)


@given(st.lists(scalars, min_size=2, max_size=5).filter(distinct))
def test_choices_are_unchanged_by_storage(values):
    one = found(",".join(map(written, values)))
    stored = json_to_distribution(as_json(one))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrived = [
            received(stored.to_external_repr(stored.to_internal_repr(choice)))
            for choice in one.choices
        ]
    assert all(same(a, b) for a, b in zip(arrived, values, strict=True))


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**9), st.data())
def test_integers_are_unchanged(low, size, data):
    one = found(f"int(interval({low},{low + size}))")
    assert (one.low, one.high) == (low, low + size)
    value = data.draw(st.integers(one.low, one.high))
    assert same(received(value), value)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.data())
def test_floats_are_unchanged(a, b, data):
    low, high = sorted([a, b])
    one = found(f"interval({low},{high})")
    assert (one.low, one.high) == (low, high)
    value = data.draw(st.floats(one.low, one.high))
    assert same(received(value), value)


@given(st.floats(min_value=5e-324, allow_infinity=False))
def test_extreme_floats_are_unchanged(value):
    assert same(received(value), value)
    assert same(received(-value), -value)


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
def test_logarithmic_intervals_keep_their_ends(a, b):
    low, high = sorted([a, b])
    one = found(f"tag(log,interval({low},{high}))")
    assert (one.low, one.high, one.log) == (low, high, True)


def test_numpy_values_are_unchanged():
    """Samplers propose such values."""
    assert received(np.int64(7)) == 7
    assert math.isclose(received(np.float64(0.25)), 0.25)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("range(2,31)", (2, 30)),
        ("range(30,1,-7)", (2, 30)),
        ("int(interval(2,30))", (2, 30)),
        ("tag(log,int(interval(2,64)))", (2, 64)),
        ("choice(20,5,10)", (5, 20)),
        ("5,10", (5, 10)),
        ("'5','10'", (5, 10)),
        ("choice('5',10)", (5, 10)),
        ("choice(7)", (7, 7)),
    ],
)
def test_bounds_are_the_least_and_greatest_number_of_topics(text, bounds):
    assert bounds_of(found(text, "model.n_topics")) == bounds


def test_a_setting_that_is_not_searched_has_no_bounds():
    assert bounds_of(None) is None


@pytest.mark.parametrize(
    "setting", ["seed=0,1", "data=a,b", "preprocess.n_variable_genes=choice(500,2000)"]
)
def test_a_setting_that_changes_cells_or_genes_is_refused(setting):
    with pytest.raises(InputError, match="perplexities of different cells or genes"):
        space_of({"model.n_topics": "range(2,31)"}, [setting], None)
