"""Puts the configurations and the bundled models into the wheel, as vec_pipeline/bundled."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLED = "vec_pipeline/bundled"
MODELS = "models/demo/"  # where the demo configuration finds them in a checkout


class Bundle(BuildHookInterface):  # type: ignore[type-arg]
    """Adds what lies beside the package in a checkout. An editable installation finds it there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        self.scratch = TemporaryDirectory()
        files = build_data["force_include"]
        for config in (root / "config.yaml", *(root / "configs").glob("*.yaml")):
            name = config.relative_to(root).as_posix()
            rewritten = Path(self.scratch.name, config.name)
            # Model paths are relative to the folder that holds the package.
            rewritten.write_text(config.read_text("utf-8").replace(MODELS, f"{BUNDLED}/{MODELS}"), "utf-8")
            files[str(rewritten)] = f"{BUNDLED}/{name}"
        for file in (root / MODELS).glob("[a-z]*/**/*"):
            if file.is_file() and file.parent.name != "fonts":  # those are for training
                files[str(file)] = f"{BUNDLED}/{file.relative_to(root).as_posix()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.scratch.cleanup()
