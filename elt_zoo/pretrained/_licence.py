class LicenceWarning(UserWarning):
    """Weights whose licence restricts their use have been fetched or loaded."""
