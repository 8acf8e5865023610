from __future__ import annotations

import hashlib
import io
import json
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from conftest import DEADLINE, wait_until
from torch import nn

from common.errors import FileError, UserError
from common.model import build, cosem, published
from setup_04_all.model import build_model

ROOT = Path(__file__).parents[2]
NAME = "setup04/1820500"
PUBLISHED = "https://janelia-cosem-networks.s3.amazonaws.com/v0003.2-pytorch/cosem_models/cosem_models/setup04/1820500"
WIDTHS = {"feature_widths_down": [1, 2, 3, 4], "feature_widths_up": [5, 5, 3, 4]}


def names(count: int) -> list[str]:
    return [f"class_{i}" for i in range(count)]


def count(model: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def tiny_network() -> nn.Module:
    """A whole COSEM network, of cellmap-models' own code, with few channels."""
    architecture = import_module("cellmap_models.pytorch.cosem.load_model").Architecture
    convolutions = [[(3, 3, 3), (3, 3, 3)]]
    settings = {
        "upsample_factor": (2.0, 2.0, 2.0),
        "final_kernel_size": convolutions[0],
        "final_feature_width": 5,
    }
    settings |= {
        "kernel_sizes_down": convolutions * 4,
        "kernel_sizes_up": convolutions * 3,
        "classes_out": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "compute_minimal_shapes", lambda self: None)
        return architecture(SimpleNamespace(**settings, **WIDTHS))


def tiny_backbone(name: str = NAME) -> nn.Module:
    return tiny_network().backbone[0]


def original_names(network: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors as the original training saved them, with its second copy of everything."""
    state = {}
    for key, tensor in network.state_dict().items():
        if key.startswith("backbone."):
            unet = key.replace("backbone.", "unet.", 1)
            state |= {f"architecture.{unet}": tensor, f"chain.0.{unet}": tensor.clone()}
        else:
            state |= {key: tensor, key.replace("prediction_head", "chain.1"): tensor.clone()}
    return state


def checkpoint(state: dict[str, torch.Tensor], **more) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": state, **more}, buffer)
    return buffer.getvalue()


def place(content: bytes) -> Path:
    path = Path(os.environ["CELLMAP_CACHE"], "cosem", f"{NAME}.pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(cache, monkeypatch) -> nn.Module:
    """The network whose weights are served below; the loader expects its sizes, not setup04's."""
    monkeypatch.setattr(cosem, "_new_backbone", tiny_backbone)
    return tiny_network()


@pytest.fixture
def server():
    """A loopback server: calls `.hold()`, claims `.announced` bytes, and sends `.body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.requests.append(self.path)
            web.hold()
            self.send_response(web.status)
            if web.announced is not None:
                self.send_header("Content-Length", str(web.announced or len(web.body)))
            self.end_headers()
            self.wfile.write(web.body)

        def log_message(self, *args):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.body, web.announced, web.status, web.requests, web.hold = b"", 0, 200, [], lambda: None
    web.urls = {NAME: f"http://127.0.0.1:{web.server_port}/weights"}
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.shutdown()
    thread.join(DEADLINE)
    web.server_close()


def files(folder: Path) -> list[str]:
    """What is in the cache, the lock left out."""
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


# the network


@pytest.mark.parametrize(
    ("classes", "total", "trainable"), [(14, 235_102_610, 421_142), (48, 235_105_092, 423_624)]
)
def test_the_numbers_of_parameters_of_setup_04_all(classes, total, trainable, capsys):
    with torch.device("meta"):
        frozen = build_model(names(classes), weights="random")
        free = build_model(names(classes), weights="random", freeze_backbone=False)
    assert count(frozen) == count(free) == count(free, trainable_only=True) == total
    assert count(frozen, trainable_only=True) == trainable
    assert count(frozen.backbone) == 234_681_468


@pytest.mark.parametrize(("size", "expected"), [(198, 12), (216, 30), (234, 48)])
def test_the_announced_shape_is_the_shape_that_comes_out(size, expected):
    with torch.device("meta"):
        model = cosem.build_finetune(names(48), cosem.load_backbone(pretrained=False))
        logits = model(torch.empty(1, 1, size, 198, size))
    assert (
        logits.shape
        == (1, 48, *cosem.cosem_output_shape((size, 198, size)))
        == (1, 48, expected, 12, expected)
    )


@pytest.mark.parametrize(
    ("size", "advice"),
    [(43, "198 or 216"), (180, "198 or 216"), (200, "198 or 216"), (220, "216 or 234")],
)
def test_other_sizes_are_refused_with_the_nearest_ones(size, advice):
    sentence = rf"{size} voxels.*; write {advice}$"
    with pytest.raises(ValueError, match=sentence):
        cosem.cosem_output_shape((size, 216, 216))
    with torch.device("meta"), pytest.raises(ValueError, match=sentence):
        model = cosem.build_finetune(names(2), cosem.load_backbone(pretrained=False))
        model(torch.empty(1, 1, size, 216, 216))


def test_the_head_is_three_convolutions_and_one_to_the_classes():
    head = cosem.build_finetune(names(7), tiny_backbone()).head
    assert [type(layer) for layer in head] == [nn.Conv3d, nn.ReLU] * 3 + [nn.Conv3d]
    shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Conv3d)]
    assert shapes == [(5, 5, 3, 3, 3)] * 3 + [(7, 5, 1, 1, 1)]


def test_the_backbone_gives_72_channels_at_the_voxel_size_of_its_input():
    with torch.device("meta"):
        features = cosem.load_backbone(pretrained=False)(torch.empty(1, 1, 198, 216, 234))
    assert features.shape == (1, 72, 18, 36, 54)


def test_a_frozen_backbone_gets_no_gradient_and_saves_no_activation():
    torch.manual_seed(0)  # some weights leave a head without a gradient anywhere
    model = cosem.build_finetune(names(2), tiny_backbone())
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(tuple(t.shape)) or t, lambda t: t
    ):
        logits = model(torch.rand(1, 1, 198, 198, 198, requires_grad=True))
    logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.head.parameters())
    assert max(shape[-1] for shape in saved) == 18


def test_unfreezing_trains_the_backbone():
    model = cosem.build_finetune(names(2), tiny_backbone(), freeze_backbone=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # no ReLU of the few is dead
    model(torch.rand(1, 1, 198, 198, 198)).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_frozen_backbone_stays_in_eval_mode():
    model = cosem.build_finetune(names(2), tiny_backbone())
    assert not model.train().backbone.training and model.head.training
    assert not model.eval().head.training
    assert cosem.build_finetune(names(2), tiny_backbone(), freeze_backbone=False).backbone.training


def test_random_weights_come_only_when_asked_for_and_are_said_aloud(cache, monkeypatch, capsys):
    monkeypatch.setattr(cosem, "_new_backbone", tiny_backbone)
    torch.manual_seed(0)
    model = build_model(names(2), weights="random")
    assert "WARNING: weights='random': the backbone is NOT pretrained" in capsys.readouterr().err
    torch.manual_seed(0)
    expected = tiny_backbone().state_dict()
    assert all(
        torch.equal(tensor, expected[key]) for key, tensor in model.backbone.state_dict().items()
    )
    assert not cache.exists()


# the file


@pytest.mark.parametrize("style", [original_names, nn.Module.state_dict])
def test_both_styles_of_names_load_bit_for_bit(style, tiny):
    place(checkpoint(style(tiny), optimizer={"state": {}}))
    backbone = cosem.load_backbone(NAME)
    expected = tiny.backbone[0].state_dict()
    assert backbone.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in backbone.state_dict().items())
    assert not backbone.training and all(p.device.type == "cpu" for p in backbone.parameters())


def test_weights_of_half_precision_become_float32(tiny):
    place(checkpoint({key: tensor.half() for key, tensor in tiny.state_dict().items()}))
    assert {parameter.dtype for parameter in cosem.load_backbone(NAME).parameters()} == {
        torch.float32
    }


def test_a_file_put_there_by_hand_is_recorded(tiny, capsys):
    content = checkpoint(tiny.state_dict())
    path = place(content)
    assert cosem.weights_path() == path
    record = json.loads(path.with_name("1820500.pth.json").read_text())
    assert record["bytes"] == len(content)
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["sha256"] in capsys.readouterr().err


def test_a_file_of_another_size_than_recorded_is_refused(tiny):
    content = checkpoint(tiny.state_dict())
    place(content)
    cosem.weights_path()
    path = place(content[:-1])
    with pytest.raises(ValueError, match=rf"^{path}: .*1820500.pth.json.*delete both"):
        cosem.weights_path()


def test_a_file_that_changed_and_kept_its_size_is_refused(tiny):
    content = checkpoint(tiny.state_dict())
    place(content)
    cosem.weights_path()
    path = place(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"^{path}: its SHA-256 is .*was changed after"):
        cosem.weights_path()
    assert path.is_file()


def damaged_copy(state):
    return state | {"chain.1.bias": state["chain.1.bias"] + 1}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damaged_copy, "'chain.1.bias' is not the copy of another tensor"),
        (lambda state: state | {"chain.2.bias": torch.zeros(3)}, "'chain.2.bias' is not the copy"),
        (
            lambda state: state | {"encoder.weight": torch.zeros(3)},
            "'encoder.weight' is no part of a COSEM network",
        ),
        (
            lambda state: {k: v for k, v in state.items() if "r_conv.0.2" not in k},
            "4 tensors do not fit setup04/18205",
        ),
        (lambda state: {k: v[:1] for k, v in state.items()}, r"shape \(1,\) instead of \(\d,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(damage, sentence, tiny):
    path = place(checkpoint(damage(original_names(tiny))))
    with pytest.raises(ValueError, match=rf"^{path}: .*{sentence}"):
        cosem.load_backbone(NAME)
    assert not path.with_name("1820500.pth.json").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "EOFError"),
        (b"<html>Sign in</html>", "not a PyTorch file"),
        (checkpoint({})[:400], "not a PyTorch file"),
        (checkpoint({}, optimizer=Path("foreign object")), "not a PyTorch file"),
        (checkpoint([]), "no 'model' in it"),
    ],
)
def test_something_else_in_the_place_of_a_checkpoint_is_refused(content, sentence, cache):
    path = place(content)
    with pytest.raises(ValueError, match=f"^{path}: .*{sentence}"):
        cosem.weights_path()


def test_an_unknown_name_is_refused_with_the_known_ones(cache):
    with pytest.raises(UserError, match=r"'setup04/999'.*setup04/1820500, "):
        build_model(names(2), weights="setup04/999")


# the download


def test_a_download_is_recorded_and_happens_once(tiny, cache, server):
    server.body = checkpoint(original_names(tiny))
    path = cosem.weights_path(NAME, server.urls)
    assert path == cache / "cosem" / "setup04" / "1820500.pth"
    assert path.read_bytes() == server.body
    digest = hashlib.sha256(server.body).hexdigest()
    expected = {"source": server.urls[NAME], "bytes": len(server.body), "sha256": digest}
    assert json.loads(path.with_name("1820500.pth.json").read_text()) == expected
    assert cosem.weights_path(NAME, server.urls) == path
    assert len(server.requests) == 1
    assert files(cache) == ["1820500.pth", "1820500.pth.json"]


def test_another_file_than_the_one_taken_first_is_not_kept(tiny, cache, server):
    server.body = checkpoint(original_names(tiny))
    path = cosem.weights_path(NAME, server.urls)
    path.unlink()
    assert cosem.weights_path(NAME, server.urls) == path  # the same file once more
    path.unlink()
    changed = {name: tensor + 1 for name, tensor in original_names(tiny).items()}
    server.body = checkpoint(changed)
    with pytest.raises(UserError, match=r"that of the file taken first .* was not kept"):
        cosem.weights_path(NAME, server.urls)
    assert files(cache) == ["1820500.pth.json"]


def test_a_server_that_does_not_announce_a_length_is_accepted(tiny, cache, server):
    server.body, server.announced = checkpoint(tiny.state_dict()), None
    assert cosem.weights_path(NAME, server.urls).read_bytes() == server.body


def test_a_truncated_download_is_refused_and_does_not_stay(tiny, cache, server):
    server.body, server.announced = checkpoint(tiny.state_dict()), 1_000_000
    path = cache / "cosem" / "setup04" / "1820500.pth"
    with pytest.raises(
        FileError, match=rf"^{path}: .* ended after {len(server.body):,} of 1,000,000 bytes"
    ):
        cosem.weights_path(NAME, server.urls)
    assert files(cache) == []
    server.announced = 0
    assert cosem.weights_path(NAME, server.urls) == path


@pytest.mark.parametrize(
    "content", [b"<html>Sign in</html>", checkpoint({"backbone.0.x": torch.zeros(1)})]
)
def test_a_wrong_download_is_refused_and_does_not_stay(content, tiny, cache, server):
    server.body = content
    with pytest.raises(
        ValueError, match=rf"^{server.urls[NAME]}: sent something else \(.*; fetch it elsewhere"
    ):
        cosem.weights_path(NAME, server.urls)
    assert files(cache) == []


def test_an_error_of_the_server_is_told(cache, server):
    server.status = 404
    with pytest.raises(FileError, match=rf"HTTP Error 404.*; fetch {server.urls[NAME]} elsewhere"):
        cosem.weights_path(NAME, server.urls)


ASKING_PROCESS = """
import sys
from pathlib import Path

sys.path[:0] = [".", "tests", "tests/model"]
import test_cosem
from common.errors import UserError
from common.model import cosem, published

mark, url = sys.argv[1:]
lock = published.alone


def marked(*args, **options):
    Path(mark).touch()
    return lock(*args, **options)


published.alone = marked
cosem._new_backbone = test_cosem.tiny_backbone
print(cosem.weights_path(test_cosem.NAME, {test_cosem.NAME: url}))
"""
"""Asks for the weights; makes the file `mark` once it found none and is about to take the lock."""


def test_two_processes_download_once(tiny, cache, server, forked, tmp_path):
    """The first download is held until the second process has found no file either."""
    marks = [tmp_path / "first", tmp_path / "second"]
    processes = []

    def until_both_wait():
        wait_until(
            lambda: (
                all(mark.exists() for mark in marks)
                # one has failed
                or not all(process.is_running for process in processes)
            )
        )

    server.body = checkpoint(tiny.state_dict())
    server.hold = until_both_wait
    for mark in marks:
        processes.append(forked(mark, server.urls[NAME], program=ASKING_PROCESS))
    path = cache / "cosem" / "setup04" / "1820500.pth"
    for process in processes:
        code, out, err = process.ended()
        assert (code, out.strip()) == (0, str(path)), err
    assert all(mark.exists() for mark in marks)
    assert len(server.requests) == 1


def test_without_network_the_sentence_says_which_file_to_put_where(cache, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(published, "urlopen", offline)
    path = cache / "cosem" / "setup04" / "1820500.pth"
    with pytest.raises(
        FileError,
        match=rf"^{path}: .*; fetch {PUBLISHED} elsewhere and save it as this file$",
    ):
        build_model(names(48))
    assert files(cache) == []


def test_tls_is_verified_even_where_another_library_switched_it_off(cache, monkeypatch):
    def capture(url, timeout, context):
        contexts.append(context)
        raise URLError("captured")

    contexts = []
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    monkeypatch.setattr(published, "urlopen", capture)
    with pytest.raises(FileError):
        cosem.weights_path()
    assert contexts[0].verify_mode == ssl.CERT_REQUIRED and contexts[0].check_hostname


def test_the_process_is_left_as_it_was(tiny, server, monkeypatch):
    mine = ModuleType("model")
    monkeypatch.setitem(sys.modules, "model", mine)
    before, attributes = ssl._create_default_https_context, set(vars(mine))
    server.body = checkpoint(tiny.state_dict())
    cosem.weights_path(NAME, server.urls)
    cosem.load_backbone(NAME)
    monkeypatch.undo()
    with torch.device("meta"):
        cosem.load_backbone(pretrained=False)
    assert ssl._create_default_https_context is before
    assert set(vars(mine)) == attributes


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CELLMAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"Not a directory.*CELLMAP_CACHE"):
        cosem.weights_path()


def test_cache_path_moves_pretrained_weights(experiment, tiny, server, tmp_path, monkeypatch):
    monkeypatch.delenv("CELLMAP_CACHE")
    model = """
        from torch import nn

        from common.model import cosem


        def build_model(classes, url):
            cosem.weights_path("setup04/1820500", {"setup04/1820500": url})
            return nn.Conv3d(1, len(classes), 5)
        """
    server.body = checkpoint(tiny.state_dict())
    config = experiment(files={"model.py": model}).config(
        cache_path=str(tmp_path / "elsewhere"), model_kwargs={"url": server.urls[NAME]}
    )
    build.build_model(config, torch.device("cpu"))
    expected = tmp_path / "elsewhere" / "cosem" / "setup04" / "1820500.pth"
    assert expected.read_bytes() == server.body


def test_the_cache_is_in_the_repository_unless_moved(monkeypatch):
    monkeypatch.delenv("CELLMAP_CACHE", raising=False)
    assert cosem.cache_folder() == ROOT / "cache"


def test_weights_that_a_checkpoint_replaces_are_not_read(monkeypatch):
    monkeypatch.setattr(cosem, "weights_path", None)
    with published.replaced():
        assert not cosem.load_backbone("setup04/1820500").training
