"""``python -m alignkit``: the command line, where its script is not on the path."""

from alignkit.cli import main

if __name__ == "__main__":
    main()
