"""``python -m topicell`` is the same as ``topicell``."""

from topicell.cli import main

if __name__ == "__main__":
    main()
