import importlib
from types import ModuleType


def optional_import(module: str) -> ModuleType:
    """Imports a module of the optional extra `data`. **Raises:** `ImportError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Reading this needs {module}, which is not installed: pip install 'elt_zoo[data]'."
        ) from error
