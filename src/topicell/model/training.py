"""The training loop: epochs of steps, validation, early stop, checkpoints.

Batches, noise and initial topics depend only on the seed, and the global random state is restored.
Needs only torch, pyro, numpy and scipy.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from topicell.config import AnnealingShape, EarlyStoppingConfig, Init, ModelConfig, TrainConfig
from topicell.counts import Counts, drawn
from topicell.errors import InputError
from topicell.evaluation.perplexity import thin
from topicell.model.candidates import best_candidate
from topicell.model.checkpoints import Checkpoints
from topicell.model.engines import (
    Optimizer,
    check_precision,
    cpu_threads,
    matrix_precision,
    on_device,
    resolve_device,
    without_denormals,
)
from topicell.model.estimates import (
    Chunks,
    elbo_terms,
    mean_theta,
    side_by_side,
    topics_by_batch,
)
from topicell.model.fit import EpochMetrics
from topicell.model.minibatches import shuffled
from topicell.model.mixture import MIXTURE
from topicell.model.posterior import AmortizedFit
from topicell.model.program import Constants, Likelihood, TopicProgram
from topicell.model.ranks import Ranks, Share, gpu_of_process
from topicell.model.schedules import annealing_weight, learning_rate
from topicell.model.seeds import EarlierTopics
from topicell.model.sizes import check_sizes
from topicell.model.starts import (
    constants_of,
    given_topics,
    initial_topics,
    searched_topics,
    with_seeds,
)
from topicell.progress import step
from topicell.signals import Interrupt

STEPS = 250
"""Number of optimisation steps for which the default number of epochs is computed."""
EPOCHS = (3, 200)
"""Smallest and largest default number of epochs."""
VALIDATION_CELLS = 20_000
"""Largest number of validation cells, drawn by the seed, that are evaluated after every epoch."""
HELD_NONZEROS = 2_000_000
"""Validation cells with at most this number of non-zeros are stored in the form that the
computation needs."""


class NonFiniteError(ArithmeticError):
    """No replicate has finite terms and weights; the message names the step and the terms."""


def train(
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
    likelihood: Likelihood = MIXTURE,
    start: AmortizedFit | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks | None = None,
    prior: EarlierTopics | None = None,
) -> AmortizedFit:
    """Fit R replicates of amortized LDA.

    Parameters
    ----------
    counts
        Training cells.
    valid
        Validation cells with the same genes, evaluated after every epoch, or None.
    model, config
        Settings of the model and of the training.
    seed
        Seed of the initial topics, the mini-batches and the noise.
    likelihood
        The distribution of counts for given topics and proportions: `topicell.model.mixture` for
        LDA.
    start
        A fit to continue, with the same genes and settings of the model: its weights and its
        history are kept, there is no warm-up, and the learning rate runs through a new cycle.
    on_epoch
        Called after each epoch with its metrics, named as in the tracker.
    checkpoints
        Where the state is saved. If there is a checkpoint, training continues from it: `on_epoch`
        is also called for the epochs before it, and on the CPU the fit has the same bytes as
        without the interruption. An interrupt waits until the state is saved.
    ranks
        The processes that fit together; they are called with the same arguments, and return the
        fit of a single process, up to rounding. The first one reads and writes the checkpoints,
        which are then written at the end of epochs only.
    prior
        Topics of an earlier fit, if ``model.topic_gene_prior`` names a run instead of a file.

    Returns
    -------
    The fit; the selected replicate has the highest ELBO on validation cells (on training cells if
    there are none), and its topics are ordered by mean proportion, largest first.

    Raises
    ------
    InputError
        There are more topics than cells, or the length of a prior is not the number of genes.
    NonFiniteError
        A term or weight became NaN or infinite in every replicate.

    Warns
    -----
    UserWarning
        This happened in some replicates; they are not in the fit.
    """
    check_sizes(counts, model)
    ranks = ranks or Ranks()
    share = ranks.share(config.n_replicates, config.replicates_per_device)
    mine = share.mine
    device = resolve_device(config.device)
    check_precision(config.precision, device)
    n_epochs = config.epochs or default_epochs(counts.n_cells, config.batch_size)
    n_batches = math.ceil(counts.n_cells / config.batch_size)
    n_steps = min(n_epochs * n_batches, config.max_steps or n_epochs * n_batches)
    length = n_steps / n_batches
    # A continued fit has no warm-up.
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

    if share.n_shards > 1:
        own_gpu = device.type == "cuda" and gpu_of_process()[1]
        share = ranks.connected(share, own_gpu=own_gpu)
    with (
        on_device(device),
        _own_randomness(seed, device),
        cpu_threads(config.threads),
        matrix_precision(config.precision, device),
        without_denormals(),
        step("fit", n_epochs, "epochs", own_bar=config.progress) as shown,
    ):
        constants = Constants()
        if ranks.rank == 0:
            constants = (
                start.program.constants
                if start is not None
                else constants_of(counts, model, seed, prior)
            )
        constants = ranks.first(constants)
        program = TopicProgram(counts.n_genes, config.n_replicates, model, likelihood, constants)
        program.to(device)
        checkpoints = checkpoints or Checkpoints(Path(), None)
        saved = ranks.first(checkpoints.latest() if ranks.rank == 0 else None)
        if start is None:
            # Of several processes, the first one computes the start of all.
            if ranks.rank == 0:
                program.encoder.library_size.fill_(float(np.median(counts.late.sum(1))))
                if saved is None:
                    shown.describe("initial topics")
                    begin(program, counts, model, config, seed)
                    shown.describe("fit")
        else:
            _require_same_shape(start, program)
            program.load_state_dict(start.program.state_dict())
        if ranks.size > 1:
            on_cpu = {name: value.cpu() for name, value in program.state_dict().items()}
            program.load_state_dict(ranks.first(on_cpu))
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn and replaced
                program = program.of_replicates(mine)
        optimizer = Optimizer(program, config, counts, share)
        validation = (
            Validation.of(program, valid, seed) if valid is not None and valid.n_cells else None
        )
        state = State(program, optimizer, seeds, ranks, share)
        if start is not None:
            state.history = [*start.history]
        if saved is not None:
            tensors, document = saved
            state.restore(tensors, document, on_epoch)
        first_epoch = len(state.history) - state.epoch
        shown.advance(state.epoch)

        while (state.batch or state.step < n_steps) and not state.ended:
            state.begin_epoch()
            program.train()
            last = state.batch + n_steps - state.step
            parts = shuffled(counts.n_cells, n_batches, seeds)[state.batch : last]
            with state.held_interrupts(checkpoints) as interrupt:
                for batch in optimizer.batches(parts):
                    kl_weight = annealing_weight(state.step / n_batches, length, annealing)
                    rate = learning_rate(state.step / n_steps, config)
                    optimizer.step(batch, kl_weight=kl_weight, learning_rate=rate)
                    state.step += 1
                    state.batch += 1
                    if ranks.size == 1 and (
                        interrupt.came or checkpoints.due(state.epoch, epoch_ended=False)
                    ):
                        state.keep(checkpoints)
                        interrupt.pass_on()

            means = optimizer.means()
            failed = {mine[r]: words for r, words in not_finite(means, program).items()}
            state.note_failures(ranks.union(failed))
            joined_MR = ranks.joined(share, np.stack(list(means.values()), axis=1)).T
            means = dict(zip(means, joined_MR, strict=True))
            metrics: EpochMetrics = {"epoch": first_epoch + state.epoch}
            for name, value_R in means.items():
                metrics |= summarize(f"train/{name}", value_R[state.sound])
            if state.failed:
                metrics["train/failed_replicates"] = float(len(state.failed))
            kl_weight = annealing_weight((state.step - 1) / n_batches, length, annealing)
            metrics["train/kl_weight"] = kl_weight
            metrics["train/learning_rate"] = learning_rate((state.step - 1) / n_steps, config)
            metrics["speed/cells_per_second"] = (
                optimizer.n_seen * config.n_replicates / state.seconds
            )
            if validation is not None:
                try:
                    sound = [i for i, r in enumerate(mine) if r in state.sound]
                    # Processes with the same replicates have the same weights.
                    measured = np.zeros((2, 0))
                    if share.shard == 0:
                        measured = np.stack(validation.measure(program, counts.n_cells, sound))
                    elbo_R, perplexity_R = ranks.joined(share, measured.T).T
                except KeyboardInterrupt:
                    state.keep_interrupted(checkpoints)
                    raise
                metrics |= summarize("valid/elbo", elbo_R)
                metrics |= summarize("valid/perplexity", perplexity_R)
            state.end_epoch(metrics)
            if validation is not None and config.early_stopping.enabled:
                # Below the maximal KL weight the objective is different, so early stopping ignores
                # these epochs.
                if kl_weight >= annealing.max_weight:
                    state.best.consider(metrics["valid/elbo"], config.early_stopping, program)
                if state.best.n_waited >= config.early_stopping.patience:
                    program.load_state_dict(state.best.weights)
                    state.ended = True
            shown.describe(note=describe(metrics))
            shown.advance()
            try:
                if on_epoch is not None:
                    on_epoch(metrics)
            except KeyboardInterrupt:
                state.keep_interrupted(checkpoints)
                raise
            if ranks.first(checkpoints.due(state.epoch, epoch_ended=True)):
                state.keep(checkpoints)

        if ranks.first(checkpoints.written):
            # An interrupt can also come after a long fit, so save the state.
            state.ended = True
            state.keep(checkpoints)
        return fit_of(state, counts, valid, model, seed)


def begin(
    program: TopicProgram, counts: Counts, model: ModelConfig, config: TrainConfig, seed: int
) -> None:
    """Set the initial topics of a program."""
    if model.init_topics is not None:
        topics_RKG = given_topics(Path(model.init_topics), counts, program)
    elif config.search and model.init is Init.kmeans:
        searched_LRKG = searched_topics(counts, program, seed)
        topics_LRKG = torch.stack([with_seeds(b_RKG, program, counts) for b_RKG in searched_LRKG])
        best = best_candidate(counts, program, topics_LRKG, config, seed)
        topics_RKG = topics_LRKG[best]
    else:
        topics_RKG = initial_topics(counts, program, model.init, model.n_starts, seed)
        topics_RKG = with_seeds(topics_RKG, program, counts)
    with torch.no_grad():
        program.topic_mean.copy_(topics_RKG)


def fit_of(
    state: State, counts: Counts, valid: Counts | None, model: ModelConfig, seed: int
) -> AmortizedFit:
    """Return the fit of a trained program, without the replicates that failed.

    Raises
    ------
    NonFiniteError
        No replicate has a finite ELBO for the selection.

    Warns
    -----
    UserWarning
        Replicates were left out.
    """
    whole = state.whole_program()
    while True:
        program = whole.of_replicates(state.sound) if state.failed else whole
        fit = AmortizedFit.of(
            program, counts, valid, model, seed=seed, history=state.history, ranks=state.ranks
        )
        failed = {
            replicate: "the final ELBO"
            for replicate, elbo in zip(state.sound, fit.selection_R, strict=True)
            if not math.isfinite(elbo)
        }
        if not failed:
            break
        state.note_failures(failed)
    if state.failed:
        warnings.warn(
            f"{len(state.failed)} of {state.n_replicates} replicates were left out, "
            f"because they have values that are not finite ({state.described_failures()}); the "
            "fit has the other replicates. A lower train.learning_rate may prevent this",
            stacklevel=3,
        )
    return fit


def describe(metrics: EpochMetrics) -> str:
    """Return the text of the bar for an epoch; its ELBO has KL weight 1."""
    words = [f"ELBO {metrics['train/elbo']:.1f} nats/cell"]
    if "valid/perplexity" in metrics:
        words.append(f"valid. perplexity {metrics['valid/perplexity']:.2f}")
    return ", ".join([*words, f"KL weight {metrics['train/kl_weight']:.2f}"])


def default_epochs(n_cells: int, batch_size: int) -> int:
    """Return the number of epochs that gives about `STEPS` steps, within `EPOCHS`."""
    fewest, most = EPOCHS
    return min(max(round(STEPS / math.ceil(n_cells / batch_size)), fewest), most)


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation cells with their document-completion halves, and the noise for all epochs."""

    cells: Chunks
    observed: Chunks
    completed: Counts
    seed: int

    @classmethod
    def of(cls, program: TopicProgram, valid: Counts, seed: int) -> Validation:
        """Split the counts only once, so that epochs differ only by the model."""
        rows = drawn(valid.n_cells, VALIDATION_CELLS, seed)
        if rows is not None:
            valid = valid[rows]
        halves = [replace(valid, rows=x) for x in thin(valid.x, seed)]
        observed, completed = halves
        held = valid.late.nnz <= HELD_NONZEROS
        cells, seen = (Chunks(program, part, held=held) for part in (valid, observed))
        return cls(cells, seen, completed, seed)

    def measure(
        self, program: TopicProgram, n_train: int, replicates: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ELBO (nats per cell) and amortized perplexity of the replicates, shapes (R,)."""
        program.eval()
        terms = elbo_terms(program, self.cells, n_samples=2, seed=self.seed)
        elbo_R = terms.per_cell(n_train)[replicates]
        theta_RNK = mean_theta(
            program, self.observed, n_samples=16, seed=self.seed, replicates=replicates
        )
        topics_SRKG, batch_N = topics_by_batch(
            program, self.completed, n_samples=16, seed=self.seed
        )
        theta_RNK, topics_RKG = side_by_side(theta_RNK, topics_SRKG[:, replicates], batch_N)
        perplexity_R = np.array(
            [
                program.likelihood.perplexity(self.completed.x, theta_NK, topics_KG)
                for theta_NK, topics_KG in zip(theta_RNK, topics_RKG, strict=True)
            ]
        )
        return elbo_R, perplexity_R


@dataclass(slots=True)
class Best:
    """The best epoch so far: its weights, and the number of later epochs without a gain."""

    score: float = -math.inf
    n_waited: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, score: float, config: EarlyStoppingConfig, program: TopicProgram) -> None:
        """Store this epoch if it gains at least ``config.min_delta``, else count it."""
        self.n_waited += 1
        if score >= self.score + config.min_delta:
            self.score, self.n_waited, self.weights = score, 0, deepcopy(program.state_dict())


@dataclass(slots=True)
class State:
    """State of a fit between two steps: everything that determines the following steps."""

    program: TopicProgram
    optimizer: Optimizer
    seeds: np.random.Generator
    ranks: Ranks
    share: Share
    epoch: int = 0
    """Number of complete epochs."""
    batch: int = 0
    """Number of finished mini-batches in the next epoch."""
    step: int = 0
    ended: bool = False
    history: list[EpochMetrics] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    failed: dict[int, str] = field(default_factory=dict)
    """Replicates with a value that is not finite: the name of the value and the step."""
    _order: dict[str, Any] = field(default_factory=dict)
    """State of `seeds` before the cells of this epoch were shuffled."""
    _began: float = 0.0
    _seconds_before: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that this epoch has taken so far."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def n_replicates(self) -> int:
        """Number of replicates of all processes."""
        return self.share.n_replicates

    @property
    def sound(self) -> list[int]:
        """The replicates with only finite values."""
        return [r for r in range(self.n_replicates) if r not in self.failed]

    def whole_program(self) -> TopicProgram:
        """Return the program with the replicates of all processes."""
        if self.ranks.size == 1:
            return self.program
        mine = self.program
        whole = mine.like(self.n_replicates)
        whole.load_state_dict(self._joined(mine.state_dict()))
        return whole.to(mine.topic_mean.device)

    def _joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors with the replicates of all processes, along the first axis."""
        if self.ranks.size == 1:
            return dict(tensors)
        mine = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        # Processes that divide cells have the same values.
        sent = mine if self.share.shard == 0 else {}
        parts = self.ranks.everyone(sent)[:: self.share.n_shards]
        return {
            name: torch.from_numpy(
                np.concatenate([part[name] for part in parts]) if value.ndim else value
            )
            for name, value in mine.items()
        }

    def _mine(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the replicates of this process of what `_joined` returns."""
        if self.ranks.size == 1:
            return dict(whole)
        R, mine = self.n_replicates, self.share.mine
        return {
            name: value.view(R, value.shape[0] // R, *value.shape[1:])[mine].flatten(0, 1)
            if value.ndim
            else value
            for name, value in whole.items()
        }

    def note_failures(self, names: dict[int, str]) -> None:
        """Record replicates with values that are not finite; raise an error if no other is left."""
        when = f"step {self.step} (epoch {self.epoch})"
        for replicate in sorted(names.keys() - self.failed.keys()):
            self.failed[replicate] = f"{names[replicate]} at {when}"
        if not self.sound:
            raise NonFiniteError(
                f"training stopped at {when}: each replicate has a value that is not finite "
                f"({self.described_failures()}); lower train.learning_rate"
            )

    def described_failures(self) -> str:
        """Return a description of the failed replicates."""
        return "; ".join(f"replicate {r}: {what}" for r, what in self.failed.items())

    def begin_epoch(self) -> None:
        """Store the state before the cells are shuffled."""
        self._order = deepcopy(dict(self.seeds.bit_generator.state))
        self._began = time.perf_counter()

    def end_epoch(self, metrics: EpochMetrics) -> None:
        """Count an epoch after its validation."""
        self.history.append(metrics)
        self.optimizer.forget()
        self.epoch += 1
        self.batch = 0
        self._seconds_before = 0.0
        self.begin_epoch()

    def held_interrupts(
        self, checkpoints: Checkpoints
    ) -> contextlib.AbstractContextManager[Interrupt]:
        """Delay interrupts during an epoch, if this process alone has the whole state."""
        if self.ranks.size > 1:
            return contextlib.nullcontext(Interrupt())
        return checkpoints.held_interrupts()

    def keep_interrupted(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint after an interrupt, if this process alone has the whole state."""
        if self.ranks.size == 1:
            self.keep(checkpoints)

    def keep(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint of all processes; of several, at the end of an epoch."""
        adam = self.optimizer.adam
        tensors = {f"program.{name}": value for name, value in self.program.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
        for name, values in adam.state().items():
            tensors |= {f"adam.{name}.{i}": value for i, value in enumerate(values)}
        # The sums are 0 at the end of an epoch, and their replicates are the second axis.
        tensors = self._joined(tensors | {"sums": self.optimizer.sums.T})
        if self.ranks.rank > 0:
            return
        tensors["sums"] = tensors["sums"].T
        # Processes draw the same random numbers.
        tensors |= {f"random.{name}": value for name, value in _random_states().items()}
        document = {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "ended": self.ended,
            "history": self.history,
            "best": [self.best.score, self.best.n_waited],
            "failed": list(self.failed.items()),
            "order": self._order,
            "n_seen": self.optimizer.n_seen,
            "epoch_seconds": self.seconds,
        }
        checkpoints.write(tensors, document, self.step)

    def restore(
        self,
        tensors: dict[str, Tensor],
        document: Mapping[str, Any],
        on_epoch: Callable[[EpochMetrics], None] | None,
    ) -> None:
        """Continue from a checkpoint."""
        own = {name: value for name, value in tensors.items() if name.startswith("random.")}
        tensors["sums"] = tensors["sums"].T
        tensors = self._mine({n: v for n, v in tensors.items() if n not in own}) | own

        def of(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        self.program.load_state_dict(of("program."))
        for name, values in self.optimizer.adam.state().items():
            # Copy in place, because a recorded step keeps reading the same memory.
            for i, value in enumerate(values):
                value.copy_(tensors[f"adam.{name}.{i}"])
        # Processes that divide the cells add up their sums.
        self.optimizer.sums.copy_(tensors["sums"].T * (self.share.shard == 0))
        self.optimizer.n_seen = document["n_seen"]
        _set_random_states(of("random."))
        self.seeds.bit_generator.state = self._order = document["order"]
        for name in ("epoch", "batch", "step", "ended", "history"):
            setattr(self, name, document[name])
        # A checkpoint of an earlier version does not have it.
        self.failed = dict(document.get("failed", []))
        self._seconds_before = document["epoch_seconds"]
        score, n_waited = document["best"]
        device = self.optimizer.sums.device
        weights = {name: value.to(device) for name, value in of("best.").items()}
        self.best = Best(score, n_waited, weights)
        if on_epoch is not None:
            for metrics in self.history:
                on_epoch(metrics)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


def summarize(name: str, value_R: np.ndarray) -> EpochMetrics:
    """Return the mean over replicates, and the standard deviation if there are several."""
    summary = {name: float(np.mean(value_R))}
    if len(value_R) > 1:
        summary[f"{name}_sd"] = float(np.std(value_R, ddof=1))
    return summary


def _require_same_shape(start: AmortizedFit, program: TopicProgram) -> None:
    for name in ("n_replicates", "n_topics", "n_genes"):
        before, now = getattr(start.program, name), getattr(program, name)
        if before != now:
            raise InputError(
                f"training cannot continue from a fit with {name} = {before}, because {name} = "
                f"{now} now; keep the old value, or start a new fit"
            )


def not_finite(means: dict[str, np.ndarray], program: TopicProgram) -> dict[int, str]:
    """Return the names of the terms, or else the weights, that are not finite, by replicate."""
    of_terms = {n: np.isfinite(v) for n, v in means.items() if n not in ("loss", "elbo")}
    states = program.by_replicate()
    finite = torch.stack([value.isfinite().all(1) for value in states.values()]).cpu().numpy()
    of_weights = dict(zip(states, finite, strict=True))
    found = {}
    for replicate in range(program.n_replicates):
        for of in (of_terms, of_weights):
            names = [name for name, finite_R in of.items() if not finite_R[replicate]]
            if names:
                found[replicate] = ", ".join(names)
                break
    return found


@contextlib.contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (Pyro draws from it) and give the caller's random state back at the end."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        # Pyro warns about NaN; topicell raises an error that names the term.
        warnings.filterwarnings("ignore", message="Encountered NaN")
        torch.manual_seed(seed)
        yield
