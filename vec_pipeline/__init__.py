"""A resumable worker that annotates a folder of images on one GPU."""

import sys
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036 (for `python3 run.py` from a checkout, which pip has not checked)
    sys.exit("vec_pipeline needs Python 3.11 to 3.13, and this is {}.{}".format(*sys.version_info))

__version__ = "0.3.0"
__all__ = ["load_annotations"]


def __getattr__(name: str) -> Any:
    """Import on use, so that `--help` need not pay for numpy."""
    if name == "load_annotations":
        from vec_pipeline.annotations import load_annotations

        return load_annotations
    raise AttributeError(f"module {__name__} has no attribute {name}")
