"""The model: its Pyro program, its training and what is read off its posterior."""
