"""The former module of `topicell.counts`; models that were registered then still import it."""

from topicell.counts import Counts, as_counts

__all__ = ["Counts", "as_counts"]
