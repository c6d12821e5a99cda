"""Tensors that FSDP2 has sliced over several ranks: put together, and cut again."""

from torch import Tensor


def unsharded(x: Tensor) -> Tensor:
    """A sharded tensor put together; any other tensor itself.

    A collective: every rank must call it.
    """
    # By its method: importing DTensor, to ask for its class, takes one to three seconds.
    full = getattr(x, "full_tensor", None)
    return x if full is None else full()


def sliced_like(x: Tensor, parameter: Tensor) -> Tensor:
    """x as this rank holds `parameter`: its slice of it where that is sharded."""
    if not hasattr(parameter, "full_tensor"):
        return x
    from torch.distributed.tensor import (
        DTensor,
        distribute_tensor,
    )  # a large module, only for sharded runs

    assert isinstance(parameter, DTensor)
    return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)
