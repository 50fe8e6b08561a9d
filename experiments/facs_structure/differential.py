"""Check whether differential expression of topics finds the markers of sorted blood cells.

    python experiments/facs_structure/differential.py

Fits six topics to pbmc_facs like experiment=facs_structure, and compares the topics for each gene;
then it does the same with the topic proportions of the published fit. For each sorted population it
uses the most typical topic. Writes differential_markers.csv (one row per fit and marker) next to
this file, and prints it with the ten first genes of each topic and the time.

Ranks are among all genes that are higher in the topic than in every other topic at q < 0.05: by
fold change relative to the nearest topic, by the same in standard errors (z), and by p-value. A
missing rank means that the gene is not significant.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

import topicell
from topicell.data.catalogue import published_facs_fit
from topicell.evaluation.differential import differential_expression

HERE = Path(__file__).parent
MARKERS = {
    "B cell": ["CD79A", "MS4A1", "CD79B"],
    "NK cell": ["GNLY", "NKG7", "GZMB", "PRF1"],
    "CD14+": ["LYZ", "S100A9", "CD14"],
    "T cell": ["CD3D", "CD3E", "IL7R", "CD8B"],
    "CD34+": ["CD34", "SPINK2"],
}


def main() -> None:
    adata = topicell.load_dataset("pbmc_facs")
    x, genes, population = adata.layers["counts"], adata.var_names, adata.obs["subpop"]
    fit = topicell.fit(
        adata, n_topics=6, init="background", epochs=30, learning_rate=0.05, progress=False
    )
    published = published_facs_fit()[1].loc[adata.obs_names]
    rows = []
    for name, theta in (
        ("topicell", fit.cell_topics().loc[adata.obs_names].to_numpy()),
        ("published", published.to_numpy()),
    ):
        start = time.perf_counter()
        found = differential_expression(x, theta)
        seconds = time.perf_counter() - start
        print(f"{name}: {x.shape[0]} cells × {x.shape[1]} genes in {seconds:.1f} s")
        z = found.lfc_KG / found.se_KG
        higher = (found.q_KG < 0.05) & (found.lfc_KG > 0)
        print("  higher than in every other topic:", higher.sum(1), "genes of each topic")
        for label, markers in MARKERS.items():
            typical = theta[population == label].mean(0) - theta.mean(0)
            k = int(typical.argmax())
            by_lfc = pd.Series(found.lfc_KG[k], genes)[higher[k]].rank(ascending=False)
            by_z = pd.Series(z[k], genes)[higher[k]].rank(ascending=False)
            by_p = pd.Series(found.p_KG[k], genes)[higher[k]].rank(method="min")
            print(f"  {label}, topic {k}, by lfc:", *by_lfc.nsmallest(10).index)
            print(f"  {label}, topic {k}, by p:  ", *by_p.nsmallest(10).index)
            for marker in markers:
                g = genes.get_loc(marker)
                rows.append(
                    {
                        "fit": name,
                        "population": label,
                        "topic": k,
                        "gene": marker,
                        "counts": int(x[:, g].sum()),
                        "lfc": found.lfc_KG[k, g],
                        "se": found.se_KG[k, g],
                        "nearest": found.nearest_KG[k, g],
                        "q": found.q_KG[k, g],
                        "n_higher": int(higher[k].sum()),
                        "rank_lfc": by_lfc.get(marker, np.nan),
                        "rank_z": by_z.get(marker, np.nan),
                        "rank_p": by_p.get(marker, np.nan),
                    }
                )
    table = pd.DataFrame(rows).astype({"rank_lfc": "Int64", "rank_z": "Int64", "rank_p": "Int64"})
    table.to_csv(HERE / "differential_markers.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
