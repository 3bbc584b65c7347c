"""Devices: which there are, what they compute in, and how much of their memory may be kept."""

from __future__ import annotations

import torch


class DeviceError(Exception):
    """A device is asked for that this process does not see."""


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def require_visible(name: str) -> None:
    """See that there is a GPU where one is asked for; fits would compute on the CPU without one.

    Raises:
        DeviceError: none is visible.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"device = {name!r}, and this process sees no such GPU: give device = 'auto' or 'cpu', "
            "in the preset or by --set device=cpu"
        )


def processes_of_fits(asked: int, device: str, accelerate: str) -> int:
    """In how many processes a fit is done where `asked` may share it.

    They take a GPU each, so they are no more than there are GPUs; without GPUs they share the CPU.
    What a fit computes does not depend on how many they are. A file of accelerate's of one's own
    may be about several machines: there it is as many as are asked for.
    """
    own = accelerate not in ("ddp", "fsdp")
    gpus = 0 if own or device == "cpu" else torch.cuda.device_count()
    return min(asked, gpus) if gpus else asked


def pick_dtype(name: str, device: torch.device, stored: torch.dtype | None) -> str:
    """What to compute in; `auto` is float32 on a CPU, and that of the checkpoint on a GPU.

    CPUs are slow in 16 bits, and few compute in float16 at all. On a GPU with bfloat16 this is
    taken for a checkpoint in float32: fits store that, and have computed in bfloat16.
    """
    if name != "auto":
        return name
    if device.type == "cpu":
        return "float32"
    return "bfloat16" if stored == torch.float32 and computes_bf16(device) else "auto"


def bytes_to_keep(
    gib: float | None, device: torch.device, *, on_cpu: float, models: int = 1
) -> int:
    """What each of `models` may keep of what it computed, where `gib` was asked for.

    Where nothing was, they get an eighth of a GPU's memory together; on a CPU `on_cpu` GiB each.
    """
    if gib is None and device.type == "cuda":
        memory: int = torch.cuda.get_device_properties(device).total_memory
        return memory // (8 * models)
    return int((on_cpu if gib is None else gib) * 2**30)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
