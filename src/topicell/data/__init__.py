"""Data: named data sets, files and simulated corpora, and their preparation for the model."""
