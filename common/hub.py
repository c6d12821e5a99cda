"""A folder of this machine or a repository of the Hugging Face hub, as a local path.

Separate because tokenizers and data sets are looked up alike, with the same one-sentence errors.
"""

import re
from pathlib import Path
from typing import Literal

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def fetch(
    name: str | Path, patterns: list[str], kind: Literal["model", "dataset"] = "model"
) -> Path:
    """Return the local file or folder `name`, or the folder that holds the hub repository's files.

    Args:
        patterns: the files to download from the hub, such as "*.parquet"; a local folder is taken as it is.
    Raises:
        FileNotFoundError: neither a path nor a repository.
        ValueError: the repository is gated, or the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(
            f"{name}: no such file or folder; give a path, or a hub id such as owner/name"
        )
    return _download(name, patterns, kind)


def _download(name: str, patterns: list[str], kind: Literal["model", "dataset"]) -> Path:
    # Imported here: a local path, the usual case in tests and offline, needs none of it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=patterns))
    except GatedRepoError:
        raise ValueError(
            f"{name}: the repository is gated; accept its licence at {page} and log in with `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise FileNotFoundError(
            f"{name}: no such folder, and no repository that you may read at {page}; check the name, "
            f"or log in with `hf auth login` if it is private"
        ) from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such folder, not in the download cache, and the hub cannot be reached; download {page} first"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{name}: {page} could not be downloaded ({error}); check the connection and try again"
        ) from None
