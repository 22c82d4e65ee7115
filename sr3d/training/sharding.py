"""Weights, gradients and optimiser state split over devices (FSDP2), for networks that one device cannot hold."""

from __future__ import annotations

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from sr3d.errors import Sr3dError
from sr3d.models.decoder import ViewBlock
from sr3d.models.resolver import SuperResolver


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all devices of all nodes; a checkpoint is one file with everything."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Processes and their mesh; the number of devices is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def strategy_of(asked: Strategy | str) -> Strategy | str:
    """What `trainer.strategy` means: "fsdp" is `ShardedStrategy`, other names are Lightning's.

    Raises:
        Sr3dError: Another way of sharding. FSDP1 cannot clip gradients by norm; other meshes and checkpoints in many
            files are not what data and checkpoints are made for.
    """
    if asked == "fsdp":
        return ShardedStrategy()
    named = asked if isinstance(asked, str) else type(asked).__name__
    if named.startswith("fsdp") or (
        isinstance(asked, FSDPStrategy | ModelParallelStrategy) and not isinstance(asked, ShardedStrategy)
    ):
        raise Sr3dError("config", "trainer.strategy", named, "fsdp (FSDP2, checkpoints of one file), ddp or auto")
    return asked


def shard(network: SuperResolver, mesh: DeviceMesh) -> None:
    """Split a network in place; each device gathers one transformer block at a time, and the rest for each step.

    Args:
        network: With equal weights in all processes.
        mesh: The devices, one axis.
    """
    for block in network.modules():
        if isinstance(block, Block | ViewBlock):
            fully_shard(block, mesh=mesh)
    # The whole network, too, gives back what it gathered: validation has no backward pass that would do so.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for method in ("predict", "scaffold"):
        register_fsdp_forward_method(network, method)


def is_sharded(network: SuperResolver) -> bool:
    """Whether `shard` has been at the network."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def check_skippable(network: SuperResolver, name: str, reason: str) -> None:
    """Refuse to leave a clip out where the other processes need this one's weights for theirs.

    Raises:
        Sr3dError: The network is sharded.
    """
    if is_sharded(network):
        raise Sr3dError(name, "views", reason, "usable clips: a sharded network can skip none")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor whose parts may be on several devices; then all of them have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(parameter: Tensor) -> Tensor:
    """All of a parameter outside the network's forward pass; its gradient is the mean of those of all devices."""
    return parameter.full_tensor(grad_placements=[Partial("avg")]) if isinstance(parameter, DTensor) else parameter


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, split as a parameter is."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
