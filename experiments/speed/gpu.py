"""Check the agreement of CUDA with the CPU, and measure the time of the tutorial's fit on a GPU.

    python experiments/speed/gpu.py                # needs a CUDA device; writes gpu.json
    python experiments/speed/gpu.py --device cpu --epochs 2 # tests the script

Needs only numpy, scipy, torch and pyro (put `src` on PYTHONPATH if topicell is not installed). The
simulated cells have the number and the counts of the tutorial's cells, 6,855 × 1,000 with ten
topics, so no download is needed. It compares the terms of the ELBO on the same noise, and the
results of whole fits, with the CPU, in float32, tf32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from topicell.config import Device, Engine, ModelConfig, Precision, TrainConfig
from topicell.counts import Counts
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.model.engines import matrix_precision
from topicell.model.minibatches import DenseBatch
from topicell.model.mixture import log_likelihood
from topicell.model.objective import encode
from topicell.model.priors import logistic_normal
from topicell.model.program import TopicProgram
from topicell.model.training import train

HERE = Path(__file__).parent
TOLERANCE = {Precision.float32: 1e-5, Precision.tf32: 2e-3, Precision.bfloat16: 2e-2}
"""Allowed relative difference from the CPU of an ELBO term of a mini-batch, on equal noise."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; to test the script, use --device cpu --epochs 2")
    x = draw_cells(6855 + 700)
    train_cells, (observed, completed) = counts(x[:6855]), thin(x[6855:], 0)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "epochs": args.epochs,
        "agreement": {},
        "fits": [],
    }
    precisions = list(Precision) if cuda else [Precision.float32]
    for precision in precisions:
        difference = difference_to_cpu(x[:128], device, precision)
        record["agreement"][precision.value] = difference
        assert difference <= TOLERANCE[precision], f"{precision}: {difference}"

    # (precision, engine, replicates, epochs); the CPU comes last, as the reference.
    plans = [(precision, Engine.fused, 1, args.epochs) for precision in precisions]
    plans += [(Precision.tf32, Engine.fused, n, args.epochs) for n in (4, 16)]
    plans += [(Precision.tf32, Engine.pyro, 1, max(args.epochs // 50, 1))]
    plans += [(precision, Engine.fused, 4, min(args.epochs, 20)) for precision in precisions]
    for precision, engine, replicates, epochs in plans:
        record["fits"].append(
            fit(
                train_cells,
                TrainConfig(
                    n_replicates=replicates,
                    epochs=epochs,
                    engine=engine,
                    search=False,
                    precision=precision,
                    device=Device(args.device),
                    progress=False,
                ),
                observed,
                completed,
                repeats=args.repeats if engine is Engine.fused else 1,
            )
        )
        print(record["fits"][-1], flush=True)
    reference = TrainConfig(
        n_replicates=4, epochs=20, search=False, device=Device.cpu, progress=False
    )
    record["cpu"] = fit(train_cells, reference, observed, completed, repeats=1)
    if cuda:
        for found in record["fits"]:
            if found["epochs"] == 20:
                for name in ("perplexity", "elbo"):
                    assert abs(found[name] / record["cpu"][name] - 1) < 5e-3, (name, found)
    text = json.dumps(record, indent=1)
    print(text)
    if cuda:
        (HERE / "gpu.json").write_text(text + "\n")


def draw_cells(n_cells: int) -> sp.csr_matrix:
    """Simulate ten topics over 1,000 genes, with about 2,000 counts per cell."""
    seeds = np.random.default_rng(0)
    beta_KG = seeds.dirichlet(np.full(1000, 0.05), 10)
    theta_NK = seeds.dirichlet(np.full(10, 0.1), n_cells)
    depth_N1 = seeds.lognormal(np.log(2000), 0.3, (n_cells, 1))
    return sp.csr_matrix(seeds.poisson(depth_N1 * (theta_NK @ beta_KG)).astype(np.float32))


def counts(x: sp.csr_matrix) -> Counts:
    cells, genes = (np.arange(n).astype(str).astype(object) for n in x.shape)
    return Counts(x, cells, genes)


def difference_to_cpu(x: sp.csr_matrix, device: torch.device, precision: Precision) -> float:
    """Return the largest relative difference of a term of the ELBO of a mini-batch."""
    torch.manual_seed(0)
    program = TopicProgram(x.shape[1], 4, ModelConfig(n_topics=10))
    topic_noise, cell_noise = torch.randn(4, 10, x.shape[1]), torch.randn(4, x.shape[0], 10)
    found = []
    for place in (torch.device("cpu"), device):
        program.to(place)
        batch = DenseBatch(torch.from_numpy(x.toarray()).to(place))
        with torch.no_grad(), matrix_precision(precision, place):
            beta_RKG, kl_topics = logistic_normal(
                program.topic_mean,
                program.topic_rho,
                topic_noise.to(place),
                program.topic_prior,
            )
            bfloat16 = precision is Precision.bfloat16 and place.type == "cuda"
            m_RBK, rho_RBK = encode(program, batch, bfloat16=bfloat16)
            theta_RBK, kl_cells = logistic_normal(
                m_RBK,
                rho_RBK,
                cell_noise.to(place),
                program.cell_prior,
            )
            nats = log_likelihood(batch, theta_RBK, beta_RKG)
        found.append([term.sum(-1).cpu() for term in (nats, kl_cells, kl_topics)])
    return max(float(((b - a) / a).abs().max()) for a, b in zip(*found, strict=True))


def fit(
    cells: Counts,
    config: TrainConfig,
    observed: sp.csr_matrix,
    completed: sp.csr_matrix,
    *,
    repeats: int,
) -> dict[str, Any]:
    """Return the median seconds of a whole fit with initialisation, and its scores."""
    seconds = []
    for seed in range(repeats):
        started = time.perf_counter()
        result = train(cells, None, ModelConfig(n_topics=10), config, seed=seed)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    beta_RKG = result.beta(n_samples=64)
    scores = [perplexity(completed, fold_in(observed, beta), beta) for beta in beta_RKG]
    return {
        "engine": config.engine.value,
        "precision": config.precision.value,
        "replicates": config.n_replicates,
        "epochs": config.epochs,
        "seconds": round(statistics.median(seconds), 3),
        "seconds_all": [round(value, 3) for value in seconds],
        "steps_per_second": round(
            config.epochs * -(-cells.n_cells // config.batch_size) / statistics.median(seconds)
        ),
        "perplexity": round(float(np.mean(scores)), 3),
        "elbo": round(float(result.elbo_by_replicate().mean()), 3),
    }


if __name__ == "__main__":
    main()
