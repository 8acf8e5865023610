"""What a network takes, gives and needs, found without computing.

Everything here runs on torch's meta device, where a tensor has a shape and no values: patches of
any size cost nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

WORKSPACE = 2.5
"""Memory of a forward pass over that of the activations that it holds at its peak."""
# measured: 2.5 for unet8 in fp32 on a CPU, 1.3 in bf16; the rest is oneDNN's own copies

LARGEST_STEP = 64
"""Voxels up to which a step is looked for by which the axes of a patch can grow."""

Shape = tuple[int, ...]

ShapeOf = Callable[[Shape], Shape | None]
"""Output shape (z, y, x) of a network for an input shape; None where the network refuses it."""

LogitsOf = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""Logits (B, classes, z, y, x) of a network for raw (B, 1, z, y, x), as of a ForwardPass."""

Outputs = Callable[[nn.Module, torch.Tensor], list[torch.Tensor]]
"""Likewise all outputs of a network, the finest first."""


class Shapes:
    """Shapes and memory of a network. The network itself stays as it is, and where it is."""

    def __init__(
        self, model: nn.Module, forward: LogitsOf, half: bool = False, *, in_channels: int = 1
    ):
        """half: whether training keeps its activations in a 16-bit type."""
        self.model = OnMeta(model)
        self.forward = forward
        self.half = half
        self.in_channels = in_channels
        self._bytes_of_forward: dict[Shape, float] = {}
        # fp32 weights, and where they learn a gradient and the two moments of RAdam or Adam
        self.weights_bytes = sum(
            parameter.numel() * (16 if parameter.requires_grad else 4)
            for parameter in model.parameters()
        )

    def __call__(self, shape: Sequence[int]) -> Shape | None:
        """Output shape (z, y, x) for raw of `shape` voxels.

        None where the network refuses the input or cannot be run on the meta device.
        """
        try:
            return self.output(shape)
        except Exception:  # a network says in its own way that it does not take a size
            return None

    @torch.inference_mode()
    def output(self, shape: Sequence[int]) -> Shape:
        """Output shape (z, y, x) for raw of `shape` voxels; raises whatever the network raises."""
        return tuple(self._logits(shape).shape[2:])

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether something comes out for raw of `shape` voxels."""
        output = self(shape)
        return output is not None and min(output) > 0

    def step(self, shape: Sequence[int]) -> int:
        """The fewest voxels by which every axis longer than 1 can grow; 0 if none are found."""
        for step in range(1, LARGEST_STEP + 1):
            if self.takes(grown(shape, step)):
                return step
        return 0

    def forward_bytes(self, shape: Sequence[int]) -> float:
        """Roughly what a forward pass in float32 holds at its peak; 0 if it cannot be run here."""
        key = tuple(int(size) for size in shape)
        if key not in self._bytes_of_forward:
            with _Held() as held:
                self(key)
            self._bytes_of_forward[key] = WORKSPACE * held.peak
        return self._bytes_of_forward[key]

    def training_bytes(self, shape: Sequence[int], batch_size: int) -> float:
        """About what a training step takes: weights, saved activations, the largest layer, logits.

        Measured on a CPU in fp32, without what any process takes: unet8_all 4 x 68^3 0.69 GB (this
        says 0.51), 2 x 132^3 3.6 GB (3.8), setup_04_all 1 x 216^3 2.9 GB (2.9).
        """
        patch = self.activations(shape)
        # a layer's input and output exist with their gradients; the loss makes about four logits
        activations = patch.saved + 2 * patch.largest_layer + 4 * patch.logits
        return self.weights_bytes + batch_size * activations * (0.5 if self.half else 1.0)

    def activations(self, shape: Sequence[int]) -> Activations:
        """Memory of the activations of one patch in float32; raises what the network raises."""
        own = {id(tensor.untyped_storage()) for tensor in self.model.empty.values()}
        saved: dict[int, torch.UntypedStorage] = {}
        largest_layer = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[id(storage)] = storage
            return tensor

        def measure(_: nn.Module, inputs: tuple, output: Any) -> None:
            nonlocal largest_layer
            tensors = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
            largest_layer = max(largest_layer, sum(4 * t.numel() for t in tensors))

        layers = [module for module in self.model.model.modules() if not list(module.children())]
        hooks = [layer.register_forward_hook(measure) for layer in layers]
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                logits = self._logits(shape)
        finally:
            for hook in hooks:
                hook.remove()
        of_activations = [storage for key, storage in saved.items() if key not in own]
        return Activations(
            saved=sum(storage.nbytes() for storage in of_activations),
            largest_layer=largest_layer,
            logits=4 * logits.numel(),
        )

    def _logits(self, shape: Sequence[int]) -> torch.Tensor:
        return self.forward(self.model, meta_patches(shape, self.in_channels))


@dataclass(frozen=True)
class Activations:
    """Bytes of one patch in float32."""

    saved: int
    """What autograd keeps for the gradient, without the weights; frozen layers keep nothing."""
    largest_layer: int
    """The most that goes into and comes out of one layer."""
    logits: int


def parameters_of_outputs(
    model: nn.Module, outputs: Outputs, shape: Sequence[int], in_channels: int = 1
) -> list[set[str]]:
    """For each output of a network the names of the trainable parameters that it depends on.

    All of them for one output if the network cannot be run on the meta device.
    """
    on_meta = OnMeta(model)
    trained = {name: tensor for name, tensor in on_meta.empty.items() if tensor.requires_grad}
    names = []
    try:
        for output in outputs(on_meta, meta_patches(shape, in_channels)):
            gradients = torch.autograd.grad(
                output.sum(), list(trained.values()), allow_unused=True, retain_graph=True
            )
            pairs = zip(trained, gradients, strict=True)
            names.append({name for name, gradient in pairs if gradient is not None})
    except Exception:  # a network that needs values raises whatever it likes
        return [set(trained)]
    return names


def meta_patches(
    shape: Sequence[int], in_channels: int, *, count: int = 1, requires_grad: bool = False
) -> torch.Tensor:
    """Raw for a network on the meta device: (count, in_channels, z, y, x), without values."""
    size = (count, in_channels, *shape)
    return torch.empty(size, device="meta", requires_grad=requires_grad)


def grown(shape: Sequence[int], step: int) -> Shape:
    """`shape` with `step` more voxels on every axis that is longer than 1."""
    return tuple(size + step if size > 1 else size for size in shape)


class OnMeta(nn.Module):
    """A network run with tensors that have the shapes of its own and hold nothing."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.empty = {
            name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
            for name, tensor in _named_tensors(model)
        }
        # each tensor of each module once: torch leaves the tensors of a module that has two names,
        # such as the encoder that nnU-Net's decoder holds too, replaced for ever otherwise
        empty_of = {id(tensor): self.empty[name] for name, tensor in _named_tensors(model)}
        self.replacing = {}
        for prefix, module in model.named_modules():
            for name, tensor in _named_tensors(module, recurse=False):
                self.replacing[f"{prefix}.{name}" if prefix else name] = empty_of[id(tensor)]

    def forward(self, raw: torch.Tensor) -> Any:
        """Return what the network gives, without values."""
        return torch.func.functional_call(self.model, self.replacing, (raw,), tie_weights=False)


def _named_tensors(model: nn.Module, recurse: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, each once."""
    yield from model.named_parameters(recurse=recurse)
    yield from model.named_buffers(recurse=recurse)


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, in `peak` the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = function(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return given

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.alive:
            return
        size = storage.nbytes()
        self._count(key, size)
        weakref.finalize(storage, self._count, key, -size)

    def _count(self, key: int, size: int) -> None:
        self.alive ^= {key}
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
