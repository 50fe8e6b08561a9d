"""Which topics change with a condition: regressions with the sample as the unit.

The proportions of the topics are averaged over the cells of each sample, turned to log-ratios and
regressed on a design. Shapes: N cells, S samples, K topics, P columns of the design, A
arrangements of the samples.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

LEAST_PROPORTION = 1e-3
"""Mean proportions of a sample below this one count as this one, so that their logarithm is finite:
topics of other tools can be exactly 0 in all cells of a sample."""
MIN_CELLS = 20
"""Samples with fewer cells are left out by default."""
N_ARRANGEMENTS = 10_000
"""All arrangements of the samples are tested if there are no more than this; else this number, of
which one is the observed one."""
CONFIDENCE = 0.95
"""Coverage of the intervals of effects."""
FUNCTIONS = ("C", "center", "log", "log10", "log2", "scale", "sqrt")
"""Functions of one column that a formula may use; formulaic would run any Python."""
TINY = 1e-12
"""Smallest variance, so that a topic without any variation has a finite weight."""
CHUNK = 2**22
"""Largest number of entries of the array that holds permuted designs: 32 MiB."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a study, in the order of their names.

    Attributes
    ----------
    table
        The columns that the formula uses, one row for each sample.
    size_S
        Number of cells of each sample.
    code_N
        Row of the sample of each cell, -1 for cells of a sample that is left out.
    left_out
        Number of cells of each sample that is left out because it has too few.
    """

    table: pd.DataFrame
    size_S: np.ndarray
    code_N: np.ndarray
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Design:
    """The columns of a linear model, by the terms of a formula.

    Attributes
    ----------
    x_SP
        Values of the columns, shape (S, P), of full rank.
    columns
        Names of the columns, such as ``condition[T.treated]``.
    terms
        Columns of each term, without the intercept.
    factors
        Factors of each term: ``age:condition`` has two.
    """

    x_SP: np.ndarray
    columns: Sequence[str]
    terms: Mapping[str, Sequence[int]]
    factors: Mapping[str, frozenset[str]]

    @property
    def df_residual(self) -> int:
        """Return the number of samples that are left to estimate the variance."""
        n_samples, n_columns = self.x_SP.shape
        return int(n_samples - n_columns)

    def ordered(self, term: str) -> tuple[list[int], list[int]]:
        """Return the columns with those of a term after the columns of the reduced model.

        The reduced model has all terms that do not contain the term: a main effect is tested
        without its interactions (type II). The columns of the latter come last.

        Returns
        -------
        The order of the columns, and the positions of the term's columns in it.
        """
        containing = [
            column
            for other, columns in self.terms.items()
            if other != term and self.factors[other] > self.factors[term]
            for column in columns
        ]
        own = list(self.terms[term])
        reduced = [c for c in range(len(self.columns)) if c not in own and c not in containing]
        return reduced + own + containing, list(range(len(reduced), len(reduced) + len(own)))

    def level(self, column: int) -> str:
        """Return the level that a column compares with the reference; empty for a number."""
        return ":".join(re.findall(r"\[(?:T\.)?([^\]]*)\]", self.columns[column]))


@dataclass(frozen=True, slots=True)
class TermEffects:
    """What a figure shows of a term, all in log2 units.

    Attributes
    ----------
    value_SK
        Log-ratios of the samples, adjusted to the mean of the other terms.
    position_S
        Level of each sample, 0 for the reference; or its number.
    levels
        Names of the levels, the reference first; empty for a number.
    base_K
        Estimate for the reference, or for the number 0.
    effect_LK, low_LK, high_LK
        Effects of the other levels, or of one unit, with their intervals.
    q_K
        q of the term.
    """

    value_SK: np.ndarray
    position_S: np.ndarray
    levels: Sequence[str]
    base_K: np.ndarray
    effect_LK: np.ndarray
    low_LK: np.ndarray
    high_LK: np.ndarray
    q_K: np.ndarray


@dataclass(frozen=True, slots=True)
class Conditions:
    """The result of `compare_conditions`.

    Attributes
    ----------
    formula
        The formula.
    table
        One row for each topic, term and level: ``topic``, ``term``, ``level``; ``effect``, the
        difference in log2 ratio to the reference level, or for one unit of a number, with the
        bounds ``low`` and ``high`` of its 95 % confidence interval; ``statistic`` (F), ``df`` and
        ``df_residual``, ``p``, ``p_permutation`` and ``q`` of the term, the same for all its
        levels; ``n_samples``.
    samples
        The columns that the formula uses, one row for each sample.
    size_S
        Number of cells of each sample.
    ratios
        Log-ratios of the samples.
    left_out
        Number of cells of each sample that is left out because it has too few.
    smallest_p
        The smallest ``p_permutation`` that the arrangements of the samples allow, by term.
    """

    formula: str
    table: pd.DataFrame
    samples: pd.DataFrame
    size_S: np.ndarray
    ratios: LogRatios
    left_out: Mapping[str, int]
    smallest_p: Mapping[str, float]

    def stored(self) -> dict[str, Any]:
        """Return all as an entry of ``uns``, from which `restored` makes the same again."""
        return {
            "formula": self.formula,
            "table": self.table.set_index("topic"),
            "samples": self.samples,
            "n_cells": self.size_S,
            "means": self.ratios.mean_SK,
            "log_ratios": self.ratios.y_SK,
            "errors": self.ratios.error_SK,
            "left_out": json.dumps(self.left_out),
            "smallest_p": json.dumps(self.smallest_p),
        }

    @classmethod
    def restored(cls, entry: Mapping[str, Any]) -> Self:
        """Return the result from an entry of ``uns``."""
        return cls(
            formula=str(entry["formula"]),
            table=entry["table"].reset_index(names="topic"),
            samples=entry["samples"],
            size_S=np.asarray(entry["n_cells"]),
            ratios=LogRatios(entry["means"], entry["log_ratios"], entry["errors"]),
            left_out=json.loads(entry["left_out"]),
            smallest_p=json.loads(entry["smallest_p"]),
        )

    def drawable(self) -> list[str]:
        """Return the terms of which `of_term` can make a figure: single columns of obs."""
        design = design_of(self.formula, self.samples)
        return [
            term
            for term, columns in design.terms.items()
            if len(design.factors[term]) == 1
            and (len(columns) == 1 or all(design.level(column) for column in columns))
        ]

    def of_term(self, term: str) -> TermEffects:
        """Return what a figure shows of a term."""
        design = design_of(self.formula, self.samples)
        y_SK, x_SP = self.ratios.y_SK, design.x_SP
        weight_SK = weights(y_SK, self.ratios.error_SK, x_SP)
        fitted = estimate(y_SK, weight_SK, design)
        own = list(design.terms[term])
        levels = [design.level(column) for column in own]
        rest = [column for column in range(x_SP.shape[1]) if column not in own]
        mean_P, coefficient_PK = x_SP[:, rest].mean(axis=0), fitted.coefficient_PK[rest]
        value_SK = y_SK - (x_SP[:, rest] - mean_P) @ coefficient_PK
        if any(levels):
            position_S = x_SP[:, own] @ np.arange(1, len(own) + 1)
            (column,) = _terms(self.formula)[term].values()
            known = self.samples[column].astype("category").cat.categories.astype(str)
            names = [*(name for name in known if name not in levels), *levels]
        else:
            position_S, names = x_SP[:, own[0]], []
        of_topics = self.table[self.table["term"] == term].drop_duplicates("topic")
        return TermEffects(
            value_SK,
            position_S,
            names,
            mean_P @ coefficient_PK,
            fitted.coefficient_PK[own],
            fitted.low_PK[own],
            fitted.high_PK[own],
            of_topics["q"].to_numpy(),
        )


def compare_conditions(
    theta_NK: np.ndarray,
    obs: pd.DataFrame,
    formula: str,
    sample_key: str,
    *,
    min_cells: int = MIN_CELLS,
    seed: int = 0,
) -> Conditions:
    r"""Test which topics change with the terms of a formula, with the sample as the unit.

    The mean proportions :math:`\bar\theta_{sk}` of the cells of a sample give centred log-ratios
    :math:`y_{sk} = \log_2 \bar\theta_{sk} - \frac1K \sum_j \log_2 \bar\theta_{sj}` (Aitchison
    1986). Each topic has a linear model of y with the columns of the formula, and each term an F
    test against the model without it. Cells of one sample are not independent, so they are not
    replicates: the number of samples decides how certain a difference is. A sample has as weight
    the inverse of its variance, that between samples plus that of the mean of its cells.

    ``p`` is that of the F distribution. ``p_permutation`` permutes the residuals of the model
    without the term, without weights (Freedman & Lane 1983): all distinct arrangements of the
    samples if there are at most 10,000, else 9,999 random ones. It assumes no distribution, but
    that samples could be exchanged if there were no effect, also in their numbers of cells. With
    few samples it cannot be small: with 3 + 3 samples it is at least 0.1. ``q`` is computed from
    ``p``, over the topics of a term (Benjamini & Hochberg 1995).

    A log-ratio compares a topic with the average topic. If one of K topics rises by d, the effects
    of all others fall by d / K.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K). They must come from a model that does not know
        the terms of the formula.
    obs
        Annotation of the cells, N rows.
    formula
        Wilkinson formula of columns of `obs` that are constant within a sample, such as
        ``condition + age``.
    sample_key
        Column of `obs` with the sample of each cell.
    min_cells
        Samples with fewer cells are left out.
    seed
        Seed of random permutations.

    Raises
    ------
    InputError
        The formula does not match `obs`, or there are too few samples.
    """
    samples = samples_of(obs, formula, sample_key, min_cells)
    design = design_of(formula, samples.table)
    ratios = log_ratios(theta_NK, samples.code_N)
    table, smallest = regress(ratios.y_SK, ratios.error_SK, design, seed)
    return Conditions(
        formula, table, samples.table, samples.size_S, ratios, samples.left_out, smallest
    )


def samples_of(
    obs: pd.DataFrame, formula: str, sample_key: str, min_cells: int = MIN_CELLS
) -> Samples:
    """Return the samples of the cells, with the columns that a formula uses.

    Text and true-or-false values become categories; the first level is the reference.

    Raises
    ------
    InputError
        A column is missing, has missing values or varies within a sample; or the formula is
        invalid.
    """
    import pandas as pd

    names = columns_of(formula)
    for name in (sample_key, *names):
        if name not in obs:
            found = ", ".join(map(str, obs.columns)) or "none"
            raise InputError(f"obs has no column {name!r} (columns: {found})")
    key = obs[sample_key]
    if key.isna().any():
        raise InputError(
            f"{int(key.isna().sum())} cells have no sample in obs[{sample_key!r}]; name their "
            "sample, or remove them"
        )
    sample_N = key.astype(str)
    sizes = sample_N.value_counts().sort_index()
    kept = sizes[sizes >= min_cells].index
    table = pd.DataFrame(index=kept.rename("sample"))
    for name in names:
        of_kept = obs.loc[sample_N.isin(kept).to_numpy(), name]
        if of_kept.isna().any():
            raise InputError(
                f"{int(of_kept.isna().sum())} cells have no value in obs[{name!r}]; fill it in, or "
                "remove their samples"
            )
        by_sample = of_kept.groupby(sample_N[sample_N.isin(kept)].to_numpy())
        several = by_sample.nunique()
        if (several > 1).any():
            sample = several.index[several > 1][0]
            found = ", ".join(map(str, by_sample.get_group(sample).unique()[:3]))
            raise InputError(
                f"obs[{name!r}] has several values in sample {sample!r} ({found}); a condition "
                "must be the same for all cells of a sample"
            )
        table[name] = _levels_or_numbers(by_sample.first().reindex(kept))
    code_N = pd.Index(kept).get_indexer(sample_N)
    left_out = {str(name): int(n) for name, n in sizes[sizes < min_cells].items()}
    return Samples(table, sizes[kept].to_numpy(), code_N, left_out)


def warn_of_small_samples(left_out: Mapping[str, int], n_kept: int, min_cells: int) -> None:
    """Warn of the samples that are left out."""
    if left_out:
        found = ", ".join(f"{name} ({n})" for name, n in left_out.items())
        warnings.warn(
            f"{len(left_out)} of {n_kept + len(left_out)} samples have fewer than {min_cells} "
            f"cells and are left out of the test of conditions: {found}",
            stacklevel=2,
        )


def columns_of(formula: str) -> list[str]:
    """Return the names of the columns that a formula uses, in its order.

    Raises
    ------
    InputError
        The formula cannot be read, or it has no term.
    """
    return list(dict.fromkeys(name for term in _terms(formula).values() for name in term.values()))


def _terms(formula: str) -> dict[str, dict[str, str]]:
    """Return the terms of a formula: for each, its factors and the column of each factor."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        terms = list(Formula(formula))
        parsed = {
            str(term): {factor.expr: factor.eval_method.value for factor in term.factors}
            for term in terms
        }
    except (FormulaicError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(
            f"{formula!r} is not a formula; write one as in 'condition + age', with the terms only"
        ) from error
    if "1" not in parsed:
        raise InputError(f"{formula!r} has no intercept; leave out 0 and -1")
    del parsed["1"]
    if not parsed:
        raise InputError(f"{formula!r} has no term; name a column of obs")
    return {
        term: {factor: _column(factor, method) for factor, method in factors.items()}
        for term, factors in parsed.items()
    }


def _column(factor: str, method: str) -> str:
    """Return the column that a factor of a formula uses."""
    if method == "lookup":
        return factor
    found = re.fullmatch(r"(\w+)\((?:([^\W\d][\w.]*)|`([^`]+)`)\)", factor)
    if found is None or found[1] not in FUNCTIONS:
        raise InputError(
            f"{factor!r} is no column of obs and no function of one (functions: "
            f"{', '.join(FUNCTIONS)}; a name with other characters than letters, digits and _ is "
            "written between backticks)"
        )
    return found[2] or found[3]


def _levels_or_numbers(column: pd.Series) -> pd.Series:
    """Return a column of samples as categories with text as names, or as numbers."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.cat.remove_unused_categories()
        return column.cat.rename_categories([str(name) for name in column.cat.categories])
    if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
        return column.astype(float)
    return column.astype(str).astype("category")


def cell_design(formula: str, obs: pd.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the covariates of cells by a formula: names of D columns, and values, (N, D).

    Columns have the mean 0 over the cells; those of a number also the standard deviation 1. There
    is no intercept.

    Parameters
    ----------
    formula
        Wilkinson formula of columns of `obs`.
    obs
        Annotation of the cells, N rows.

    Raises
    ------
    InputError
        The formula is invalid, a column is missing or has missing values, or terms determine each
        other.
    """
    import pandas as pd

    names = columns_of(formula)
    for name in names:
        if name not in obs:
            raise InputError(
                f"obs has no column {name!r}; found: {', '.join(map(str, obs.columns))}"
            )
        if obs[name].isna().any():
            raise InputError(
                f"obs[{name!r}] has no value for {int(obs[name].isna().sum())} of {len(obs)} "
                "cells; fill it, or remove these cells"
            )
    table = pd.DataFrame({name: _levels_or_numbers(obs[name]) for name in names})
    design = design_of(formula, table.reset_index(drop=True), "cells")
    kept = sorted(c for columns in design.terms.values() for c in columns)
    z_ND = design.x_SP[:, kept]
    z_ND = z_ND - z_ND.mean(0)
    numbers = np.array([not design.level(c) for c in kept])
    z_ND[:, numbers] /= z_ND[:, numbers].std(0)
    return tuple(design.columns[c] for c in kept), z_ND.astype(np.float32)


def design_of(formula: str, table: pd.DataFrame, rows: str = "samples with enough cells") -> Design:
    """Return the design of a formula for the rows of a table.

    Raises
    ------
    InputError
        A term has one level, terms determine each other, or no residual degree of freedom is left.
    """
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    terms = _terms(formula)
    for name in columns_of(formula):
        if table[name].nunique() < 2:
            value = f"the same value ({table[name].iloc[0]})" if len(table) else "no value"
            raise InputError(
                f"obs[{name!r}] has {value} in all {len(table)} {rows}; leave it out of the formula"
            )
    try:
        matrix = Formula(formula).get_model_matrix(table, context={}, na_action="raise")
    except (FormulaicError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the terms of {formula!r} cannot be computed: {reason}") from error
    x_SP = np.asarray(matrix, dtype=float)
    if not np.isfinite(x_SP).all():
        raise InputError(f"a term of {formula!r} is not finite, such as the logarithm of 0")
    n_samples, n_columns = x_SP.shape
    if n_samples - n_columns < 1:
        raise InputError(
            f"{n_samples} {rows} are too few for the {n_columns} coefficients "
            f"of {formula!r}; at least {n_columns + 1} are needed: use fewer terms"
        )
    if np.linalg.matrix_rank(x_SP / np.linalg.norm(x_SP, axis=0)) < n_columns:
        raise InputError(
            f"the terms of {formula!r} determine each other in these {rows} (as if all treated "
            "samples were of one batch), so their effects cannot be told apart; use fewer terms"
        )
    indices = matrix.model_spec.term_indices
    columns = {str(term): [int(c) for c in of_term] for term, of_term in indices.items()}
    return Design(
        x_SP,
        [str(name) for name in matrix.columns],
        {term: columns[term] for term in terms},
        {term: frozenset(factors) for term, factors in terms.items()},
    )


@dataclass(frozen=True, slots=True)
class LogRatios:
    """Centred log2 ratios of the mean proportions of samples.

    Attributes
    ----------
    mean_SK
        Mean proportions of the cells.
    y_SK
        Their centred log2 ratios, corrected for the bias of the logarithm of a mean.
    error_SK
        Variance of `y_SK` that is due to the number of cells.
    """

    mean_SK: np.ndarray
    y_SK: np.ndarray
    error_SK: np.ndarray


def log_ratios(theta_NK: np.ndarray, code_N: np.ndarray) -> LogRatios:
    """Return the log-ratios of the samples of cells; cells with code -1 are left out.

    The logarithm of the mean of n cells is too low by half its variance (delta method), which
    matters if samples with few cells are compared with samples with many.
    """
    means, logs, errors = [], [], []
    for sample in range(code_N.max() + 1):
        theta_CK = np.asarray(theta_NK[code_N == sample], dtype=float)
        mean_K = theta_CK.mean(axis=0)
        absent_K = mean_K < LEAST_PROPORTION
        relative_CK = theta_CK / np.maximum(mean_K, LEAST_PROPORTION)
        bias_K = np.where(absent_K, 0, relative_CK.var(axis=0) / len(theta_CK) / 2)
        centred_CK = relative_CK - relative_CK.mean(axis=1, keepdims=True)
        means.append(mean_K)
        logs.append(np.log(np.maximum(mean_K, LEAST_PROPORTION)) + bias_K)
        # One nat is the largest standard error that the logarithm of a mean can have here.
        errors.append(np.where(absent_K, 1, centred_CK.var(axis=0) / len(theta_CK)))
    log_SK = np.stack(logs)
    y_SK = (log_SK - log_SK.mean(axis=1, keepdims=True)) / math.log(2)
    return LogRatios(np.stack(means), y_SK, np.stack(errors) / math.log(2) ** 2)


def weights(y_SK: np.ndarray, error_SK: np.ndarray, x_SP: np.ndarray) -> np.ndarray:
    """Return the weight of each sample for each topic: the inverse of its variance, shape (S, K).

    The variance is `error_SK` plus that between samples, which has the value for which the weighted
    residual sum of squares is its expectation, the residual degrees of freedom, or 0 if this sum is
    always smaller (Paule & Mandel 1982). Without errors, all weights of a topic are the same.
    """
    df = x_SP.shape[0] - x_SP.shape[1]
    # With this variance, the sum cannot be greater than its expectation.
    high_K = _rss(y_SK, np.ones_like(y_SK), x_SP) / df
    low_K = np.zeros_like(high_K)
    for _ in range(60):
        middle_K = (low_K + high_K) / 2
        larger_K = _rss(y_SK, 1 / (middle_K + error_SK + TINY), x_SP) > df
        low_K, high_K = np.where(larger_K, middle_K, low_K), np.where(larger_K, high_K, middle_K)
    weight_SK: np.ndarray = 1 / (high_K + error_SK + TINY)
    return weight_SK


def _rss(y_SK: np.ndarray, weight_SK: np.ndarray, x_SP: np.ndarray) -> np.ndarray:
    """Return the weighted residual sum of squares of each topic."""
    q_KSP, _, y_KS = _whitened(y_SK, weight_SK, x_SP)
    fitted_KS = (q_KSP @ (np.swapaxes(q_KSP, 1, 2) @ y_KS[..., None]))[..., 0]
    rss_K: np.ndarray = np.square(y_KS - fitted_KS).sum(axis=1)
    return rss_K


def _whitened(
    y_SK: np.ndarray, weight_SK: np.ndarray, x_SP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the QR decomposition of the weighted design of each topic, and the weighted values."""
    root_KS = np.sqrt(weight_SK.T)
    q_KSP, r_KPP = np.linalg.qr(root_KS[..., None] * x_SP)
    return q_KSP, r_KPP, root_KS * y_SK.T


@dataclass(frozen=True, slots=True)
class Estimate:
    """Coefficients of the design for each topic, with confidence intervals, shape (P, K)."""

    coefficient_PK: np.ndarray
    low_PK: np.ndarray
    high_PK: np.ndarray


def estimate(y_SK: np.ndarray, weight_SK: np.ndarray, design: Design) -> Estimate:
    """Return the weighted least-squares fit of each topic; weights are relative."""
    from scipy.stats import t

    q_KSP, r_KPP, y_KS = _whitened(y_SK, weight_SK, design.x_SP)
    inverse_KPP = np.linalg.inv(r_KPP)
    beta_KP = (inverse_KPP @ (np.swapaxes(q_KSP, 1, 2) @ y_KS[..., None]))[..., 0]
    variance_K = _rss(y_SK, weight_SK, design.x_SP) / design.df_residual
    se_KP = np.sqrt(np.square(inverse_KPP).sum(axis=2) * variance_K[:, None])
    margin_KP = t.ppf((1 + CONFIDENCE) / 2, design.df_residual) * se_KP
    return Estimate(beta_KP.T, (beta_KP - margin_KP).T, (beta_KP + margin_KP).T)


def f_statistic(y_SK: np.ndarray, weight_SK: np.ndarray, design: Design, term: str) -> np.ndarray:
    """Return the F statistic of a term for each topic; weights are relative."""
    order, own = design.ordered(term)
    q_KSP, _, y_KS = _whitened(y_SK, weight_SK, design.x_SP[:, order])
    projected_KT = (np.swapaxes(q_KSP[..., own], 1, 2) @ y_KS[..., None])[..., 0]
    variance_K = _rss(y_SK, weight_SK, design.x_SP) / design.df_residual
    statistic_K: np.ndarray = np.square(projected_KT).mean(axis=1) / np.maximum(variance_K, TINY)
    return statistic_K


def regress(
    y_SK: np.ndarray, error_SK: np.ndarray, design: Design, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the table of `Conditions`, and the smallest possible permutation p by term.

    Parameters
    ----------
    y_SK, error_SK
        Log-ratios of the samples, and their variances within samples.
    design
        Design of the samples.
    seed
        Seed of random arrangements.
    """
    import pandas as pd
    from scipy.stats import f as f_distribution
    from scipy.stats import false_discovery_control

    weight_SK = weights(y_SK, error_SK, design.x_SP)
    fitted = estimate(y_SK, weight_SK, design)
    arrangement_AS, is_complete = arrangements(design.x_SP, seed)
    n_samples, n_topics = y_SK.shape
    rows, smallest = [], {}
    for term, columns in design.terms.items():
        f_K = f_statistic(y_SK, weight_SK, design, term)
        p_K = f_distribution.sf(f_K, len(columns), design.df_residual)
        permuted_K, smallest[term] = permutation_p(
            y_SK, design, term, arrangement_AS, is_complete=is_complete
        )
        of_term = {
            "statistic": f_K,
            "df": len(columns),
            "df_residual": design.df_residual,
            "p": p_K,
            "p_permutation": permuted_K,
            "q": false_discovery_control(p_K),
            "n_samples": n_samples,
        }
        levels = []
        for column in columns:
            of_level = {
                "topic": [f"topic_{topic}" for topic in range(n_topics)],
                "term": term,
                "level": design.level(column),
                "effect": fitted.coefficient_PK[column],
                "low": fitted.low_PK[column],
                "high": fitted.high_PK[column],
            }
            levels.append(pd.DataFrame(of_level | of_term))
        rows.append(pd.concat(levels).sort_index(kind="stable"))  # the levels of a topic together
    return pd.concat(rows, ignore_index=True), smallest


def permutation_p(
    y_SK: np.ndarray,
    design: Design,
    term: str,
    arrangement_AS: np.ndarray,
    *,
    is_complete: bool,
) -> tuple[np.ndarray, float]:
    """Return p of a term for each topic from permuted residuals, and the smallest possible p.

    Parameters
    ----------
    y_SK
        Log-ratios of the samples.
    design
        Design of the samples.
    term
        The term, which is not in the model whose residuals are permuted.
    arrangement_AS
        Sample whose row of the design each sample gets, from `arrangements`.
    is_complete
        Whether these are all arrangements; otherwise the observed one is added.
    """
    order, own = design.ordered(term)
    q_SP, _ = np.linalg.qr(design.x_SP[:, order])
    reduced_SP = q_SP[:, : own[0]]
    residual_SK = y_SK - reduced_SP @ (reduced_SP.T @ y_SK)
    total_K = np.square(residual_SK).sum(axis=0)

    def statistics(arrangement_AS: np.ndarray) -> np.ndarray:
        squared_APK = np.square(np.swapaxes(q_SP[arrangement_AS], 1, 2) @ residual_SK)
        rss_AK = total_K - squared_APK.sum(axis=1)
        explained_AK = squared_APK[:, own].mean(axis=1)
        f_AK: np.ndarray = explained_AK / (np.maximum(rss_AK, TINY) / design.df_residual)
        return f_AK

    f_K = statistics(np.arange(len(y_SK))[None])[0]
    larger_K, equal_K = np.zeros(len(f_K)), np.zeros(len(f_K))
    size = max(1, CHUNK // q_SP.size)
    for start in range(0, len(arrangement_AS), size):
        f_AK = statistics(arrangement_AS[start : start + size])
        equal_AK = np.isclose(f_AK, f_K, rtol=1e-9, atol=1e-12)
        larger_K += ((f_AK > f_K) & ~equal_AK).sum(axis=0)
        equal_K += equal_AK.sum(axis=0)
    n_arrangements = len(arrangement_AS)
    if not is_complete:
        equal_K, n_arrangements = equal_K + 1, n_arrangements + 1
    return (larger_K + equal_K) / n_arrangements, float(equal_K.min() / n_arrangements)


def arrangements(x_SP: np.ndarray, seed: int) -> tuple[np.ndarray, bool]:
    """Return arrangements of the rows of a design, shape (A, S), and whether these are all.

    Samples with the same row are exchangeable, so only arrangements that differ in rows count.
    """
    _, first, code_S = np.unique(x_SP, axis=0, return_index=True, return_inverse=True)
    code_S = code_S.ravel()
    sizes = np.bincount(code_S)
    n_samples = len(code_S)
    n_distinct = math.factorial(n_samples) // math.prod(math.factorial(int(n)) for n in sizes)
    if n_distinct <= N_ARRANGEMENTS:
        distinct = np.array(list(_distinct(sizes.tolist(), n_samples)))
        return first[distinct], True
    rng = np.random.default_rng(seed)
    rows_AS = np.tile(np.arange(n_samples), (N_ARRANGEMENTS - 1, 1))
    return rng.permuted(rows_AS, axis=1), False


def _distinct(sizes: list[int], n_left: int) -> Iterator[list[int]]:
    """Yield all distinct sequences in which code c occurs ``sizes[c]`` times."""
    if n_left == 0:
        yield []
        return
    for code, size in enumerate(sizes):
        if size:
            sizes[code] -= 1
            for rest in _distinct(sizes, n_left - 1):
                yield [code, *rest]
            sizes[code] += 1
