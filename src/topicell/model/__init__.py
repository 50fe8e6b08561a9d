"""Models: their definition, their training, and saved fits."""
