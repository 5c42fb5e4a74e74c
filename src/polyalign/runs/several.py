"""What several processes ask of a configuration, checked before weights are read."""

from __future__ import annotations

from polyalign.engine import processes
from polyalign.errors import OptionError
from polyalign.optimizers import eight
from polyalign.recipe import Method
from polyalign.runs.config import TrainConfig

LAUNCH = "torchrun --nproc-per-node N -m polyalign train …"


def check(config: TrainConfig, method: Method) -> None:
    """Raise :class:`OptionError` where the options do not go with so many processes."""
    count = processes.count()
    if count > 1 and ":" in (config.device or ""):
        raise OptionError(
            f"device={config.device} puts {count} processes on one device.",
            "Leave device out (each takes the one of its LOCAL_RANK), or choose devices with "
            "CUDA_VISIBLE_DEVICES.",
        )
    if not config.fsdp:
        return
    if count == 1:
        raise OptionError(
            "fsdp=True lays weights in parts on several processes, and this is one.",
            f"Start it with: {LAUNCH}",
        )
    if config.quantize:
        raise OptionError(
            f"fsdp=True cannot lay weights of {config.quantize} in parts.",
            "Leave fsdp out (each process then holds the small base), or leave quantize out.",
        )
    if config.optimizer == eight.NAME:
        raise OptionError(
            f"fsdp=True does not go with optimizer={eight.NAME}, whose blocks cannot be cut.",
            "Use adamw: its state is laid in parts too.",
        )
    if config.precompute_references:
        raise OptionError(
            "fsdp=True does not go with precompute_references: weights in parts are held anyway.",
            "Leave precompute_references out.",
        )
    if config.reference_states:
        raise OptionError(
            "fsdp=True does not go with reference_states, as all processes compute together.",
            "Leave reference_states out.",
        )
    for stage in method.stages:
        for name, module in stage.modules.items():
            if module.kind == "value" and module.options.get("trunk", "copy") == "copy":
                raise OptionError(
                    f"fsdp=True cannot lay '{name}' in parts, a value module with weights of its "
                    "own.",
                    "Leave fsdp out, or choose a method without it.",
                )
