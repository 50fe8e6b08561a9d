"""The training loop: epochs of steps, validation, early stop.

`train` reads top to bottom. Batches, noise and starts come from the seed alone, and the global
random state is left as it was found. Needs torch, pyro, numpy and scipy alone.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyro
import scipy.sparse as sp
import torch
from torch import Tensor

from topicell.config import (
    AnnealingShape,
    EarlyStoppingConfig,
    InputError,
    ModelConfig,
    TrainConfig,
)
from topicell.evaluation.perplexity import perplexity, thin
from topicell.model.counts import Counts
from topicell.model.engines import (
    Optimizer,
    check_precision,
    cpu_threads,
    matrix_precision,
    resolve_device,
)
from topicell.model.estimates import chunks, elbo_terms, mean_beta, mean_theta
from topicell.model.minibatches import Batch, shuffled
from topicell.model.posterior import AmortizedFit
from topicell.model.program import TopicProgram
from topicell.model.schedules import annealing_weight, learning_rate
from topicell.model.starts import initial_topics

STEPS = 250
"""Optimisation steps that the default number of epochs aims for."""
EPOCHS = (3, 200)
"""Fewest and most epochs by default."""
HELD_NONZEROS = 10_000_000
"""Validation cells of so few non-zeros are held in the form that is computed with."""
EpochMetrics = dict[str, float]


class NonFiniteError(ArithmeticError):
    """A term of the ELBO is no longer finite: the message names the step and the term."""


def train(
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
    start: AmortizedFit | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> AmortizedFit:
    """Fit R replicates of amortized LDA.

    Parameters
    ----------
    counts
        Training cells.
    valid
        Validation cells with the same genes, measured after every epoch, or None.
    model, config
        The model's and the training's settings.
    seed
        Decides starts, mini-batches and noise.
    start
        A fit to go on from, with the same genes and settings of the model: its weights and its
        history are kept, the warm-up is left out, and the rate runs through a new cycle.
    on_epoch
        Called after each epoch with its metrics, named as in the tracker.

    Returns
    -------
    The fit; the replicate shown is the one of the highest ELBO on validation cells (on training
    cells where there are none), and its topics are ordered by mean proportion, largest first.

    Raises
    ------
    InputError
        More topics than cells, or a prior whose length is not the number of genes.
    NonFiniteError
        A term became NaN or infinite.
    """
    check_sizes(counts, model)
    device = resolve_device(config.device)
    check_precision(config.precision, device)
    n_epochs = config.epochs or default_epochs(counts.n_cells, config.batch_size)
    n_batches = math.ceil(counts.n_cells / config.batch_size)
    n_steps = min(n_epochs * n_batches, config.max_steps or math.inf)
    length = n_steps / n_batches
    # A fit that goes on is past its warm-up.
    annealing = (
        config.kl_annealing
        if start is None
        else replace(config.kl_annealing, shape=AnnealingShape.constant)
    )
    if annealing_weight(length, length, annealing) < annealing.max_weight:
        warnings.warn(
            f"train.kl_annealing: the warm-up is longer than the {length:g} epochs of training, "
            "so the KL weight never reaches its maximum; shorten warmup_epochs, or use "
            "warmup_share",
            stacklevel=2,
        )
    seeds = np.random.default_rng(seed)

    with (
        _own_randomness(seed, device),
        cpu_threads(config.threads),
        matrix_precision(config.precision, device),
        progress_bar(n_epochs, shown=config.progress) as bar,
    ):
        program = TopicProgram(counts.n_genes, config.n_replicates, model).to(device)
        if start is None:
            with torch.no_grad():
                program.topic_mean.copy_(
                    initial_topics(counts.x, program, model.init, model.n_starts, seed).to(device)
                )
            program.encoder.library_size.fill_(float(np.median(np.asarray(counts.x.sum(1)))))
        else:
            _require_same_shape(start, program)
            program.load_state_dict(start.program.state_dict())
        optimizer = Optimizer(program, config, counts.x)
        validation = (
            Validation.of(program, valid, seed) if valid is not None and valid.n_cells else None
        )
        best = Best()
        history: list[EpochMetrics] = [*start.history] if start is not None else []
        first_epoch = len(history)
        step = 0

        for epoch in range(n_epochs):
            started = time.perf_counter()
            program.train()
            for batch in optimizer.batches(shuffled(counts.n_cells, n_batches, seeds)):
                kl_weight = annealing_weight(step / n_batches, length, annealing)
                rate = learning_rate(step / n_steps, config)
                optimizer.step(batch, kl_weight=kl_weight, learning_rate=rate)
                step += 1
                if step == n_steps:
                    break

            n_seen = optimizer.n_seen
            means = optimizer.means()
            require_finite(means, program, step, epoch)
            metrics: EpochMetrics = {"epoch": first_epoch + epoch}
            for name, value_R in means.items():
                metrics |= summarize(f"train/{name}", value_R)
            metrics["train/kl_weight"] = kl_weight
            metrics["train/learning_rate"] = rate
            metrics["speed/cells_per_second"] = (
                n_seen * config.n_replicates / (time.perf_counter() - started)
            )
            if validation is not None:
                elbo_R, perplexity_R = validation.measure(program, counts.n_cells)
                metrics |= summarize("valid/elbo", elbo_R)
                metrics |= summarize("valid/perplexity", perplexity_R)
            history.append(metrics)
            if on_epoch is not None:
                on_epoch(metrics)
            bar.set_postfix_str(describe(metrics), refresh=False)
            bar.update()

            if validation is not None and config.early_stopping.enabled:
                # Below the maximal KL weight another objective is trained: such epochs neither
                # gain nor count.
                if kl_weight >= annealing.max_weight:
                    best.consider(metrics["valid/elbo"], config.early_stopping, program)
                if best.n_waited >= config.early_stopping.patience:
                    program.load_state_dict(best.state)
                    break
            if step == n_steps:
                break

        program.eval()
        return AmortizedFit.of(program, counts, valid, model, seed=seed, history=history)


def progress_bar(n_epochs: int, *, shown: bool) -> Any:
    """A bar of epochs with the time left; on a terminal only, so that logs stay clean."""
    from tqdm.auto import tqdm

    return tqdm(
        total=n_epochs,
        desc="fit",
        unit="epoch",
        disable=None if shown else True,
        bar_format="{desc} {n_fmt}/{total_fmt} {bar:12} {remaining} left{postfix}",
    )


def describe(metrics: EpochMetrics) -> str:
    """What the bar says of an epoch: the true ELBO, whatever the KL weight."""
    words = [f"ELBO {metrics['train/elbo']:.1f} nats/cell"]
    if "valid/perplexity" in metrics:
        words.append(f"valid. perplexity {metrics['valid/perplexity']:.2f}")
    return ", ".join([*words, f"KL weight {metrics['train/kl_weight']:.2f}"])


def check_sizes(counts: Counts, model: ModelConfig) -> None:
    """Refuse what cannot be fitted: more topics than cells, a prior of the wrong length."""
    if model.n_topics > counts.n_cells:
        raise InputError(
            f"model.n_topics = {model.n_topics}: more topics than the {counts.n_cells} training "
            "cells; ask for fewer topics"
        )
    if counts.n_genes < 2:
        raise InputError("only 1 gene is left to model, and topics need 2 at least")
    prior = model.topic_gene_prior
    if prior is not None and not isinstance(prior, (int, float)) and len(prior) != counts.n_genes:
        raise InputError(
            f"model.topic_gene_prior has {len(prior)} numbers for {counts.n_genes} genes; give one "
            "a gene, or one for all"
        )


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Epochs that make about `STEPS` steps, within `EPOCHS`."""
    fewest, most = EPOCHS
    return min(max(round(STEPS / math.ceil(n_cells / batch_size)), fewest), most)


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out cells with their document-completion halves, and the noise that all epochs share."""

    cells: Callable[[], Iterable[Batch]]
    observed: Callable[[], Iterable[Batch]]
    completed: sp.csr_matrix
    seed: int

    @classmethod
    def of(cls, program: TopicProgram, valid: Counts, seed: int) -> Validation:
        """Thin the cells once, so that epochs differ by the model alone."""
        observed, completed = thin(valid.x, seed)

        def ready(x: sp.csr_matrix) -> Callable[[], Iterable[Batch]]:
            if x.nnz > HELD_NONZEROS:
                return lambda: chunks(program, x)
            held = list(chunks(program, x))
            return lambda: held

        return cls(ready(valid.x), ready(observed), completed, seed)

    def measure(self, program: TopicProgram, n_train: int) -> tuple[np.ndarray, np.ndarray]:
        """ELBO (nats per cell) and amortized perplexity of each replicate, shapes (R,)."""
        program.eval()
        terms = elbo_terms(program, self.cells(), n_samples=2, seed=self.seed)
        elbo_R = terms.per_cell(n_train)
        theta_RNK = mean_theta(program, self.observed(), n_samples=16, seed=self.seed)
        beta_RKG = mean_beta(program, n_samples=16, seed=self.seed)
        perplexity_R = np.array(
            [
                perplexity(self.completed, theta, beta)
                for theta, beta in zip(theta_RNK, beta_RKG, strict=True)
            ]
        )
        return elbo_R, perplexity_R


@dataclass(slots=True)
class Best:
    """The best epoch so far: its weights, and how many epochs came after it without a gain."""

    score: float = -math.inf
    n_waited: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, score: float, config: EarlyStoppingConfig, program: TopicProgram) -> None:
        """Keep this epoch if it gains at least ``config.min_delta``; else it was waited for."""
        self.n_waited += 1
        if score >= self.score + config.min_delta:
            self.score, self.n_waited, self.state = score, 0, deepcopy(program.state_dict())


def summarize(name: str, value_R: np.ndarray) -> EpochMetrics:
    """Mean over replicates, and the standard deviation beside it when there are several."""
    summary = {name: float(np.mean(value_R))}
    if len(value_R) > 1:
        summary[f"{name}_sd"] = float(np.std(value_R, ddof=1))
    return summary


def _require_same_shape(start: AmortizedFit, program: TopicProgram) -> None:
    for name in ("n_replicates", "n_topics", "n_genes"):
        before, now = getattr(start.program, name), getattr(program, name)
        if before != now:
            raise InputError(
                f"training cannot go on from a fit of {name} = {before} with {name} = {now}; keep "
                "it, or start anew"
            )


def require_finite(
    means: dict[str, np.ndarray], program: TopicProgram, step: int, epoch: int
) -> None:
    """Stop at the first epoch that left a term or a weight infinite or NaN, and say which."""
    broken = [
        f"{name} of replicate {replicate}"
        for name, value_R in means.items()
        for replicate in np.flatnonzero(~np.isfinite(value_R))
        if name not in ("loss", "elbo")
    ] or [name for name, value in program.named_parameters() if not value.isfinite().all()]
    if broken:
        raise NonFiniteError(
            f"training stopped at step {step} (epoch {epoch}): {', '.join(broken)} is not finite; "
            "lower train.learning_rate"
        )


@contextlib.contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (Pyro draws from it) and give the caller's random state back at the end."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        # Pyro warns of a NaN; we stop at it, and say in which term.
        warnings.filterwarnings("ignore", message="Encountered NaN")
        torch.manual_seed(seed)
        yield
