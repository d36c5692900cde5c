import importlib
from types import ModuleType


def optional_import(module: str, *, extra: str = "data") -> ModuleType:
    """A module of one of the package's optional extras.

    **Raises:** `ImportError` that says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"This needs {module}, which is not installed: pip install 'elt_zoo[{extra}]'.") from error
