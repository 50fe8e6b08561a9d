"""Run one method of the benchmark in a separate process, and print its time and scores as JSON.

    python experiments/speed/fits.py METHOD counts.npz --budget 3 --out topics.npy

`benchmark.py` calls it. The time includes everything from the counts to the fitted model, in the
first fit of the process. It does not include imports, nor computing the topics from the model.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

Fit = Callable[[], Any]
Read = Callable[[Any], tuple[np.ndarray, list[float]]]
"""Returns the topics of a fitted model as gene weights (R, K, G), and ELBOs in nats per cell."""


def topicell(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit topicell's defaults with `budget` epochs, with or without the search."""
    from topicell.config import Engine, ModelConfig, TrainConfig
    from topicell.counts import Counts
    from topicell.model.training import train

    cells, genes = (np.arange(n).astype(str).astype(object) for n in x.shape)
    config = TrainConfig(
        n_replicates=args.replicates,
        epochs=args.budget,
        engine=Engine(args.engine),
        search=args.search == "on",
        threads=args.threads,
        progress=False,
    )
    model = ModelConfig(n_topics=args.topics)
    return (
        lambda: train(Counts(x, cells, genes), None, model, config, seed=seed),
        lambda fit: (fit.beta(n_samples=64), fit.elbo_by_replicate().tolist()),
    )


def scvi(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit scvi-tools' AmortizedLDA with its defaults; `budget` epochs, 1,000 by default."""
    import anndata
    import scvi as library
    import torch

    torch.set_num_threads(args.threads)
    library.settings.seed = seed
    adata = anndata.AnnData(x)

    def fit() -> Any:
        library.model.AmortizedLDA.setup_anndata(adata)
        model = library.model.AmortizedLDA(adata, n_topics=args.topics)
        model.train(
            max_epochs=args.budget, train_size=1.0, enable_progress_bar=False, accelerator="cpu"
        )
        return model

    # Its get_elbo returns Pyro's loss of all cells, which is minus the ELBO.
    return fit, lambda model: (
        model.get_feature_by_topic().to_numpy().T[None],
        [-abs(float(model.get_elbo())) / x.shape[0]],
    )


def sklearn_lda(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit scikit-learn's LDA, batch or online; `budget` passes over the cells."""
    from sklearn.decomposition import LatentDirichletAllocation

    model = LatentDirichletAllocation(
        args.topics,
        learning_method=args.learning_method,
        max_iter=args.budget,
        batch_size=128,
        n_jobs=args.threads if args.threads > 1 else None,
        random_state=seed,
    )
    return lambda: model.fit(x), lambda fitted: (fitted.components_[None], [])


def sklearn_nmf(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit scikit-learn's NMF with the KL loss; at most `budget` multiplicative updates."""
    from sklearn.decomposition import NMF

    model = NMF(
        args.topics,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvda",
        max_iter=args.budget,
        random_state=seed,
    )
    return lambda: model.fit(x), lambda fitted: (fitted.components_[None] + 1e-9, [])


def gensim(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit gensim's online LDA; `budget` passes over the cells."""
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel, LdaMulticore

    settings = {
        "num_topics": args.topics,
        "passes": args.budget,
        "random_state": seed,
        "id2word": {gene: str(gene) for gene in range(x.shape[1])},
    }

    def fit() -> Any:
        corpus = Sparse2Corpus(x, documents_columns=False)
        if args.threads > 1:
            return LdaMulticore(corpus, workers=args.threads, **settings)
        return LdaModel(corpus, **settings)

    return fit, lambda model: (model.get_topics()[None], [])


def tomotopy(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Fit by tomotopy's collapsed Gibbs sampler; `budget` iterations."""
    import tomotopy as library

    genes = np.arange(x.shape[1]).astype(str)

    def fit() -> Any:
        model = library.LDAModel(k=args.topics, seed=seed + 1)
        for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
            counts = x.data[start:stop].astype(int)
            model.add_doc(genes[x.indices[start:stop]].repeat(counts).tolist())
        model.train(args.budget, workers=args.threads)
        return model

    def read(model: Any) -> tuple[np.ndarray, list[float]]:
        topics = np.full((args.topics, len(genes)), 1e-9)
        order = [int(gene) for gene in model.used_vocabs]
        for k in range(args.topics):
            topics[k, order] = model.get_topic_word_dist(k)
        return topics[None], []

    return fit, read


def limit(x: sp.csr_matrix, args: Namespace, seed: int) -> tuple[Fit, Read]:
    """Compute only the five sparse products of a step, over `budget` epochs."""
    import torch

    from topicell.model.minibatches import shuffled, sparse_batches

    torch.set_num_threads(args.threads)
    parts = shuffled(x.shape[0], -(-x.shape[0] // 128), np.random.default_rng(seed))
    weight_GH, beta_KG = torch.rand(x.shape[1], 128), torch.rand(args.topics, x.shape[1])
    beta_GK = beta_KG.T.contiguous()
    work = [
        (
            batch.by_cell.with_values(batch.inputs),
            batch.by_gene.with_values(batch.inputs_by_gene),
            torch.rand(batch.n_cells, 128),
            torch.rand(batch.n_cells, args.topics),
        )
        for batch in sparse_batches(x, parts, 1e3)
    ]

    def fit() -> None:
        for _ in range(args.budget):
            for x_BG, x_GB, h_BH, theta_BK in work:
                # The encoder's first layer and its gradient.
                torch.addmm(h_BH, x_BG, weight_GH, beta=0)
                torch.addmm(weight_GH, x_GB, h_BH, beta=0)
                # The likelihood at the non-zeros, and its gradients.
                torch.sparse.sampled_addmm(x_BG, theta_BK, beta_KG, beta=0.0)
                torch.addmm(theta_BK, x_BG, beta_GK, beta=0)
                torch.addmm(beta_GK, x_GB, theta_BK, beta=0)

    return fit, lambda _: (beta_KG[None].numpy(), [])


METHODS = {
    method.__name__: method
    for method in (topicell, scvi, sklearn_lda, sklearn_nmf, gensim, tomotopy, limit)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=int, required=True)
    parser.add_argument("--topics", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--replicates", type=int, default=1)
    parser.add_argument("--engine", default="fused")
    parser.add_argument("--learning-method", default="batch")
    parser.add_argument("--search", choices=["on", "off"], default="on")
    args = parser.parse_args()
    x = sp.load_npz(args.counts)
    seconds: list[float] = []
    topics: list[np.ndarray] = []
    elbos: list[float] = []
    for seed in args.seeds:
        fit, read = METHODS[args.method](x, args, seed)
        before = peak_mib()
        started = time.perf_counter()
        fitted = fit()
        seconds.append(time.perf_counter() - started)
        after = peak_mib()
        weights_RKG, elbo = read(fitted)
        topics.append(weights_RKG / weights_RKG.sum(-1, keepdims=True))
        elbos += elbo
        if seed == args.seeds[0]:
            memory = {"mib_before": before, "peak_mib": after}
    np.save(args.out, np.concatenate(topics))
    print(json.dumps({"seconds": seconds, "elbo": elbos} | memory))


def peak_mib() -> float:
    """Return the largest resident memory so far; getrusage on Linux would include the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
