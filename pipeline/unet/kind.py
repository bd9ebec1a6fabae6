"""The kind of machine that networks run on: on another kind, results may differ in their last bits.

In: a runtime. Out: what to compare, as text. No stage imports it: it decides no result.
"""

import torch

from pipeline.unet.runtime import Runtime

_DECIDING = ("avx", "amx", "fma", "sve", "bf16", "i8mm")  # the begins of instruction sets by which kernels are chosen


def describe_kind(runtime: Runtime) -> dict[str, str]:
    """Return the device, the precision, and the kind: of a GPU its name, of a CPU the instructions that it has."""
    if runtime.device.type == "cuda":
        kind = torch.cuda.get_device_name()
    else:
        has = {name for name, value in torch.cpu.get_capabilities().items() if value is True}
        kind = " ".join(sorted(name for name in has if name.startswith(_DECIDING)))
    return {"device": runtime.device.type, "precision": runtime.precision, "kind": kind}
