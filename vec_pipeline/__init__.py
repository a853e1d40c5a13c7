"""A resumable worker that annotates a folder of images on one GPU."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["load_annotations"]


def __getattr__(name: str) -> Any:
    """Import on use, so that `--help` need not pay for numpy."""
    if name == "load_annotations":
        from vec_pipeline.annotations import load_annotations

        return load_annotations
    raise AttributeError(f"module {__name__} has no attribute {name}")
