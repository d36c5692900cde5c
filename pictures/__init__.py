"""The pictures of the documentation that are samples of models: `python -m pictures` makes them again."""
