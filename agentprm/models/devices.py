"""Devices: which there are, what they compute in, and how much of their memory may be kept."""

from __future__ import annotations

from collections.abc import Mapping

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


def require_gpus(asked: Mapping[str, str]) -> None:
    """See that this machine has the GPUs that settings ask for; each device by its setting's name.

    Raises:
        DeviceError: it has not, or a name means no device.
    """
    gpus = torch.cuda.device_count()
    lacking = [setting for setting, name in asked.items() if _gpu_of(setting, name) >= gpus]
    if not lacking:
        return
    shown = f"cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "only cuda:0" if gpus else "no GPU"
    there = f"cuda:{gpus - 1}" if gpus else "cpu"
    raise DeviceError(
        f"this machine shows {shown}, which is not enough for "
        + " and ".join(f"{setting} = {asked[setting]!r}" for setting in lacking)
        + ": set what is there, as by "
        + " ".join(f"--set {setting}={there}" for setting in lacking)
        + "; fits and services may share a GPU that holds them all"
    )


def _gpu_of(setting: str, name: str) -> int:
    """The number of a GPU; -1 is another device."""
    try:
        device = pick_device(name)
    except RuntimeError as error:
        raise DeviceError(f"{setting} = {name!r} is no device: {error}") from None
    return (device.index or 0) if device.type == "cuda" else -1


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


def tokens_to_hold(device: torch.device, bytes_per_token: int, most: int) -> int:
    """Tokens whose keys and values a batch may hold: `most`, and no more than an eighth of a GPU.

    They lie in storage with up to a quarter more room than they take.
    """
    if device.type != "cuda":
        return most
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return min(most, memory // (8 * bytes_per_token * 5 // 4))


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
