"""From "I'd rather have this one" to better policies: preference learning for language models and control."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'rather' has no attribute {name!r}")
    from importlib.metadata import version

    return version("rather")
