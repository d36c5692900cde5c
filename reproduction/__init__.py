"""The paper's comparisons repeated in the small: `python -m reproduction`."""
