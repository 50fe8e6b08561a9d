"""A fit continues from every checkpoint with the same bytes; a checkpoint is complete or absent."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from topicell.config import EarlyStoppingConfig, Engine, ModelConfig, TrainConfig
from topicell.config import checkpoint_interval as interval
from topicell.errors import InputError
from topicell.model import checkpoints as module
from topicell.model import training
from topicell.model.checkpoints import Checkpoints
from topicell.model.engines import Optimizer
from topicell.model.training import Validation, train

MODEL = ModelConfig(n_topics=4, n_hidden=16, dropout=0.1)


GROUPED = ModelConfig(
    n_topics=4,
    n_hidden=16,
    batch_key="lab",
    batch_topic_scale=0.1,
    prevalence="x",
    prior="correlated",
    background=True,
)


@pytest.fixture
def grouped(planted):
    """Return the planted cells with batches and a covariate."""
    counts, generator = planted[0], np.random.default_rng(0)
    n = counts.n_cells
    lab, x_ND = generator.choice(["a", "b"], n).astype(object), generator.normal(0, 1, (n, 1))
    return (replace(counts, batch=lab, design=x_ND.astype(np.float32), covariates=("x",)),)


def fit(counts, valid=None, checkpoints=None, model=MODEL, **settings):
    epochs = []
    settings = {"n_replicates": 2, "epochs": 5, "progress": False} | settings
    made = train(
        counts, valid, model, TrainConfig(**settings), seed=3, checkpoints=checkpoints,
        on_epoch=epochs.append,
    )  # fmt: skip
    return made, epochs


def require_same(one, other):
    """Require equal bits, except the durations of epochs."""
    for name, value in one.program.state_dict().items():
        assert torch.equal(value, other.program.state_dict()[name]), name
    np.testing.assert_array_equal(one.theta(), other.theta())
    np.testing.assert_array_equal(one.beta(), other.beta())
    assert [untimed(epoch) for epoch in one.history] == [untimed(e) for e in other.history]


def untimed(epoch):
    return {name: value for name, value in epoch.items() if not name.startswith("speed/")}


def only(path):
    """Return checkpoints that have only a copy of this file."""
    folder = path.with_name(f"from-{path.stem}")
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    return Checkpoints(folder, "999s")


class Always(Checkpoints):
    """A checkpoint after each step and each epoch."""

    def due(self, n_epochs, *, epoch_ended):
        return True


@pytest.mark.parametrize(
    ("cells", "settings"),
    [
        ("planted", {}),
        ("shallow", {}),
        ("planted", {"engine": Engine.pyro, "epochs": 3}),
        ("planted", {"max_steps": 10}),
        ("grouped", {"model": GROUPED}),
        (
            "planted",
            {
                "epochs": 30,
                "early_stopping": EarlyStoppingConfig(patience=2, min_delta=1.0),
            },
        ),
    ],
    ids=["dense", "sparse", "pyro", "max_steps", "cohort", "early_stopping"],
)
def test_a_fit_from_any_checkpoint_ends_with_the_same_bytes(
    cells, settings, request, tmp_path, monkeypatch
):
    counts = request.getfixturevalue(cells)[0]
    train_cells, valid = counts[np.arange(300)], counts[np.arange(300, 400)]
    monkeypatch.setattr(module, "KEPT", 10_000)
    whole, epochs = fit(train_cells, valid, **settings)
    kept, _ = fit(train_cells, valid, Always(tmp_path, 1), **settings)
    require_same(whole, kept)
    paths = sorted(tmp_path.glob("step-*"))
    assert len(paths) > 8
    # The first, the last and some others: inside an epoch, at its end, after the last epoch.
    for path in {paths[i] for i in np.linspace(0, len(paths) - 1, 6).astype(int)}:
        resumed, reported = fit(train_cells, valid, only(path), **settings)
        require_same(whole, resumed)
        assert [untimed(epoch) for epoch in reported] == [untimed(epoch) for epoch in epochs]


@pytest.mark.filterwarnings("ignore:1 of 2 replicates were left out")
def test_a_fit_without_a_failed_replicate_resumes_with_the_same_bytes(
    shallow, tmp_path, monkeypatch
):
    stepped = Optimizer.step

    def step(self, *arguments, **settings):
        stepped(self, *arguments, **settings)
        if self.adam.steps[0] == 6:
            with torch.no_grad():
                self.program.topic_mean[0] = torch.nan

    monkeypatch.setattr(Optimizer, "step", step)
    monkeypatch.setattr(module, "KEPT", 10_000)
    counts = shallow[0]
    whole, _ = fit(counts[np.arange(300)], counts[np.arange(300, 400)], Always(tmp_path, 1))
    assert whole.n_replicates == 1
    for path in sorted(tmp_path.glob("step-*"))[2::4]:
        resumed, _ = fit(counts[np.arange(300)], counts[np.arange(300, 400)], only(path))
        require_same(whole, resumed)


def test_the_last_two_are_kept(shallow, tmp_path):
    fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    n_batches = 4
    steps = [int(path.stem.removeprefix("step-")) for path in sorted(tmp_path.iterdir())]
    assert steps == [4 * n_batches, 5 * n_batches]


def test_a_short_fit_writes_no_checkpoint(shallow, tmp_path):
    fit(shallow[0], checkpoints=Checkpoints(tmp_path / "none", "60s"))
    fit(shallow[0], checkpoints=Checkpoints(tmp_path / "none", None))
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_gives_a_warning_and_the_one_before_is_used(shallow, tmp_path):
    whole, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 2), epochs=4)
    first, last = sorted(tmp_path.iterdir())
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        resumed, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 2), epochs=4)
    require_same(whole, resumed)
    first.write_bytes(b"")
    last.write_bytes(b"x" * 999)
    with pytest.warns(UserWarning, match="damaged"):
        anew, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 2), epochs=4)
    require_same(whole, anew)


def test_an_unfinished_file_is_no_checkpoint(shallow, tmp_path):
    (tmp_path / "step-000000009.unfinished").write_bytes(b"half")
    assert Checkpoints(tmp_path, 1).latest() is None


def test_a_full_disk_gives_a_warning_and_the_fit_continues(shallow, tmp_path, monkeypatch):
    whole, _ = fit(shallow[0])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left on device.*checkpoint_every=null"):
        kept, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    require_same(whole, kept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_leaves_a_checkpoint(
    number, shallow, tmp_path, monkeypatch
):
    # The search would do the first steps.
    whole, _ = fit(shallow[0], search=False)
    n_checkpoints = []

    def handler(*_):
        n_checkpoints.append(len(list(tmp_path.glob("step-*"))))
        raise KeyboardInterrupt

    before = signal.signal(number, handler)
    taken = []

    def step(self, *arguments, **keywords):
        taken.append(None)
        if len(taken) == 6:
            os.kill(os.getpid(), number)
        stepped(self, *arguments, **keywords)

    stepped = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", step)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(shallow[0], checkpoints=Checkpoints(tmp_path, "999s"), search=False)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert n_checkpoints == [1]
    assert [path.stem for path in tmp_path.iterdir()] == ["step-000000006"]
    resumed, epochs = fit(shallow[0], checkpoints=Checkpoints(tmp_path, "999s"), search=False)
    require_same(whole, resumed)
    assert [epoch["epoch"] for epoch in epochs] == list(range(5))


@pytest.mark.parametrize("when", ["the file is flushed", "it has its name"])
def test_an_interrupt_waits_until_a_checkpoint_is_written(when, shallow, tmp_path, monkeypatch):
    """Also at the end of an epoch, when no step runs."""
    whole, _ = fit(shallow[0])
    flush, flushed = os.fsync, []

    def interrupted(descriptor):
        flushed.append(descriptor)
        if len(flushed) == 5 + (when == "it has its name"):  # of the third checkpoint
            os.kill(os.getpid(), signal.SIGINT)
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000008.safetensors",
        "step-000000012.safetensors",
    ]
    resumed, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    require_same(whole, resumed)


def test_an_interrupt_while_validating_leaves_a_checkpoint(shallow, tmp_path, monkeypatch):
    counts = shallow[0]
    cells, valid = counts[np.arange(300)], counts[np.arange(300, 400)]
    whole, _ = fit(cells, valid)
    measure, calls = Validation.measure, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(cells, valid, Checkpoints(tmp_path, "999s"))
    assert len(list(tmp_path.iterdir())) == 1
    resumed, _ = fit(cells, valid, Checkpoints(tmp_path, "999s"))
    require_same(whole, resumed)


def test_the_interval_is_epochs_or_seconds():
    assert interval(10) == (10, "epochs")
    assert interval("10") == (10, "epochs")
    assert interval("90s") == (90, "s")
    assert interval("1.5 s") == (1.5, "s")
    assert interval(None) is None
    for wrong in (0, -1, "0s", "1.5", "s", "ten", ""):
        with pytest.raises(InputError, match=r"train\.checkpoint_every"):
            interval(wrong)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*warm-up is longer.*")
        yield


def test_a_resumed_fit_does_not_search_again(shallow, tmp_path, monkeypatch):
    whole, _ = fit(shallow[0])
    write, written = Checkpoints.write, []

    def interrupted(self, *arguments):
        write(self, *arguments)
        written.append(None)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    monkeypatch.setattr(training, "begin", None)
    resumed, _ = fit(shallow[0], checkpoints=Checkpoints(tmp_path, 1))
    require_same(whole, resumed)
