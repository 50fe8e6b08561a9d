"""Optimisers, devices and precision."""

import warnings

import numpy as np
import pytest
import torch

from topicell.config import Device, Engine, ModelConfig, Precision, TrainConfig
from topicell.errors import InputError
from topicell.model import engines
from topicell.model.engines import (
    BETAS,
    Adam,
    Optimizer,
    check_precision,
    matrix_precision,
    resolve_device,
    without_denormals,
)
from topicell.model.minibatches import DenseBatch, shuffled
from topicell.model.objective import negative_elbo
from topicell.model.program import TopicProgram
from topicell.model.training import train

CPU = torch.device("cpu")


def test_adam_takes_the_steps_of_torch():
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(v.clone()) for v in start] for _ in range(2))
    adam = Adam(ours)
    reference = torch.optim.Adam(theirs, lr=0.1, betas=BETAS, fused=True)
    for step in range(20):
        rate = 0.1 / (step + 1)
        for group in reference.param_groups:
            group["lr"] = rate
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        adam.step(torch.tensor(rate))
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert all(value.grad is None for value in ours)


def test_both_engines_give_the_same_fit_within_noise(planted):
    counts = planted[0]
    fits = {
        engine: train(
            counts,
            None,
            ModelConfig(n_topics=4, n_hidden=16),
            TrainConfig(engine=engine, n_replicates=2, epochs=15, progress=False),
            seed=0,
        )
        for engine in Engine
    }
    fused, pyro = fits[Engine.fused], fits[Engine.pyro]
    # The same seed draws the same start, mini-batches and noise: only rounding differs.
    assert fused.history[0]["train/elbo"] == pytest.approx(pyro.history[0]["train/elbo"], rel=1e-4)
    np.testing.assert_allclose(fused.elbo_by_replicate(), pyro.elbo_by_replicate(), rtol=1e-3)
    assert np.abs(fused.beta() - pyro.beta()).sum(-1).max() < 0.05


def optimizer(counts, **settings):
    torch.manual_seed(0)
    program = TopicProgram(counts.n_genes, 2, ModelConfig(n_topics=3, n_hidden=8))
    return Optimizer(program, TrainConfig(**settings), counts)


def steps(stepped, n):
    """Take steps with changing rate and weight on mini-batches of two sizes."""
    torch.manual_seed(1)
    seeds = np.random.default_rng(0)
    done = 0
    while done < n:
        for batch in stepped.batches(shuffled(stepped.n_cells, 7, seeds)):
            stepped.step(batch, kl_weight=done / n, learning_rate=0.01 * (1 + done % 3))
            done += 1


def test_means_are_over_cells_and_can_be_reset(planted):
    stepped = optimizer(planted[0])
    steps(stepped, 7)
    assert stepped.n_seen == 500
    means = stepped.means()
    terms = means["reconstruction"] - means["kl_cells"] - means["kl_topics"]
    np.testing.assert_allclose(means["elbo"], terms)
    stepped.forget()
    assert stepped.n_seen == 0
    assert not stepped.sums.any()


def test_a_recorded_step_reads_values_that_change_between_steps(planted, monkeypatch):
    """A replay does the recorded work again, as a CUDA graph does."""
    recorded = []

    def record(work):
        recorded.append(work)
        return work

    monkeypatch.setattr(engines, "on_side_stream", lambda work: work())
    monkeypatch.setattr(engines, "record", record)
    # Dense mini-batches on both sides, as on CUDA.
    monkeypatch.setattr(engines, "sparse_wins", lambda *_: False)
    eager, replayed = optimizer(planted[0]), optimizer(planted[0])
    replayed.records = True
    for stepped in (eager, replayed):
        steps(stepped, 42)
    # 500 cells in 7 mini-batches: sizes 71 and 72, one recording each.
    assert len(recorded) == 2
    for one, other in zip(eager.adam.parameters, replayed.adam.parameters, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(eager.sums, replayed.sums)


def test_devices():
    assert resolve_device(Device.cpu).type == "cpu"
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device(Device.auto).type == expected
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            resolve_device(Device.cuda)


def test_bfloat16_is_for_the_fused_engine_on_cuda():
    check_precision(Precision.bfloat16, torch.device("cuda"))
    check_precision(Precision.tf32, CPU)
    with pytest.raises(InputError, match="is for CUDA devices"):
        check_precision(Precision.bfloat16, CPU)
    with pytest.raises(InputError, match=r"train\.precision"):
        TrainConfig(precision=Precision.bfloat16, engine=Engine.pyro)


def test_bfloat16_changes_only_the_encoder():
    """Autocast on the CPU, which users cannot select, changes the same terms."""
    torch.manual_seed(0)
    program = TopicProgram(50, 2, ModelConfig(n_topics=3, n_hidden=8))
    batch = DenseBatch(torch.poisson(torch.rand(64, 50)))
    losses = []
    for bfloat16 in (False, True):
        torch.manual_seed(1)
        loss, terms = negative_elbo(program, batch, 100, bfloat16=bfloat16)
        loss.backward()
        losses.append((loss.item(), terms.kl_topics))
    assert losses[0][0] != losses[1][0]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-2)
    assert torch.equal(losses[0][1], losses[1][1])
    assert all(value.grad.dtype == torch.float32 for value in program.parameters())


@pytest.mark.parametrize("precision", list(Precision))
def test_the_precision_of_products_on_cuda_is_restored(precision):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with matrix_precision(precision, torch.device("cuda")):
        assert matmul.allow_tf32 == (precision is not Precision.float32)
    assert matmul.allow_tf32 == before
    with matrix_precision(precision, CPU):
        assert matmul.allow_tf32 == before


def test_without_cuda_graphs_steps_are_eager_with_one_warning(planted, monkeypatch):
    def record(work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engines, "on_side_stream", lambda work: work())
    monkeypatch.setattr(engines, "record", record)
    monkeypatch.setattr(engines, "sparse_wins", lambda *_: False)
    eager, fallen_back = optimizer(planted[0]), optimizer(planted[0])
    steps(eager, 42)
    fallen_back.records = True
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph") as caught:
        steps(fallen_back, 42)
    assert len(caught) == 1
    assert "capturing), so" in str(caught[0].message)
    for one, other in zip(eager.adam.parameters, fallen_back.adam.parameters, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(eager.sums, fallen_back.sums)


def test_a_full_gpu_is_not_a_reason_for_eager_steps(planted, monkeypatch):
    def record(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engines, "on_side_stream", lambda work: work())
    monkeypatch.setattr(engines, "record", record)
    monkeypatch.setattr(engines, "sparse_wins", lambda *_: False)
    full = optimizer(planted[0])
    full.records = True
    with pytest.raises(torch.OutOfMemoryError):
        steps(full, 42)


def test_without_a_fused_kernel_adam_takes_the_same_steps(monkeypatch):
    def kernel(*arguments, **named):
        raise RuntimeError("`fused=True` requires all the params to be on supported devices")

    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(5)]
    ours, reference = ([torch.nn.Parameter(v.clone()) for v in start] for _ in range(2))
    plain, fused = Adam(ours), Adam(reference)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            for a, b in zip(ours, reference, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            rate = torch.tensor(0.1 / (step + 1))
            with monkeypatch.context() as patch:
                # torch has counted the step when its kernel is called.
                patch.setattr(torch, "_fused_adam_", kernel)
                plain.step(rate)
            fused.step(rate)
            assert plain.steps == [torch.tensor(float(step + 1))] * 2
            for a, b in zip(ours, reference, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [str(w.message)[:30] for w in caught] == ["torch's fused Adam fails here "]
    assert all(value.grad is None for value in ours)


def test_denormals_are_flushed_for_a_while():
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    assert tiny / 2 > 0
    with without_denormals():
        assert tiny / 2 == 0
        with without_denormals():
            pass
        assert tiny / 2 == 0
    assert tiny / 2 > 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", Precision)
def test_a_fit_on_the_gpu_is_that_on_the_cpu_within_rounding(planted, precision):
    counts = planted[0]
    fits = [
        train(
            counts,
            None,
            ModelConfig(n_topics=4, n_hidden=16),
            TrainConfig(
                device=device, precision=precision if device is Device.cuda else Precision.float32,
                n_replicates=2, epochs=15, progress=False,
            ),
            seed=0,
        )
        for device in (Device.cpu, Device.cuda)
    ]  # fmt: skip
    on_cpu, on_gpu = (fit.history[0]["train/elbo"] for fit in fits)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)
    elbo_R = [fit.elbo_by_replicate() for fit in fits]
    np.testing.assert_allclose(elbo_R[1], elbo_R[0], rtol=1e-2)


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_on_the_gpu_is_eager(planted, monkeypatch):
    torch.manual_seed(0)
    program = TopicProgram(planted[0].n_genes, 2, ModelConfig(n_topics=3, n_hidden=8)).cuda()
    stepped = Optimizer(program, TrainConfig(device=Device.cuda), planted[0])
    loss = stepped.loss

    def waits(*arguments):
        found = loss(*arguments)
        found[0].item()  # a recording may not wait for the device
        return found

    monkeypatch.setattr(stepped, "loss", waits)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        steps(stepped, 42)
    assert not stepped.records
    assert np.isfinite(stepped.means()["loss"]).all()


@pytest.mark.gpu
def test_recorded_steps_on_the_gpu_are_the_eager_ones(planted):
    fitted = []
    for records in (False, True):
        torch.manual_seed(0)
        program = TopicProgram(planted[0].n_genes, 2, ModelConfig(n_topics=3, n_hidden=8)).cuda()
        stepped = Optimizer(program, TrainConfig(device=Device.cuda), planted[0])
        stepped.records = records
        steps(stepped, 42)
        assert bool(stepped.recorded) == records
        fitted.append(stepped)
    eager, recorded = fitted
    for one, other in zip(eager.adam.parameters, recorded.adam.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
