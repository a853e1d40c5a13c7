"""A folder to a data set of the Hugging Face hub, which is private if it is new."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural
from vec_pipeline.weights import reason_of

# What an earlier export may have left in it; a README.md stays.
REPLACED = ("0*", "metadata.jsonl", "train/*", "train-*.tar", "validation/*", "validation-*.tar")


def check(name: str) -> None:
    """Raise UserError where nobody is logged in, or where there can be no data set of that name."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with failures_named(name, "nothing was exported"):
        validate_repo_id(name)
        HfApi().whoami()


def push(folder: Path, name: str, rows: int) -> None:
    """Say what is uploaded, upload it, and say where it is. Raises UserError, which says how to go on."""
    from huggingface_hub import HfApi

    files = [path for path in folder.rglob("*") if path.is_file()]
    size_gb = sum(path.stat().st_size for path in files) / 1e9
    api = HfApi()
    command = shlex.join(["hf", "upload", name, str(folder), "--type", "dataset"])
    with failures_named(name, f"{folder} is complete; to upload it, run `{command}`"):
        url = api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        kind = "private" if api.dataset_info(name).private else "public"
        what = f"{plural(rows, 'row')} in {plural(len(files), 'file')}, {size_gb:,.3f} GB"
        print(f"uploading {what}, to the {kind} data set {url}", flush=True)
        api.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset", delete_patterns=list(REPLACED))
    print("uploaded")


@contextmanager
def failures_named(name: str, state: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except HFValidationError:
        raise UserError(f"--push-to-hub {name}: that is no name of a data set: give USER/NAME") from None
    except LocalTokenNotFoundError:
        raise UserError(f"--push-to-hub {name}: log in first, by `hf auth login` or HF_TOKEN; {state}") from None
    except Exception as error:  # of the hub, its HTTP library and its uploader
        raise UserError(f"--push-to-hub {name}: {reason_of(error)}; {state}") from None
