"""Files of packages of npm that tests use: downloaded once by npm itself, and kept in pytest's cache.

Without npm or the network such tests are skipped, or fail where VEC_REQUIRE_NPM is set, as .ci/run does.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

DOWNLOAD_S = 180


def npm_file(config: pytest.Config, package: str, path: str) -> str:
    """The text of a file in a package such as `dclint@3.1.0`."""
    kept = config.cache.mkdir("npm") / f"{package.replace('/', '-')}.tgz"
    if not kept.exists():
        download(package, kept)
    with tarfile.open(kept) as archive:
        file = archive.extractfile(f"package/{path}")
        assert file
        return file.read().decode()


def download(package: str, target: Path) -> None:
    if not (npm := shutil.which("npm")):
        skip("npm is needed: install Node.js")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [npm, "pack", package, "--pack-destination", folder, "--ignore-scripts", "--fetch-retries=1"]
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_S)
            errors = run.stderr
        except subprocess.TimeoutExpired:
            errors = f"no answer within {DOWNLOAD_S} s"
        if not (found := list(Path(folder).glob("*.tgz"))):
            skip(f"npm cannot download {package}: {errors}")
        os.replace(found[0], target)


def skip(reason: str) -> None:
    if os.environ.get("VEC_REQUIRE_NPM"):
        pytest.fail(reason)
    pytest.skip(reason)
