"""Files of Hugging Face's hub, by its own client and in its own cache; what to do where it cannot be reached."""

from __future__ import annotations

from pathlib import Path

from bench.errors import ConfigError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as timm names them on the hub, the safe form first
TIMEOUT_S = 10.0


class UnreachableError(ConfigError):
    """A file is not in the cache, and the hub does not give it."""


def cached(repository: str, names: tuple[str, ...] = WEIGHTS) -> Path | None:
    """The first of ``names`` that lies in the hub's cache."""
    import huggingface_hub

    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def sha256_of(repository: str, ways_out: str = "") -> str:
    """The SHA-256 of the weights of a repository as the hub states it; nothing is fetched.

    Raises:
        UnreachableError: it does not answer or has none, with the address, the cache and what else can be done.
    """
    import huggingface_hub

    why = ""
    for name in WEIGHTS:
        url = huggingface_hub.hf_hub_url(repository, name)
        try:
            found = huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_S)
        except Exception as error:  # besides its own, the client lets through whatever its HTTP library raises
            why = why or _line(error)
            continue
        if found.etag:
            return str(found.etag)
    raise _unreachable(repository, WEIGHTS[0], why, ways_out)


def fetched(repository: str, names: tuple[str, ...] = WEIGHTS, ways_out: str = "") -> Path:
    """The first of ``names`` from the hub's cache, else from the hub. Raises :class:`UnreachableError`."""
    import huggingface_hub

    if found := cached(repository, names):
        return found
    why = ""
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, etag_timeout=TIMEOUT_S))
        except Exception as error:  # as above
            why = why or _line(error)
    raise _unreachable(repository, names[0], why, ways_out)


def _unreachable(repository: str, name: str, why: str, ways_out: str) -> UnreachableError:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE

    return UnreachableError(
        f"{name} of {repository} is not in the hub's cache, {HF_HUB_CACHE}, and cannot be fetched from "
        f"{huggingface_hub.hf_hub_url(repository, name)} ({why}). Where there is a network: `hf download "
        f"{repository}`, then copy that cache here (HF_HOME names another place){ways_out}"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
