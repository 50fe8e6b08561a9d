"""TopicFit: a fitted model, what is read off it — θ, β, ELBO, perplexity — and its form on disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from topicell.config import Init, InputError, ModelConfig
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.evaluation.ranking import top_genes
from topicell.model.counts import Counts
from topicell.model.estimates import chunks, elbo_terms, mean_beta, mean_theta
from topicell.model.program import TopicProgram

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of the saved form."""


class TopicFit:
    """A fitted model: R replicates, their topics ordered by mean proportion, largest first.

    Methods take cells as an AnnData or as `Counts`, match genes by name, and describe the
    replicate shown unless told another; ``replicate`` counts from 0. Estimates are seeded.

    Attributes
    ----------
    program
        The Pyro program with its trained weights.
    model
        Its settings.
    genes
        Names of the modelled genes, shape (G,).
    order_RK
        Topic k as shown is topic ``order_RK[r, k]`` of the program.
    selection_R
        ELBO by which the replicate shown was chosen: nats per validation cell (per training cell
        where there was no validation set).
    n_train
        Number of training cells.
    history
        Metrics of each epoch, named as in the tracker.
    cells, held_out
        The cells that methods describe when they are given none: those of the fit, and those
        that were held out of it (None after loading).
    """

    def __init__(
        self,
        program: TopicProgram,
        *,
        model: ModelConfig,
        genes: np.ndarray,
        order_RK: np.ndarray,
        selection_R: np.ndarray,
        n_train: int,
        history: list[dict[str, float]],
        cells: Counts | None = None,
        held_out: Counts | None = None,
    ) -> None:
        self.program = program.eval()
        self.model = model
        self.genes = np.asarray(genes, dtype=object)
        self.order_RK = order_RK
        self.selection_R = selection_R
        self.n_train = n_train
        self.history = history
        self.cells = cells
        self.held_out = held_out

    @classmethod
    def of(
        cls,
        program: TopicProgram,
        counts: Counts,
        valid: Counts | None,
        model: ModelConfig,
        *,
        seed: int,
        history: list[dict[str, float]],
    ) -> Self:
        """Order the topics of a trained program and choose the replicate to show."""
        program.eval()
        # Means over all cells: few samples of each are plenty.
        theta_RNK = mean_theta(program, chunks(program, counts.x), n_samples=16, seed=seed)
        judged = valid if valid is not None and valid.n_cells else counts
        terms = elbo_terms(program, chunks(program, judged.x), n_samples=2, seed=seed)
        return cls(
            program,
            model=model,
            genes=counts.genes,
            order_RK=np.argsort(-theta_RNK.mean(1), axis=1, kind="stable"),
            selection_R=terms.per_cell(counts.n_cells),
            n_train=counts.n_cells,
            history=history,
            cells=counts,
            held_out=valid,
        )

    @property
    def n_replicates(self) -> int:
        """R."""
        return self.program.n_replicates

    @property
    def n_topics(self) -> int:
        """K."""
        return self.program.n_topics

    @property
    def shown(self) -> int:
        """The replicate shown: the one of the highest ELBO on validation cells."""
        return int(np.argmax(self.selection_R))

    @property
    def topic_names(self) -> list[str]:
        """``topic_0`` … in order of mean proportion."""
        return [f"topic_{k}" for k in range(self.n_topics)]

    def theta(self, data: Any = None, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Posterior mean topic proportions of cells, all replicates, shape (R, N, K)."""
        _require_samples(n_samples)
        cells = chunks(self.program, self._counts(data).x)
        theta_RNK = mean_theta(self.program, cells, n_samples=n_samples, seed=seed)
        return np.take_along_axis(theta_RNK, self.order_RK[:, None, :], axis=2)

    def beta(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Posterior mean gene proportions of topics, all replicates, shape (R, K, G)."""
        _require_samples(n_samples)
        beta_RKG = mean_beta(self.program, n_samples=n_samples, seed=seed)
        return np.take_along_axis(beta_RKG, self.order_RK[:, :, None], axis=1)

    def cell_topics(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        n_samples: int = 256,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Topic proportions, cells × topics; rows sum to 1."""
        import pandas as pd

        counts = self._counts(data, layer)
        theta_NK = self.theta(counts, n_samples=n_samples, seed=seed)[self._replicate(replicate)]
        return pd.DataFrame(theta_NK, index=counts.cells, columns=self.topic_names)

    def gene_topics(
        self, *, replicate: int | None = None, n_samples: int = 256, seed: int = 0
    ) -> pd.DataFrame:
        """Gene proportions, genes × topics; columns sum to 1."""
        import pandas as pd

        beta_KG = self.beta(n_samples=n_samples, seed=seed)[self._replicate(replicate)]
        return pd.DataFrame(beta_KG.T, index=self.genes, columns=self.topic_names)

    def top_genes(
        self, n: int = 20, *, replicate: int | None = None, n_samples: int = 256, seed: int = 0
    ) -> pd.DataFrame:
        """The tutorial's ranked table: by rank, for each topic its gene and the proportion.

        Columns are ``topic_0``, ``topic_0_prop``, …; the index is the rank, from 0.
        """
        import pandas as pd

        beta_KG = self.beta(n_samples=n_samples, seed=seed)[self._replicate(replicate)]
        genes_KT = top_genes(beta_KG, n)
        table = {}
        for name, genes, proportions in zip(self.topic_names, genes_KT, beta_KG, strict=True):
            table[name] = self.genes[genes]
            table[f"{name}_prop"] = proportions[genes]
        return pd.DataFrame(table).rename_axis("rank")

    def transform(
        self,
        data: Any,
        *,
        layer: str | None = None,
        fill_missing: bool = False,
        replicate: int | None = None,
        n_samples: int = 256,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Topic proportions of new cells, cells × topics.

        Parameters
        ----------
        data
            AnnData or `Counts`; genes are matched by name, and those not modelled are left out.
        layer
            Where the counts of an AnnData are.
        fill_missing
            Count modelled genes that `data` lacks as zero, instead of refusing.
        replicate, n_samples, seed
            As everywhere.

        Raises
        ------
        InputError
            Modelled genes are missing, or the matrix does not hold counts.

        Warns
        -----
        UserWarning
            Missing genes were counted as zero, or cells have no count in the model's genes.
        """
        given = Counts.of(data, layer)
        counts = given.with_genes(list(self.genes), fill_missing=fill_missing)
        n_missing = len(set(self.genes) - set(given.genes))
        if n_missing:
            warnings.warn(
                f"{n_missing} of the model's {len(self.genes)} genes are not in the data and count "
                "as zero",
                stacklevel=2,
            )
        n_empty = int((np.diff(counts.x.indptr) == 0).sum())
        if n_empty:
            warnings.warn(
                f"{n_empty} cells have no count in the model's genes: their topic proportions say "
                "nothing",
                stacklevel=2,
            )
        return self.cell_topics(counts, replicate=replicate, n_samples=n_samples, seed=seed)

    def elbo_by_replicate(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 10, seed: int = 0
    ) -> np.ndarray:
        """ELBO of cells under each replicate, nats per cell with KL weight 1, shape (R,)."""
        _require_samples(n_samples)
        cells = chunks(self.program, self._counts(data, layer).x)
        terms = elbo_terms(self.program, cells, n_samples=n_samples, seed=seed)
        return terms.per_cell(self.n_train)

    def elbo(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        n_samples: int = 10,
        seed: int = 0,
    ) -> float:
        """ELBO in nats per cell, KL weight 1; higher is better. Of the fit's cells by default."""
        by_replicate = self.elbo_by_replicate(data, layer=layer, n_samples=n_samples, seed=seed)
        return float(by_replicate[self._replicate(replicate)])

    def perplexity_by_replicate(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        folded: bool = True,
        n_samples: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Document-completion perplexity under each replicate, per count, shape (R,).

        Each cell's counts are thinned into halves; θ comes from the one, by EM with β fixed
        (`folded`: the same for every kind of model) or from the encoder, and the other is
        predicted (Wallach et al. 2009).
        """
        if data is None and self.held_out is not None:
            data = self.held_out
        observed, completed = thin(self._counts(data, layer).x, seed)
        beta_RKG = self.beta(n_samples=n_samples, seed=seed)
        if folded:
            theta_RNK = np.stack([fold_in(observed, beta_KG) for beta_KG in beta_RKG])
        else:
            cells = np.arange(observed.shape[0]).astype(object)
            half = Counts(observed, cells, self.genes)
            theta_RNK = self.theta(half, n_samples=n_samples, seed=seed)
        return np.array(
            [
                perplexity(completed, theta_NK, beta_KG)
                for theta_NK, beta_KG in zip(theta_RNK, beta_RKG, strict=True)
            ]
        )

    def perplexity(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        folded: bool = True,
        n_samples: int = 256,
        seed: int = 0,
    ) -> float:
        """Document-completion perplexity per count, of the held-out cells by default.

        Lower is better; it is never below 1, and uniform topics give the number of genes.
        """
        by_replicate = self.perplexity_by_replicate(
            data, layer=layer, folded=folded, n_samples=n_samples, seed=seed
        )
        return float(by_replicate[self._replicate(replicate)])

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder: weights as safetensors, the rest as JSON, no pickle.

        The folder appears whole or not at all.

        Raises
        ------
        InputError
            The folder exists and `overwrite` is not set.
        """
        import safetensors.torch

        weights = {
            name: value.cpu().contiguous() for name, value in self.program.state_dict().items()
        }
        document = {
            "format": FORMAT,
            "model": asdict(self.model) | {"init": self.model.init.value},
            "n_replicates": self.n_replicates,
            "genes": [str(gene) for gene in self.genes],
            "order": self.order_RK.tolist(),
            "selection": self.selection_R.tolist(),
            "n_train": self.n_train,
            "history": self.history,
            "versions": {
                name: version(name) for name in ("topicell", "torch", "pyro-ppl", "numpy")
            },
        }

        def write(folder: Path) -> None:
            safetensors.torch.save_file(weights, folder / "weights.safetensors")
            (folder / "model.json").write_text(json.dumps(document, indent=1))

        return write_folder(path, write, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model written by `save`; it holds no cells.

        Raises
        ------
        InputError
            The folder is not a saved model, or is of a later format.
        """
        import safetensors.torch

        path = Path(path)
        try:
            document = json.loads((path / "model.json").read_text())
            weights = safetensors.torch.load_file(path / "weights.safetensors")
            if document["format"] > FORMAT:
                raise InputError(f"saved by a later topicell, in format {document['format']}")
            model = ModelConfig(**document["model"] | {"init": Init(document["model"]["init"])})
            program = TopicProgram(len(document["genes"]), document["n_replicates"], model)
            program.load_state_dict(weights)
            return cls(
                program,
                model=model,
                genes=np.array(document["genes"], dtype=object),
                order_RK=np.array(document["order"]),
                selection_R=np.array(document["selection"]),
                n_train=document["n_train"],
                history=document["history"],
            )
        except (
            *(OSError, ValueError, KeyError, TypeError, RuntimeError),
            safetensors.SafetensorError,
        ) as error:
            what = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a saved model ({type(error).__name__}: {what}); it needs "
                "model.json and weights.safetensors, as written by save"
            ) from error

    def _replicate(self, replicate: int | None) -> int:
        if replicate is None:
            return self.shown
        if not 0 <= replicate < self.n_replicates:
            raise InputError(
                f"replicate = {replicate}: this fit has replicates 0 to {self.n_replicates - 1}"
            )
        return replicate

    def _counts(self, data: Any, layer: str | None = None) -> Counts:
        if data is None:
            if self.cells is None:
                raise InputError("a loaded fit holds no cells; pass the cells as first argument")
            return self.cells
        return Counts.of(data, layer).with_genes(list(self.genes))


def _require_samples(n_samples: int) -> None:
    if n_samples < 1:
        raise InputError(f"n_samples = {n_samples}: an estimate needs at least 1")


def write_folder(path: str | Path, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """Fill a new folder through `write`, and put it in place only when it is whole."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass overwrite=True, or another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        # mkdtemp keeps the folder to its owner; a saved model is as readable as its neighbours.
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o777 & ~umask)
        write(unfinished)
        if path.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            path.replace(replaced / path.name)
            unfinished.replace(path)
            shutil.rmtree(replaced)
        else:
            unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path
