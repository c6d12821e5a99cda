"""A file or folder of this machine, or a repository of the Hugging Face hub, as a local path.

The one place that downloads: models, tokenizers and data sets are looked up alike, with the same
one-sentence errors.
"""

import os
import re
from pathlib import Path
from typing import Literal

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
Kind = Literal["model", "dataset"]


def fetch(name: str | Path, patterns: list[str], kind: Kind = "model") -> Path:
    """The local file or folder `name`, or the folder of the downloaded hub repository.

    patterns: the files to download, such as "*.parquet"; a local folder is taken as it is.
    Raises: FileNotFoundError for neither a path nor a repository; ValueError for a repository that
    is gated or cannot be downloaded.
    """
    path = Path(os.path.expanduser(name))  # Path's own raises for the home of an unknown user
    if path.exists():
        return path
    # A Path is never a hub id, nor is a name such as ../weights, whatever the pattern says.
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or name.startswith("."):
        raise FileNotFoundError(
            f"{name}: no such file or folder; give a path, or a hub id such as owner/name"
        )
    return _download(name, patterns, kind)


def _download(name: str, patterns: list[str], kind: Kind) -> Path:
    # Imported here: a local path, the usual case in tests and offline, needs none of it.
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
    # The order matters: a gated repository is a RepositoryNotFoundError too, and all of them but
    # the name's validation are OSErrors.
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: the repository is gated; accept its licence at {page}, "
            "then log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{name}: no such folder here, and no repository that you may read at {page}; "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such folder here, not in the download cache, and the hub cannot be "
            f"reached; see {page} for the files and the licence"
        ) from error
    except OSError as error:
        # The kind of error alone: its text may have several lines.
        raise ValueError(
            f"{name}: {page} could not be downloaded ({type(error).__name__}); "
            "check the connection and try again"
        ) from error
