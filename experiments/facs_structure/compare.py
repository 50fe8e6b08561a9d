"""Compare six topics of topicell with the published fit of the same cells.

    topicell train experiment=facs_structure hydra.run.dir=facs
    python experiments/facs_structure/compare.py facs

Writes comparison.csv (one row per topic) and structure.png next to this file, and prints the scores
of both fits on the same cells.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from PIL import Image

from topicell.data.catalogue import load_pbmc_facs_test, published_facs_fit
from topicell.evaluation.perplexity import fold_in, perplexity, thin, unigram_perplexity
from topicell.evaluation.stability import match_topics
from topicell.report.figures import structure_plot

HERE = Path(__file__).parent


def main(run: str) -> None:
    adata = anndata.read_h5ad(Path(run) / "adata.h5ad")
    F, L = published_facs_fit()
    genes, cells = adata.var_names, adata.obs_names
    theta, beta = adata.obsm["X_lda"], adata.varm["lda_topics"].T
    published_beta = F.loc[genes].to_numpy().T
    published_beta = published_beta / published_beta.sum(1, keepdims=True)
    matching = match_topics(beta, published_beta)
    order = matching.permutation
    published_beta, published_theta = published_beta[order], L.loc[cells].to_numpy()[:, order]

    table = pd.DataFrame(
        {
            "published": [F.columns[k] for k in order],
            "beta_cosine": matching.cosine,
            "beta_correlation": [
                np.corrcoef(a, b)[0, 1] for a, b in zip(beta, published_beta, strict=True)
            ],
            "theta_correlation": [
                np.corrcoef(a, b)[0, 1] for a, b in zip(theta.T, published_theta.T, strict=True)
            ],
            "mean_proportion": theta.mean(0),
            "published_mean_proportion": published_theta.mean(0),
            "theta_mean_absolute_difference": np.abs(theta - published_theta).mean(0),
        }
    ).rename_axis("topic")
    table.to_csv(HERE / "comparison.csv", float_format="%.4f")
    print(table.to_string(float_format="%.3f"))

    test = load_pbmc_facs_test()
    x = test.layers["counts"][:, test.var_names.get_indexer(genes)]
    halves = [thin(x, seed) for seed in range(5)]
    for name, topics in (("topicell", beta), ("published", published_beta)):
        # A maximum-likelihood β has exact zeros; the same floor for both keeps the score finite.
        topics = np.maximum(topics, 1e-9)
        topics = topics / topics.sum(1, keepdims=True)
        scores = [perplexity(b, fold_in(a, topics), topics) for a, b in halves]
        print(
            f"{name}: folded perplexity of the 100 held-out cells "
            f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} over 5 thinnings"
        )
    frequency = np.asarray(adata.layers["counts"].sum(0)).ravel() + 0.5
    print(f"unigram: {unigram_perplexity(halves[0][1], frequency / frequency.sum()):.1f}")

    pictures = []
    for title, proportions in (("topicell", theta), ("published fit", published_theta)):
        figure = structure_plot(proportions, adata.obs["celltype"], seed=0)
        figure.suptitle(f"Six topics of sorted blood cells: {title}", x=0.012, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=80)
        pictures.append(Image.open(buffer).convert("RGB"))
    width = max(picture.width for picture in pictures)
    stacked = Image.new("RGB", (width, sum(p.height for p in pictures)), "white")
    stacked.paste(pictures[0], (0, 0))
    stacked.paste(pictures[1], (0, pictures[0].height))
    stacked.quantize(128).save(HERE / "structure.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
