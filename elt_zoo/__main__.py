"""`python -m elt_zoo` is `elt-zoo`."""

from .commands import main

if __name__ == "__main__":
    main()
