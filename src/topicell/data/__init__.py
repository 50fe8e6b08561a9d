"""Data: named sets, files and simulated corpora, and what is done to them before the model."""
