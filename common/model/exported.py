"""A network as a file that other programs run: TorchScript, torch.export, ONNX.

A file is read back and run before it is kept, and gives what the network itself gives.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError, in_a_line
from common.files import replacing
from common.model.forward import ForwardPass, as_list
from common.talk import some

TOLERANCE = 1e-5
"""By which logits may differ from the network's own, as part of the largest of them, or of 1."""

INPUT = "raw"
OUTPUT = "logits"
"""Names of the two arrays in an ONNX file."""

Program = Callable[[torch.Tensor], torch.Tensor]
"""A file that is read back, as a function: logits of raw, both on the CPU."""


class FirstOutput(nn.Module):
    """A network as other programs run it: of several outputs it gives the finest alone."""

    def __init__(self, model: nn.Module, forward: ForwardPass):
        """forward: how raw goes through it here."""
        super().__init__()
        self.model = model
        self.shown = forward.shown

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, ...) of raw (B, 1, ...); a 2-D network has no axis of one voxel."""
        return self.shown(as_list(self.model(raw))[0])


@dataclass(frozen=True)
class Form:
    """A kind of file."""

    ending: str
    """Of its name."""
    write: Callable[[nn.Module, torch.Tensor, Path], None]
    """Writes a network that was run on an example of raw."""
    open: Callable[[bytes], Program]
    """Reads what is in the file."""
    packages: tuple[str, ...] = ()
    """What it takes beside torch."""


def write(own: FirstOutput, raw: torch.Tensor, path: Path, form: str) -> Program:
    """Write a network, whole or not at all, and read it back.

    Args:
        own: in eval mode, on the CPU.
        raw: (1, 1, ...) float32, of the shape that it is used with.
        path: of the file.
        form: one of FORMS.

    Raises:
        UserError: where a package is missing, or where the network has no such form.
    """
    kind = FORMS[form]
    _refuse_missing(kind, form)
    with replacing(path) as temporary:
        with _in_one_sentence(path, form), quiet(), torch.no_grad():
            kind.write(own, raw, temporary)
            run = kind.open(temporary.read_bytes())
            unlike = difference(own(raw), run(raw))
        if unlike > TOLERANCE:
            raise UserError(
                f"{path}: not written, since as {form} the network gives other logits than its "
                f"own, by {unlike:.1e} of the largest; take another form "
                f"({some([other for other in FORMS if other != form])})"
            )
    return run


def difference(expected: torch.Tensor, given: torch.Tensor) -> float:
    """By how much values differ at most, as part of the largest that is expected, or of 1.

    Infinite for another shape, and where anything is NaN.
    """
    if given.shape != expected.shape:
        return math.inf
    largest = max(1.0, float(expected.abs().max()))
    found = float((given - expected).abs().max()) / largest
    return math.inf if math.isnan(found) else found


def takes(own: Program, other: Program, raw: torch.Tensor) -> bool:
    """Whether a file gives the network's own logits for raw of another shape, too."""
    with quiet(), torch.no_grad():
        try:
            return difference(own(raw), other(raw)) <= TOLERANCE
        except Exception:  # a recorded graph says in its own way that it has one size
            return False


def _refuse_missing(kind: Form, form: str) -> None:
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{form} takes {some(missing)}; pip install 'csc-baselines[bioimage]', or take "
            "another form"
        )


@contextmanager
def _in_one_sentence(path: Path, form: str) -> Iterator[None]:
    """Context manager: what keeps a network from being recorded is raised as UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each recorder raises types of its own, with pages of text
        reason = in_a_line(error, 300)
        raise UserError(
            f"{path}: not written, the network cannot be recorded as {form} "
            f"({type(error).__name__}: {reason}); take another form"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: recorders warn of sizes that become fixed, which is measured afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# TorchScript: a recording of one pass


def _write_torchscript(own: nn.Module, raw: torch.Tensor, path: Path) -> None:
    # what was recorded is run and compared by `write`
    try:
        recorded = torch.jit.trace(own, raw, check_trace=False)
    except Exception:  # it asks every property of a network, and some of LeibNetz's raise
        graph = torch.export.export(own, (raw,)).module()
        recorded = torch.jit.trace(graph, raw, check_trace=False)
    recorded.save(str(path))


def open_torchscript(content: bytes) -> torch.jit.ScriptModule:
    """The network in a file of TorchScript, on the CPU."""
    with quiet():
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()


# torch.export: a graph


def _write_pt2(own: nn.Module, raw: torch.Tensor, path: Path) -> None:
    # by a buffer: the temporary file has another ending than torch asks for
    buffer = io.BytesIO()
    torch.export.save(_exported(own, raw), buffer)
    path.write_bytes(buffer.getvalue())


def _exported(own: nn.Module, raw: torch.Tensor) -> Any:
    """The graph for patches of any size; where the network computes with sizes, of this one."""
    sizes = dict.fromkeys((0, *range(2, raw.ndim)), torch.export.Dim.AUTO)
    # a size of 1 in the example would stay 1
    several = torch.cat([raw, raw])
    try:
        return torch.export.export(own, (several,), dynamic_shapes={"raw": sizes})
    except Exception:  # LeibNetz takes sizes to NumPy, for one
        return torch.export.export(own, (raw,))


def _open_pt2(content: bytes) -> Program:
    return torch.export.load(io.BytesIO(content)).module()


# ONNX


def _write_onnx(own: nn.Module, raw: torch.Tensor, path: Path) -> None:
    program = torch.onnx.export(
        own,
        (raw,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamo=True,
        verbose=False,
        # one file, weights included
        external_data=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def open_onnx(content: bytes) -> Program:
    """The network in a file of ONNX; it computes on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(raw: torch.Tensor) -> torch.Tensor:
        (logits, *_) = session.run(None, {name: raw.numpy()})
        return torch.from_numpy(logits)

    return run


FORMS: dict[str, Form] = {
    "torchscript": Form(".pt", _write_torchscript, open_torchscript),
    "pt2": Form(".pt2", _write_pt2, _open_pt2),
    "onnx": Form(".onnx", _write_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
