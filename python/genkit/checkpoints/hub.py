"""From what the user wrote after -m to a folder: a path, or a hub name looked up by huggingface_hub."""

import errno
import re
import sys
from pathlib import Path
from typing import Callable

from genkit.checkpoints.files import failure, shown, shown_path
from genkit.errors import BadFileError, ResourceError

# What a model is read from. Folders inside a repository hold other models' parts or other formats, and some
# repositories keep the same weights a second time as consolidated*.safetensors.
ALLOWED = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja")
IGNORED = ("*/*", "consolidated*.safetensors")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PART = re.compile(r"-[0-9]{5}-(?=of-[0-9]{5}\.gguf$)")
_REVISION = re.compile(r"[\w][\w./+-]{0,254}", re.ASCII)
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def resolve(model: str, *, revision: str | None = None, offline: bool = False,
            progress: Callable[[int], None] | bool | None = None) -> Path:
    """The model's folder, or its GGUF file. A path that exists wins; otherwise "org/name" is fetched into huggingface_hub's cache.

    Only JSON, safetensors, tokenizer and template files at the repository's top are fetched. `offline` (or
    HF_HUB_OFFLINE) uses the cache alone. With `progress`, downloads draw their bars when stderr is a terminal.
    Raises BadFileError (neither a folder nor to be had from the hub) and ResourceError (the cache cannot be written).
    """
    path = Path(model).expanduser()
    try:
        if path.is_dir():
            return _only_gguf(path) or path
        if path.suffix.lower() == ".gguf" and path.is_file():
            return path
        there = path.exists() or path.is_symlink()
    except OSError as error:
        raise failure(path, error) from None
    except ValueError:  # a NUL in it
        raise BadFileError(f"{shown(model)}: no such folder") from None
    if there:
        raise _not_a_folder(path)
    if not _HUB_NAME.fullmatch(model) or ".." in model or "--" in model:
        raise BadFileError(f"{shown_path(model)}: no such folder, and not a hub name (org/name)")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise BadFileError(f"{model}: revision {shown(revision)} is not a branch, tag or commit")
    return _fetch(model, revision, offline, bool(progress) and sys.stderr.isatty())


def _only_gguf(folder: Path) -> Path | None:
    """The one GGUF file of a folder that holds no model in safetensors, or the first of one split model's."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(found) > 1 and len({_PART.sub("-", path.name) for path in found}) == 1:
        found = found[:1]
    return found[0] if len(found) == 1 and not (folder / "config.json").exists() else None


def _not_a_folder(path: Path) -> BadFileError:
    where = shown_path(path)
    if path.suffix.lower() == ".safetensors":
        return BadFileError(f"{where}: is a file; give the folder it is in, with its config.json and tokenizer.json")
    if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return BadFileError(f"{where}: pickle weights can run code when they are loaded and are refused; "
                            f"convert them to safetensors")
    return BadFileError(f"{where}: is not a folder; give a model folder or a hub name (org/name)")


def _fetch(name: str, revision: str | None, offline: bool, bars: bool) -> Path:
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    offline = offline or constants.HF_HUB_OFFLINE
    cache = shown_path(constants.HF_HUB_CACHE)
    at = f"{name} (revision {revision})" if revision else name
    neither = f"{at}: no such folder here, and from the hub:"
    silenced = not bars and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=offline,
                                      allow_patterns=list(ALLOWED), ignore_patterns=list(IGNORED)))
    # Subclasses stand before what they derive from.
    except errors.GatedRepoError as error:
        raise BadFileError(f"{neither} gated: accept its terms on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise BadFileError(f"{neither} not found; check the name, or `hf auth login` if it is private") from error
    except errors.RevisionNotFoundError as error:
        raise BadFileError(f"{neither} there is no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise BadFileError(f"{neither} not (wholly) in the cache {cache}, and offline; run once without --offline "
                               f"and HF_HUB_OFFLINE") from error
        cause = error.__cause__
        why = f"it answers: {_first_line(cause)}" if isinstance(cause, errors.HfHubHTTPError) else "cannot be reached"
        raise BadFileError(f"{neither} {why}; not (wholly) in the cache {cache}; check the network, "
                           f"or give a folder") from error
    except errors.HfHubHTTPError as error:
        raise BadFileError(f"{neither} {_first_line(error)}") from error
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise ResourceError(f"{at}: the download cannot be written to {cache}: {error.strerror}; "
                                f"set HF_HUB_CACHE to a folder that can be") from error
        raise BadFileError(f"{neither} {_first_line(error)}") from error
    except Exception as error:  # the HTTP client's own errors leave huggingface_hub as they are
        raise BadFileError(f"{neither} {type(error).__name__}: {_first_line(error)}") from error
    finally:
        if silenced:
            enable_progress_bars()


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:300] if line.isprintable() else shown(line, 300)
