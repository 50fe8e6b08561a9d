"""The earlier place of `topicell.counts`; models that were registered then import it."""

from topicell.counts import Counts, as_counts

__all__ = ["Counts", "as_counts"]
