"""Engines: one optimisation step by the fast objective or by Pyro's, eager or as a CUDA graph.

Also the device, the precision of products, and the number of CPU threads.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.optim.adam import adam

from topicell.config import Device, Engine, Precision, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.minibatches import Batch, DenseBatch, DeviceCounts, sparse_batches, sparse_wins
from topicell.model.objective import Terms, negative_elbo
from topicell.model.program import ReplicateNorm, TopicELBO, TopicProgram
from topicell.model.ranks import Shards, Share, gpu_of_process

BETAS = (0.9, 0.99)
"""Decay rates of Adam's moments: a shorter memory of the second moment than torch's default,
because a whole fit is a few hundred steps."""
EAGER_STEPS = 3
"""Steps of each size of mini-batch before the CUDA graph: they make the libraries' workspaces."""

log = logging.getLogger(__name__)

Loss = Callable[..., tuple[Tensor, Terms]]


class Optimizer:
    """Adam on the negative ELBO of mini-batches; keeps the sums of its terms.

    On CUDA, the fused engine records the whole step — loss, gradients, update — as one CUDA graph
    for each size of mini-batch (there are two at most), and replays it: a step of a hundred small
    kernels then costs one launch. What changes between steps lives in tensors.

    Parameters
    ----------
    program
        The program, on its device; in training mode while it is stepped.
    config
        Engine and precision.
    counts
        The training cells.
    share
        The replicates of the program, and the cells of mini-batches, among those of all processes.
    """

    def __init__(
        self, program: TopicProgram, config: TrainConfig, counts: Counts, share: Share | None = None
    ) -> None:
        self.program = program
        self.x_NG = x_NG = counts.rows
        self.given = program.given(counts)
        self.n_cells = x_NG.shape[0]
        device = program.topic_mean.device
        fused = config.engine is Engine.fused
        self.loss: Loss = pyro_negative_elbo
        if fused:
            bfloat16 = config.precision is Precision.bfloat16
            self.loss = functools.partial(negative_elbo, bfloat16=bfloat16, share=share)
        self.share = share
        self.shards: Shards | None = None
        if share is not None and share.n_shards > 1:
            self.shards = Shards(share.group)
            for module in program.modules():
                if isinstance(module, ReplicateNorm):
                    module.shards = self.shards
        # The exchange with other processes cannot be recorded.
        self.records = fused and device.type == "cuda" and self.shards is None
        self.recorded: dict[int, _Recorded] = {}
        sparse = fused and sparse_wins(x_NG, device)
        self.counts = None if sparse else DeviceCounts(x_NG, device, self.given)
        self.library_size = float(program.encoder.library_size)
        self.adam = Adam(program.parameters())
        self.kl_weight = torch.zeros((), device=device)
        self.learning_rate = torch.zeros((), device=device)
        self.sums = torch.zeros(4, program.n_replicates, device=device)
        self.n_seen = 0

    def batches(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        """Return the mini-batches of these cells, in the form that suits counts and device."""
        if self.shards is None:
            yield from self._made(parts)
            return
        assert self.share is not None
        for part, batch in zip(parts, self._made(list(map(self.share.cells, parts))), strict=True):
            self.shards.n_batch = len(part)
            yield batch

    def _made(self, parts: list[np.ndarray]) -> Iterator[Batch]:
        if self.counts is None:
            return sparse_batches(self.x_NG, parts, self.library_size, self.given)
        return self.counts.batches(parts, reuse=self.records)

    def step(self, batch: Batch, *, kl_weight: float, learning_rate: float) -> None:
        """Do one step of Adam on a mini-batch of `batches`."""
        self.kl_weight.fill_(kl_weight)
        self.learning_rate.fill_(learning_rate)
        if not self._advance_recorded(batch):
            self._advance(batch)
        self.n_seen += self._size(batch)

    def _size(self, batch: Batch) -> int:
        """Return the number of cells of a mini-batch of all processes."""
        return batch.n_cells if self.shards is None else self.shards.n_batch

    def _advance_recorded(self, batch: Batch) -> bool:
        """Do the step as a CUDA graph; return False, from then on, where that is not possible."""
        if not self.records:
            return False
        if batch.n_cells not in self.recorded:
            self.recorded[batch.n_cells] = _Recorded(functools.partial(self._advance, batch))
        try:
            self.recorded[batch.n_cells].advance()
        except NotRecordedError as error:
            self.records = False
            self.recorded.clear()
            self.adam.forget_gradients()
            warnings.warn(
                f"the step cannot be recorded as a CUDA graph ({error}), so every step is computed "
                "eagerly, which is slower; the results are the same",
                stacklevel=2,
            )
            return False
        return True

    def means(self) -> dict[str, np.ndarray]:
        """Return means of loss and terms since `forget`, nats per cell, each of shape (R,)."""
        names = ("loss", "reconstruction", "kl_cells", "kl_topics")
        sums = self.sums if self.shards is None else self.shards.total(self.sums.clone())
        means = dict(zip(names, (sums / self.n_seen).cpu().numpy(), strict=True))
        means["elbo"] = means["reconstruction"] - means["kl_cells"] - means["kl_topics"]
        return means

    def forget(self) -> None:
        """Begin the sums anew."""
        self.sums.zero_()
        self.n_seen = 0

    def _advance(self, batch: Batch) -> None:
        if self.shards is None:
            loss, terms = self.loss(self.program, batch, self.n_cells, self.kl_weight)
            # In nats per cell, so that gradients do not grow with the data.
            (loss / self.n_cells).backward()
        else:
            n_batch = self.shards.n_batch
            loss, terms = self.loss(
                self.program, batch, self.n_cells, self.kl_weight, n_batch=n_batch
            )
            # The loss of the mini-batch is the mean of those of the processes, by their cells.
            (loss * (batch.n_cells / n_batch / self.n_cells)).backward()
            self.shards.add_up([v.grad for v in self.adam.parameters if v.grad is not None])
        self.adam.step(self.learning_rate)
        share = batch.n_cells / self.n_cells
        self.sums += torch.stack(
            [terms.loss * share, terms.reconstruction, terms.kl_cells, terms.kl_topics * share]
        )


class Adam:
    """Adam (Kingma & Ba 2015), all parameters in one call of torch's functional form.

    It gives the same numbers as ``torch.optim.Adam(fused=True)``, whose object imports torch's
    compiler (1.3 s) and adds 0.3 ms to a step. The learning rate is a tensor, which a CUDA graph
    reads again at each replay.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.first = [torch.zeros_like(value) for value in self.parameters]
        self.second = [torch.zeros_like(value) for value in self.parameters]
        self.steps = [torch.zeros((), device=value.device) for value in self.parameters]
        self.fused, self.proven = True, False

    def state(self) -> dict[str, list[Tensor]]:
        """Return moments and step counts of each parameter, which a checkpoint keeps."""
        return {"first": self.first, "second": self.second, "steps": self.steps}

    @torch.no_grad()
    def step(self, learning_rate: Tensor) -> None:
        """Update the parameters by their gradients, and remove the gradients.

        Where torch has no fused kernel for the device, its plain form is used.
        """
        if self.fused:
            before = [] if self.proven else [step.clone() for step in self.steps]
            try:
                self._update(learning_rate, fused=True)
                self.proven = True
            except (RuntimeError, NotImplementedError) as error:
                if self.proven or isinstance(error, torch.OutOfMemoryError):
                    raise
                self.fused = False
                # torch counts the step before it fails.
                for step, count in zip(self.steps, before, strict=True):
                    step.copy_(count)
                warnings.warn(
                    f"torch's fused Adam fails here ({_first_line(error)}), so its plain form is "
                    "used, which is slower",
                    stacklevel=2,
                )
        if not self.fused:
            self._update(learning_rate, fused=False)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Remove the gradients."""
        for value in self.parameters:
            value.grad = None

    def _update(self, learning_rate: Tensor, *, fused: bool) -> None:
        adam(
            self.parameters,
            [value.grad for value in self.parameters if value.grad is not None],
            self.first,
            self.second,
            [],
            self.steps,
            fused=fused,
            foreach=False,
            capturable=not fused and learning_rate.is_cuda,
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class NotRecordedError(RuntimeError):
    """A CUDA graph could not be recorded; nothing of the work was done."""


class _Recorded:
    """Work that always reads the same memory: a few times eagerly, then as a CUDA graph."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.n_eager = 0
        self.replay: Callable[[], None] | None = None

    def advance(self) -> None:
        if self.n_eager < EAGER_STEPS:
            self.n_eager += 1
            on_side_stream(self.work)
            return
        if self.replay is None:
            try:
                self.replay = record(self.work)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise NotRecordedError(_first_line(error)) from error
            log.info("each step is replayed as a CUDA graph")
        self.replay()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def on_side_stream(work: Callable[[], None]) -> None:
    """Run work on a stream of its own, as what precedes the recording of a graph must be."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Record work as a CUDA graph, without doing it; what is returned does it."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    except BaseException:
        # torch leaves its own stream as the current one if a recording fails.
        torch.cuda.set_stream(stream)
        raise
    return graph.replay


def pyro_negative_elbo(
    program: TopicProgram, batch: Batch, n_cells: int, kl_weight: Tensor | float = 1.0
) -> tuple[Tensor, Terms]:
    """Return minus the annealed ELBO as Pyro computes it from the model and the guide."""
    assert isinstance(batch, DenseBatch), "Pyro's program reads dense counts"
    elbo = TopicELBO()
    loss = elbo.differentiable_loss(
        program.model, program.guide, batch.counts, n_cells, kl_weight, batch.one_hot, batch.design
    )
    terms = elbo.terms
    per_cell_R = kl_weight * terms["kl_cells"] - terms["reconstruction"]
    loss_R = per_cell_R * (n_cells / batch.n_cells) + kl_weight * terms["kl_topics"]
    return loss, Terms(loss=loss_R, **terms)


def resolve_device(device: Device) -> torch.device:
    """Return the device that a setting names; ``auto`` is CUDA where there is one."""
    if device is Device.cpu or (device is Device.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("train.device = 'cuda': torch sees no CUDA device; use auto or cpu")
    number, _ = gpu_of_process()
    return torch.device("cuda") if number is None else torch.device("cuda", number)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse what the device does not offer."""
    if precision is Precision.bfloat16 and device.type != "cuda":
        raise InputError(
            "train.precision = 'bfloat16' is for CUDA devices, and this run is on the CPU; use "
            "float32"
        )


@contextlib.contextmanager
def matrix_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let products on CUDA round their factors to TF32, unless full precision is asked for."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    wanted = precision is not Precision.float32
    try:
        before = matmul.allow_tf32
        matmul.allow_tf32 = wanted
    except (AttributeError, RuntimeError) as error:
        if wanted:
            warnings.warn(
                f"TF32 cannot be set here ({_first_line(error)}), so products have torch's own "
                "precision",
                stacklevel=3,
            )
        yield
        return
    try:
        yield
    finally:
        matmul.allow_tf32 = before


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Let the processor treat numbers below 1.2e-38 as zero.

    Moments of gradients that have become zero decay through such numbers, with which processors are
    many times slower. Fits have the same bytes with and without (experiments/LOG.md).
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = not bool(smallest / 2)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def cpu_threads(n_threads: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads, or as many as it likes; results depend on the number."""
    if n_threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
