"""Launches a kernel again in the form that Triton has compiled it in for such arguments.

Triton's own launcher binds the arguments and asks each what it would specialize at every call: 13
of the 20 us of Python that a launch costs. Here a form is found by everything that may decide it:
the constants, each tensor's dtype and place modulo 16 bytes, and each integer itself.
"""

from typing import Any

import torch
from torch import Tensor

# Packs of other sizes are other integers: the forms that were found last stay.
LIMIT = 4096
WIDE = 2**31  # from here on Triton takes an integer for 64 bits
_forms: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], **constants: Any) -> None:
    """kernel[grid](*args, **constants), on the device of the first of `args`, a tensor.

    `args` are all that the kernel's signature has before its first constant, in that order.
    """
    device = args[0].device
    key = (id(kernel), device, *constants.values(), *[_kind(arg) for arg in args])
    with torch.cuda.device_of(args[0]):
        form = _forms.get(key)
        if form is not None:
            names = kernel.arg_names[len(args) :]
            form[(*grid, 1, 1)[:3]](*args, *[constants[name] for name in names])
            return
        # The first time Triton compiles what it must; its interpreter, on a CPU, gives no form.
        form = kernel[grid](*args, **constants)
        if form is not None:
            if len(_forms) >= LIMIT:
                _forms.clear()
            _forms[key] = form


def _kind(arg: Any) -> Any:
    """What of an argument may decide the form: as much as Triton looks at, or more."""
    if isinstance(arg, Tensor):
        return arg.dtype, arg.data_ptr() % 16
    if isinstance(arg, float):
        return None  # its value decides nothing
    # A seed: only its width and whether 16 divides it, or no two steps would have one form.
    return arg if arg < WIDE else -1 - (arg % 16 == 0)
