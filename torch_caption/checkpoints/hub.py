"""Checkpoints in repositories of the Hugging Face hub, named `hf://owner/name` or `hf://owner/name@revision`."""

from __future__ import annotations

import re
from pathlib import Path

from torch_caption.errors import CheckpointError, ConfigError
from torch_caption.io.exits import one_line

PREFIX = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", re.ASCII)


def download(name: str, file: str) -> Path:
    """A file of a repository, in the cache of huggingface_hub; downloaded if there is no current copy.

    Args:
        name: `hf://owner/name`, of the branch main, or with `@` and a branch, tag or commit.

    Raises:
        ConfigError: the name has another form, or huggingface_hub is not installed.
        CheckpointError: there is no such repository, revision or file, or it cannot be downloaded.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"{name}: not the name of a repository; the form is hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    try:
        from huggingface_hub import errors, hf_hub_download
    except ModuleNotFoundError:
        raise ConfigError(f"{name}: needs huggingface_hub: `python -m pip install huggingface_hub`") from None
    repository, revision = match.groups()
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such repository, or it is private or gated; for one of yours use `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the repository has no branch, tag or commit {revision or 'main'}") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: the hub cannot be reached, and {file} is not in its cache") from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{name}: the repository has no {file}; `share` writes one") from error
    except Exception as error:  # those of an interrupted connection are not documented
        raise CheckpointError(f"{name}: {file} cannot be downloaded: {one_line(error)}") from error
