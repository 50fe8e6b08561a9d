"""Files of a stored run for other programs, one module for each program or kind of file."""
