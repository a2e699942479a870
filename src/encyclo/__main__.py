"""`python -m encyclo`: the same as the command `encyclo`."""

from encyclo.cli import main

if __name__ == "__main__":
    main()
