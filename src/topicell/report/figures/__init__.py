"""The figures of the report: functions from arrays to a matplotlib figure.

A topic has the same colour in all figures (`topic_colors`); labels and clusters have other colours
(`category_colors`). pyplot is not used, so figures can be drawn in any process and thread; `save`
and `as_svg` write them.
"""

from topicell.report.figures.batches import batch_factors
from topicell.report.figures.conditions import condition_effects
from topicell.report.figures.differential import volcano, volcanoes
from topicell.report.figures.drawing import (
    MISSING,
    Topics,
    as_svg,
    category_codes,
    category_colors,
    marked,
    save,
    topic_colors,
)
from topicell.report.figures.genes import (
    enrichment_bars,
    top_genes,
    top_genes_dots,
    top_genes_heatmap,
)
from topicell.report.figures.maps import umap_by_category, umap_by_topic, umap_by_value
from topicell.report.figures.matrices import (
    prior_correlation,
    stability_matrix,
    topic_by_label,
    topic_correlation,
    topic_similarity,
)
from topicell.report.figures.samples import samples
from topicell.report.figures.thumbnail import thumbnail
from topicell.report.figures.topics import structure_plot
from topicell.report.figures.training import gap_histogram, training_curves

__all__ = [
    "MISSING",
    "Topics",
    "as_svg",
    "batch_factors",
    "category_codes",
    "category_colors",
    "condition_effects",
    "enrichment_bars",
    "gap_histogram",
    "marked",
    "prior_correlation",
    "samples",
    "save",
    "stability_matrix",
    "structure_plot",
    "thumbnail",
    "top_genes",
    "top_genes_dots",
    "top_genes_heatmap",
    "topic_by_label",
    "topic_colors",
    "topic_correlation",
    "topic_similarity",
    "training_curves",
    "umap_by_category",
    "umap_by_topic",
    "umap_by_value",
    "volcano",
    "volcanoes",
]
