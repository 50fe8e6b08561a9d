"""AmortizedLDA of scvi-tools."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from topicell.model.external.library import Fitted, Settings


def lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Fit amortized LDA of scvi-tools, on the CPU, to all cells."""
    import anndata
    import scvi

    def cells(x: sp.csr_matrix) -> Any:
        adata = anndata.AnnData(x.astype(np.float32))
        adata.obs_names = adata.obs_names.astype(str)
        scvi.model.AmortizedLDA.setup_anndata(adata)
        return adata

    with _scvi_process(settings.seed):
        fitted = scvi.model.AmortizedLDA(
            cells(x_NG),
            n_topics=settings.n_topics,
            cell_topic_prior=settings.cell_topic_prior,
            topic_feature_prior=settings.topic_gene_prior,
        )
        fitted.train(
            max_epochs=settings.passes,
            # Use its own batch size, but avoid a last mini-batch of one cell, which batch norm does
            # not accept.
            batch_size=next(size for size in itertools.count(128) if x_NG.shape[0] % size != 1),
            train_size=1.0,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=False,
            enable_checkpointing=False,
        )
        weight_KG = fitted.get_feature_by_topic().to_numpy().T

    def infer(x: sp.csr_matrix) -> np.ndarray:
        # scvi-tools computes means over random draws.
        torch.manual_seed(settings.seed)
        theta_NK: np.ndarray = fitted.get_latent_representation(cells(x)).to_numpy()
        return theta_NK

    return Fitted(weight_KG, infer)


@contextlib.contextmanager
def _scvi_process(seed: int) -> Iterator[None]:
    """Seed scvi-tools, restore the settings that this changes, and let interrupts pass."""
    import scvi

    names = ("XLA_FLAGS", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    cudnn = torch.backends.cudnn
    before = {name: os.environ.get(name) for name in names}
    flags, seed_before = (cudnn.deterministic, cudnn.benchmark), scvi.settings.seed
    on_interrupt = signal.getsignal(signal.SIGINT)
    scvi.settings.seed = seed
    try:
        yield
    except SystemExit as error:
        # If Lightning is interrupted, it ends the process, and ignores all further interrupts.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from error
    finally:
        scvi.settings.seed = seed_before
        cudnn.deterministic, cudnn.benchmark = flags
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
