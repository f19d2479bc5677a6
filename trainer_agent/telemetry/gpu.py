"""How full and how busy the GPU of a run is, read now and then from the host."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

logger = logging.getLogger(__name__)

GPU_ALLOCATED: Final = "gpu_memory_allocated_bytes"
"""Memory in use by tensors of this process, on the first rank's GPU."""

GPU_RESERVED: Final = "gpu_memory_reserved_bytes"
"""Memory that torch has taken for this process, in use or not."""

GPU_USED: Final = "gpu_memory_used_bytes"
"""Memory in use on the whole GPU, by whomever; needs nvidia-ml-py."""

GPU_UTILIZATION: Final = "gpu_utilization_percent"
"""Part of the time in which the GPU ran anything; needs nvidia-ml-py."""

INTERVAL: Final = 1.0
"""Seconds between two samples, at least."""

MOST_OF_TIME: Final = 0.01
"""Part of a run's time that sampling may take: a driver that answers slowly is asked less often."""


class GpuSampler:
    """Samples a GPU, at most once a second, within what a step reports.

    A source that fails is not asked again, and that is logged.

    Args:
        sources: Return samples, by metric; an empty one: nothing is known just now.
        clock: Seconds.
    """

    def __init__(
        self,
        sources: list[Callable[[], dict[str, float]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._next = 0.0

    def measure(self, told: dict[str, float]) -> None:
        """Add a sample to what a step reports, where it is time for one."""
        now = self._clock()
        if now < self._next:
            return
        for source in self._sources[:]:
            try:
                told.update(source())
            except Exception as error:  # noqa: BLE001 - whatever a driver does, the run goes on
                self._sources.remove(source)
                what = f"{type(error).__name__}: {error}"
                logger.warning("the GPU can not be watched any more: %s", what)
        taken = self._clock() - now
        self._next = now + max(INTERVAL, taken / MOST_OF_TIME) if self._sources else float("inf")


def find_gpu() -> GpuSampler | None:
    """Return what samples the GPU that this process trains on; None: it uses none.

    Never initialises CUDA, which would cost a process that does without it memory and time.
    """
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own lack
        return None
    device = torch.cuda.current_device()
    sources = [functools.partial(_memory, device)]
    nvml = _nvml_source(str(torch.cuda.get_device_properties(device).uuid))
    return GpuSampler([*sources, *([nvml] if nvml else [])])


def _memory(device: int) -> dict[str, float]:
    """Return what torch's allocator has counted, on the host."""
    import torch

    stats = torch.cuda.memory_stats(device)
    return {
        GPU_ALLOCATED: float(stats.get("allocated_bytes.all.current", 0)),
        GPU_RESERVED: float(stats.get("reserved_bytes.all.current", 0)),
    }


def _nvml_source(uuid: str) -> Callable[[], dict[str, float]] | None:
    """Return what asks NVIDIA's driver; None: it can not be asked.

    Args:
        uuid: The device; torch's numbers are not the driver's where CUDA_VISIBLE_DEVICES is set.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        logger.info("for the utilisation of the GPU, install nvidia-ml-py")
        return None
    try:
        nvml.nvmlInit()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError_NotFound:
            handle = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
    except Exception as error:  # noqa: BLE001 - whatever a driver does, the run goes on
        logger.info("the GPU's utilisation is unknown: %s: %s", type(error).__name__, error)
        return None
    return functools.partial(_nvml_sample, nvml, handle)


def _nvml_sample(nvml: Any, handle: Any) -> dict[str, float]:
    sample = {GPU_USED: float(nvml.nvmlDeviceGetMemoryInfo(handle).used)}
    # A slice of a GPU (MIG) has memory of its own, and no utilisation.
    with contextlib.suppress(nvml.NVMLError_NotSupported):
        sample[GPU_UTILIZATION] = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return sample
