"""The figures of the report: arrays in, a matplotlib figure out.

Every topic has one colour, `topic_colors`, in every figure. Nothing here touches pyplot or any
other global state, so figures can be drawn in any process and thread.
"""

from topicell.report.figures.drawing import MISSING, topic_colors
from topicell.report.figures.maps import umap_by_category, umap_by_topic
from topicell.report.figures.topics import structure_plot, top_genes
from topicell.report.figures.training import gap_histogram, training_curves

__all__ = [
    "MISSING",
    "gap_histogram",
    "structure_plot",
    "top_genes",
    "topic_colors",
    "training_curves",
    "umap_by_category",
    "umap_by_topic",
]
