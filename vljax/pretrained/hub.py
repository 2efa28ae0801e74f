"""The Hugging Face hub: folders out of it, and into it, each with a card.

Nothing is asked of the network unless a repository is named that is no folder here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax import files
from vljax.errors import UserError
from vljax.pretrained.checkpoint import FOLDER_NAMES, PIPELINE

_ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)")
# What repositories hold beside the weights that are read: half precision, and without averaging.
_OTHERS = ("*fp16*", "*non_ema*")


def folder_of(source: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder of that name, or the copy of a repository of the hub, fetched if need be.

    Of a repository come its JSON and text files, and the weights of its network or of a Stable
    Diffusion pipeline's networks as safetensors, or where there are none as `.bin`.

    Args:
        source: A folder, `org/name`, or `org/name/subfolder`.
        revision: A branch, tag or commit of the repository.

    Raises:
        UserError: there is no such folder, and no such repository can be fetched.
    """
    path = files.expanded(source)
    if path.is_dir():
        return path
    match = _ID.fullmatch(os.fspath(source))
    if match is None or path.exists() or ".." in path.parts:
        raise UserError(
            f"{source} is neither a folder nor the name of a repository: give a folder that exists "
            "or ORG/NAME of the hub"
        )
    repository, below = match[1], match[2].strip("/")
    under = f"{below}/" if below else ""
    snapshot = _fetch(repository, revision, [f"{under}*.json", f"{under}*.txt"])
    folder = snapshot / below
    whole = (folder / "model_index.json").is_file()
    places = [f"{under}{part}/" for part in PIPELINE] if whole else [under]
    for ending in (".safetensors", ".bin"):
        wanted = [f"{place}{stem}*{ending}" for place in places for stem in FOLDER_NAMES]
        # Of the same commit, for which the folder is named: a branch may have moved on meanwhile.
        _fetch(repository, snapshot.name, wanted)
        if all(any((folder / p[len(under) :]).glob(f"*{ending}")) for p in places):
            break
    return folder


def _fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_OTHERS),
        )
    except Exception as error:  # the library has one exception for each mishap
        at = f" at {revision}" if revision else ""
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{repository}{at} is no folder here and could not be fetched from the hub ({reason}): "
            "check the name, log in with `hf auth login` where it is private, or give a folder"
        ) from error
    return Path(found)


def push(
    folder: str | os.PathLike,
    repository: str,
    *,
    private: bool = True,
    message: str = "Weights from vljax",
) -> str:
    """Publish a folder that `vljax.save` or `vljax.export` wrote; its address.

    The repository is made where there is none. Log in once with `hf auth login`.

    Args:
        folder: What to publish; files of the same names are replaced.
        repository: `org/name`.
        private: Whether a new repository is seen by its owner alone.
        message: Of the commit.

    Raises:
        UserError: there is no such folder, or the hub refuses.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder: give what vljax.save or vljax.export wrote")
    match = _ID.fullmatch(repository)
    if match is None or match[2]:
        raise UserError(f"{repository!r} is no name of a repository: give ORG/NAME")
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{folder} could not be published as {repository} ({reason}): check the name, and log "
            "in with `hf auth login`"
        ) from error
    return str(made)


def write_card(
    folder: str | os.PathLike,
    *,
    title: str,
    about: str,
    parts: Mapping[str, str],
    recipe: str,
    results: str,
    tags: Sequence[str] = (),
) -> None:
    """Write a folder's `README.md`, the card that the hub shows.

    Args:
        folder: Where.
        title: Its heading.
        about: What it is, a sentence or two.
        parts: What each subfolder holds.
        recipe: The run's config as JSON.
        results: The tables of its evaluation as Markdown; empty if it was not judged.
        tags: By which it is found on the hub.
    """
    head: list[Any] = ["---", "library_name: vljax", "tags:", *(f"- {t}" for t in tags), "---"]
    listed = [f"| `{name}` | {what} |" for name, what in parts.items()]
    lines = [
        *head,
        "",
        f"# {title}",
        "",
        about,
        "",
        "| folder | what it holds |",
        "|---|---|",
        *listed,
        "",
        "## Results",
        "",
        results.strip() or "Not judged yet.",
        "",
        "## Recipe",
        "",
        "```json",
        recipe.strip(),
        "```",
    ]
    files.write(Path(folder) / "README.md", "\n".join(lines) + "\n")
