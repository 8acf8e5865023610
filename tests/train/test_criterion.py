"""Any loss as a criterion: over the known voxels, against torch, MONAI and sums by hand."""

from __future__ import annotations

import functools
import json
import threading
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cellmap_segmentation_challenge.utils import CellMapLossWrapper
from common.data.samples.targets import PaletteTarget
from common.errors import UserError
from common.train import steps
from common.train.losses import bce_dice, dice_loss, focal_loss, weighted_bce
from common.train.losses import own_loss as module
from common.train.losses.criterion import (
    OrdinaryLoss,
    name_of,
    over_outputs,
    resampled,
    takes_pos_weight,
)

CPU = torch.device("cpu")


class SigmoidDice(nn.Module):
    """Called as MONAI's DiceLoss(sigmoid=True): 1 - Dice of each channel, the mean over them."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        probability = input.sigmoid()
        axes = (2, 3, 4)
        overlap = (probability * target).sum(axes)
        size = (probability + target).sum(axes)
        loss = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
        if self.reduction == "none":
            return loss.view(*loss.shape, 1, 1, 1)
        return loss.mean()


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that want a gradient, and dense labels in which a third is unknown."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    labels = torch.randint(-1, 2, logits.shape, generator=generator, dtype=torch.int8)
    return logits, labels


def as_nan(labels: torch.Tensor) -> torch.Tensor:
    return labels.float().masked_fill(labels < 0, torch.nan)


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(reduction="sum"),
        F.binary_cross_entropy_with_logits,
        functools.partial(F.binary_cross_entropy_with_logits, reduction="none"),
        lambda logits, target: F.softplus(logits) - logits * target,
    ],
    ids=["module", "sum", "function", "partial", "own"],
)
def test_a_loss_of_each_voxel_is_averaged_over_the_known_ones(case, loss):
    logits, labels = case
    known = labels >= 0
    reference = F.binary_cross_entropy_with_logits(logits[known], labels[known].float())
    assert torch.allclose(OrdinaryLoss(loss)(logits, labels), reference, rtol=1e-6)


def test_the_mean_is_that_of_the_toolboxs_wrapper(case):
    logits, labels = case
    wrapper = CellMapLossWrapper(nn.MSELoss)
    expected = wrapper(logits, as_nan(labels))
    assert torch.equal(OrdinaryLoss(nn.MSELoss())(logits, labels), expected)
    assert torch.equal(OrdinaryLoss(wrapper)(logits, labels), expected)


def test_a_palette_image_gives_the_loss_of_its_dense_labels(case):
    logits, _ = case
    palette = torch.tensor([[-1, 0, 1], [1, 1, -1], [0, 1, 0]], dtype=torch.int8)
    rows = torch.randint(0, 3, (2, 4, 5, 6), dtype=torch.int32)
    target = PaletteTarget(rows, palette)
    loss = OrdinaryLoss(nn.BCEWithLogitsLoss())
    assert torch.equal(loss(logits, target), loss(logits, target.dense()))


def masked_dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Dice loss of sigmoids over the known voxels alone, sample by sample and class by class."""
    losses = []
    for sample_logits, sample_labels in zip(logits, labels, strict=True):
        for x, y in zip(sample_logits, sample_labels, strict=True):
            known = y >= 0
            probability = x[known].sigmoid()
            positive = y[known].float()
            overlap = (probability * positive).sum()
            size = (probability + positive).sum()
            losses.append(1 - (2 * overlap + 1e-5) / (size + 1e-5))
    return torch.stack(losses).mean()


def check_dice(loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """A Dice loss leaves unknown voxels out: of its value, and of the gradient."""
    criterion = OrdinaryLoss(loss)
    value = criterion(logits, labels)
    assert criterion.gives_one_number
    assert value.item() == pytest.approx(masked_dice(logits, labels).item(), rel=1e-5)
    value.backward()
    assert (logits.grad[labels < 0] == 0).all()
    assert (logits.grad[labels >= 0] != 0).all()


def test_a_loss_of_one_number_leaves_unknown_voxels_out_of_overlap_and_size(case):
    check_dice(SigmoidDice(), *case)


@pytest.mark.filterwarnings("ignore")
def test_monais_dice_loss_is_taken_as_it_is(case):
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    check_dice(losses.DiceLoss(sigmoid=True), *case)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (weighted_bce, True),
        (bce_dice, True),
        (lambda logits, target, w: 0, True),
        (lambda logits, target, pos_weight=None: 0, True),
        (lambda logits, target: 0, False),
        (nn.BCEWithLogitsLoss(), False),
        (F.binary_cross_entropy_with_logits, False),
        (functools.partial(weighted_bce, pos_weight=None), False),
        (torch.binary_cross_entropy_with_logits, False),
    ],
)
def test_a_loss_is_given_pos_weight_if_it_asks_for_it(loss, expected):
    assert takes_pos_weight(loss) is expected


# Arguments


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("from common.train.losses import focal_loss as criterion", "gamma", focal_loss),
        ("from torch.nn import HuberLoss as criterion", "delta", F.huber_loss),
    ],
    ids=["function", "class"],
)
def test_arguments_are_a_setting_and_on_record(experiment, text, key, expected):
    tiny = experiment(text=text, criterion_kwargs={key: 0.5}, weight_loss=False)
    config = tiny.config(f"criterion_kwargs.{key}=0.3")
    loss = module.build_criterion(config, CPU)
    logits = torch.ones(1, 1, 1, 1, 1)
    target = torch.zeros(1, 1, 1, 1, 1)
    assert torch.equal(loss(logits, target, None), expected(logits, target, **{key: 0.3}))
    assert config.record()["criterion_kwargs"] == f"{{'{key}': 0.3}}"
    assert name_of(loss) in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "criterion_kwargs = {'gamma': 2} without a criterion; set criterion too"),
        ("from common.train.losses import dice_loss as criterion", "unexpected keyword argument"),
        ("from torch import nn\ncriterion = nn.HuberLoss()", "made already; write .* = HuberLoss"),
        ("from torch.nn import HuberLoss as criterion", "unexpected keyword argument 'gamma'"),
    ],
)
def test_arguments_that_nothing_takes_are_refused(experiment, text, sentence):
    tiny = experiment(text=text, criterion_kwargs={"gamma": 2})
    with pytest.raises(UserError, match=sentence):
        tiny.config()


def test_a_wrong_argument_of_a_class_of_ours_is_a_sentence_with_the_folder(experiment):
    text = "from common.train.losses.frequency import FrequencyWeightedBCE as criterion"
    tiny = experiment(text=text, criterion_kwargs={"classes": 2})
    with pytest.raises(UserError, match="is given 3 channels") as told:
        module.build_criterion(tiny.config(), CPU)
    assert str(told.value).startswith(f"{tiny.folder}: criterion = FrequencyWeightedBCE: ")


# What cannot be a criterion


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class criterion: ...", "cannot be called"),
        ("criterion = nn.NLLLoss()", "NLLLoss: cannot be called"),
        ("criterion = lambda logits, target: 0.0", "gives a float"),
        ("criterion = lambda logits, target, w: logits.mean() + 1j", "gives a complex number"),
        ("criterion = lambda logits, target: logits.mean((0, 1))", "shape"),
        ("criterion = lambda logits, target: target.mean()", "without a gradient"),
        ("criterion = lambda logits, target: logits.sum() / 0", "gives -inf"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_crops_are_decoded(experiment, text, reason):
    tiny = experiment(text=f"from torch import nn\n{text}")
    with pytest.raises(UserError, match=reason) as told:
        tiny.train()
    assert "\n" not in str(told.value)
    assert not (tiny.folder / "logs").exists()


@pytest.mark.parametrize(
    "text",
    [
        "criterion = nn.BCELoss",
        "criterion = nn.BCELoss()",
        "criterion = nn.functional.binary_cross_entropy",
        "import functools\ncriterion = functools.partial(nn.BCELoss, reduction='sum')",
        "def criterion(x, y):\n    return (y * x.log() + (1 - y) * (1 - x).log()).mean()",
    ],
)
def test_a_loss_for_probabilities_is_refused_with_the_file(experiment, text):
    tiny = experiment(text=f"from torch import nn\n{text}")
    with pytest.raises(UserError, match="loss gets logits here") as told:
        tiny.train()
    assert str(told.value).startswith(f"{tiny.folder}: criterion = ")


@pytest.mark.parametrize(
    ("text", "keywords", "told"),
    [
        ("from torch.nn import BCEWithLogitsLoss as _loss", "pos_weight=[1, 2]", "cannot be made"),
        ("from torch.nn import BCEWithLogitsLoss as _loss", "pos_weight=torch.ones(3)", "along x"),
        (
            "from monai.losses import DiceLoss as _loss",
            "sigmoid=True, softmax=True",
            "cannot be made",
        ),
        ("from common.train.losses import focal_loss as _loss", "alpha=1.5", "alpha = 1.5; write"),
        ("from common.train.losses import focal_loss as _loss", "gamma=-1", "gamma = -1; write"),
        ("from common.train.losses import dice_loss as _loss", "smooth=-1", "smooth = -1; write"),
        (
            "from common.train.losses import tversky_loss as _loss",
            "beta=-0.1",
            "beta = -0.1; write",
        ),
        (
            "from common.train.losses import tversky_loss as _loss",
            "alpha=0, beta=0",
            "nothing to learn",
        ),
        (
            "from common.train.losses import class_weighted_bce as _loss",
            "class_weight=torch.ones(2)",
            "one number for each of the 3 classes",
        ),
        (
            "from common.train.losses.categorical import dice_focal as _loss",
            "alpha=-1",
            "alpha = -1; write",
        ),
        (
            "from common.train.losses import WeightedSum as _loss",
            "losses=[(-1.0, torch.nn.MSELoss)]",
            "weight = -1.0; write",
        ),
    ],
)
def test_arguments_that_a_loss_cannot_have_are_a_sentence(experiment, text, keywords, told):
    text = f"import torch\n{text}\ncriterion = _loss\ncriterion_kwargs = dict({keywords})"
    tiny = experiment(text=text)
    with pytest.raises(UserError, match=told) as refused:
        module.build_criterion(tiny.config(), CPU)
    assert str(refused.value).startswith(f"{tiny.folder}: criterion = ")


def unusual_of(tiny) -> list[str]:
    config = tiny.config()
    return module.unusual(module.build_criterion(config, CPU), config, CPU)


@pytest.mark.parametrize(
    "text",
    [
        "from monai.losses import DiceLoss\ncriterion = DiceLoss()",
        "from monai.losses import TverskyLoss\ncriterion = TverskyLoss()",
        "from torch import nn\ncriterion = nn.MSELoss()",
        "from torch import nn\ncriterion = nn.L1Loss",
    ],
)
def test_a_loss_that_is_not_for_logits_is_told(experiment, text):
    (sentence,) = unusual_of(experiment(text=text))
    assert "criterion = " in sentence and "loss gets logits here" in sentence


@pytest.mark.parametrize(
    "text",
    [
        "from torch import nn\ncriterion = nn.CrossEntropyLoss()",
        "from common.train.losses.categorical import dice_focal as criterion",
    ],
)
def test_a_softmax_over_channels_with_a_sigmoid_each_is_told(experiment, text):
    (sentence,) = unusual_of(experiment(text=text))
    assert "write the channels that exclude each other into softmax" in sentence


@pytest.mark.parametrize(
    "text",
    [
        "from monai.losses import DiceLoss\ncriterion = DiceLoss(sigmoid=True)",
        "from monai.losses import DiceCELoss\ncriterion = DiceCELoss(sigmoid=True)",
        "from monai.losses import FocalLoss\ncriterion = FocalLoss()",
        "from monai.losses import TverskyLoss\ncriterion = TverskyLoss(sigmoid=True)",
        "from torch import nn\ncriterion = nn.BCEWithLogitsLoss()",
        "from torch import nn\ncriterion = nn.SoftMarginLoss",
        "from torch import nn\ncriterion = nn.MultiLabelSoftMarginLoss()",
        "from common.train.losses import bce_dice\ncriterion = bce_dice",
        "from common.train.losses import dice_loss\ncriterion = dice_loss",
    ],
)
def test_losses_for_logits_are_taken_without_a_word(experiment, text):
    assert unusual_of(experiment(text=text)) == []


RIGHT = [
    "from torch.nn import BCEWithLogitsLoss as _made",
    "from torch.nn import MSELoss as _made",
    "from torch.nn import SoftMarginLoss as _made",
    "from torch.nn import CrossEntropyLoss as _made",
    "from torch.nn import PoissonNLLLoss as _made",
    "from monai.losses import DiceLoss\n_made = lambda: DiceLoss(sigmoid=True)",
    "from monai.losses import TverskyLoss\n_made = lambda: TverskyLoss(sigmoid=True)",
    "from monai.losses import FocalLoss as _made",
]
OURS_RIGHT = ["weighted_bce", "dice_loss", "tversky_loss", "focal_loss", "bce_dice", "dice_focal",
              "categorical_cross_entropy", "categorical_dice_loss"]  # fmt: skip


def test_a_loss_called_criterion_is_not_named_twice(experiment):
    text = "def criterion(logits, target):\n    return (logits.sigmoid() - target).square().mean()"
    config = experiment(text=text).config()
    made = module.build_criterion(config, torch.device("cpu"))
    assert [line[:20] for line in module.notices(made, True)] == [
        "criterion gives one ",
        "criterion takes no p",
    ]


@pytest.mark.parametrize("classes", ["mito", "mito,er,nuc"])
@pytest.mark.parametrize("text", RIGHT)
def test_losses_of_other_libraries_are_taken_and_refused_with_the_other_sign(
    experiment, text, classes
):
    tiny = experiment(text=f"{text}\ncriterion = _made()\n", classes=classes.split(","))
    module.build_criterion(tiny.config(), CPU)
    if "CrossEntropyLoss" in text and classes == "mito":
        return  # a softmax over one channel says nothing
    tiny.add("_loss = criterion\ndef criterion(logits, target):\n    return -_loss(logits, target)")
    refused_as_a_reward(tiny)


@pytest.mark.parametrize("name", OURS_RIGHT)
def test_losses_of_ours_are_taken_and_refused_with_the_other_sign(experiment, name):
    tiny = experiment(text=f"from common.train.losses import {name} as criterion")
    module.build_criterion(tiny.config(), CPU)
    tiny.add(
        "_loss = criterion\n"
        "def criterion(logits, target, pos_weight):\n"
        "    return 1 - _loss(logits, target, pos_weight)"
    )
    refused_as_a_reward(tiny)


def refused_as_a_reward(tiny) -> None:
    with pytest.raises(UserError, match=r"for logits that are right and .* turn its sign") as told:
        module.build_criterion(tiny.config(), CPU)
    assert str(told.value).startswith(f"{tiny.folder}: criterion = criterion: gives ")


def test_a_loss_that_is_nan_where_nothing_is_known_is_told(experiment):
    text = """
        from torch import nn


        def criterion(logits, target, pos_weight):
            labels = target.palette.t()[:, target.rows.long()].movedim(0, 1)
            known = labels >= 0
            return nn.BCEWithLogitsLoss()(logits[known], labels[known].float())
        """
    (sentence,) = unusual_of(experiment(text=text))
    assert "not finite where nothing of a patch is known" in sentence


def test_a_loss_on_another_device_is_told_what_to_do(experiment):
    tiny = experiment()
    error = RuntimeError("Expected all tensors to be on the same device, but found cpu and cuda:0")

    def elsewhere(logits, target):
        raise error

    with pytest.raises(UserError, match="register_buffer"):
        module.try_out(OrdinaryLoss(elsewhere), tiny.config(), CPU)


def test_an_error_in_the_users_own_loss_keeps_its_traceback(experiment):
    text = """
        def criterion(logits, target):
            return logits + None
        """
    with pytest.raises(TypeError) as raised:
        experiment(text=text).train()
    assert any(entry.path.name == "train_config.py" for entry in raised.traceback)


def test_a_class_that_needs_arguments_is_refused_with_the_setting(experiment):
    tiny = experiment(text="from torch import nn\ncriterion = nn.CrossEntropyLoss\n")
    tiny.config()
    text = "class Loss:\n    def __init__(self, alpha):\n        pass\n\n\ncriterion = Loss\n"
    with pytest.raises(UserError, match="alpha"):
        experiment("other", text=text).config()


# Several outputs


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 8, 4), (6, 8, 4)])
def test_a_target_is_resampled_by_nearest_neighbours(shape):
    labels = torch.randint(-1, 2, (2, 3, 6, 8, 4), dtype=torch.int8)
    reference = F.interpolate(labels.float(), shape, mode="nearest-exact")
    assert torch.equal(resampled(labels, shape).float(), reference)
    rows = torch.randint(0, 9, (2, 6, 8, 4), dtype=torch.int32)
    coarse = resampled(PaletteTarget(rows, torch.zeros(9, 1, dtype=torch.int8)), shape)
    reference = F.interpolate(rows[:, None].float(), shape, mode="nearest-exact")
    assert torch.equal(coarse.rows[:, None].float(), reference)


def test_several_outputs_are_weighed_1_half_quarter():
    labels = torch.randint(-1, 2, (1, 2, 8, 8, 8), dtype=torch.int8)
    outputs = [torch.randn(1, 2, n, n, n) for n in (8, 4, 2)]
    losses = [weighted_bce(x, resampled(labels, x.shape[2:]), None) for x in outputs]
    expected = (4 * losses[0] + 2 * losses[1] + losses[2]) / 7
    assert torch.allclose(over_outputs(weighted_bce, outputs, labels, None), expected)


def test_outputs_with_other_channels_are_refused():
    outputs = [torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 5, 4, 4, 4)]
    with pytest.raises(UserError, match=r"\(1, 5, 4, 4, 4\)"):
        over_outputs(dice_loss, outputs, torch.zeros(1, 2, 8, 8, 8), None)


# Whole runs


def losses_of(tiny, run: str) -> list[float]:
    from common.train.recording.record import read_history

    return read_history(tiny.folder / f"logs/tiny_experiment/{run}")["train/loss"].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "nn.BCEWithLogitsLoss()",
        "nn.BCEWithLogitsLoss",
        "functools.partial(nn.BCEWithLogitsLoss, reduction='sum')",
        "F.binary_cross_entropy_with_logits",
    ],
)
def test_torchs_cross_entropy_trains_as_ours_without_weights(experiment, text, capsys):
    tiny = experiment(weight_loss=False)
    tiny.train(run_name="ours")
    tiny.add(
        "import functools\nimport torch.nn.functional as F\nfrom torch import nn\n"
        f"criterion = {text}"
    )
    tiny.train(run_name="torchs")
    assert losses_of(tiny, "torchs") == pytest.approx(losses_of(tiny, "ours"), rel=1e-5)
    assert "note: criterion" not in capsys.readouterr().err


def test_a_run_does_not_go_on_with_a_loss_of_other_arguments(experiment):
    tiny = experiment(text="from torch import nn\ncriterion = nn.BCEWithLogitsLoss()", epochs=1)
    tiny.train()
    tiny.add("import torch\ncriterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))")
    with pytest.raises(UserError, match=r"criterion was .* and is .*pos_weight=2.0"):
        tiny.train(epochs=2)


def test_a_loss_of_one_number_trains_and_says_what_unknown_voxels_are(experiment, capsys):
    text = """
        import torch
        from torch import nn


        class Dice(nn.Module):
            def __init__(self, smooth=1.0):
                super().__init__()
                self.register_buffer("smooth", torch.tensor(smooth))

            def forward(self, input, target):
                probability = input.sigmoid()
                overlap = (probability * target).sum()
                size = (probability + target).sum()
                return 1 - (2 * overlap + self.smooth) / (size + self.smooth)


        criterion = Dice(smooth=2.0)
        """
    tiny = experiment(epochs=4, iterations_per_epoch=30, learning_rate=0.02, text=text)
    tiny.train()
    losses = losses_of(tiny, "seed42")
    assert losses[-1] < 0.8 * losses[0]
    said = capsys.readouterr().err
    assert "Dice gives one number" in said
    assert "weight_loss has no effect" in said


def test_a_module_is_moved_to_the_device():
    class Loss(nn.Module):
        def to(self, device):
            moved.append(device)
            return self

        def forward(self, logits, target, pos_weight):
            return weighted_bce(logits, target, pos_weight)

    moved = []
    config = _Config(Loss())
    assert type(module.build_criterion(config, CPU)) is Loss
    assert moved == [CPU]


class _Config:
    """As much of a configuration as a criterion is built from."""

    classes = ("mito", "er")
    target_array_info = MappingProxyType({"shape": (4, 4, 4)})
    criterion_kwargs = MappingProxyType({})
    weight_loss = True
    folder = None

    def __init__(self, criterion):
        self.criterion = criterion


DEEP = """
    import torch
    from torch import nn


    class Deep(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body = nn.Sequential(nn.Conv3d(1, 8, 5), nn.ReLU())
            self.fine = nn.Conv3d(8, classes, 1)
            self.coarse = nn.Conv3d(8, classes, 1)

        def forward(self, raw):
            features = self.body(raw)
            small = nn.functional.avg_pool3d(features, 2)
            return [self.fine(features), self.coarse(small)]


    def build_model(classes):
        return Deep(len(classes))
    """


def test_a_network_with_two_outputs_learns_from_both_and_is_judged_by_the_first(experiment):
    from common.train.setup import prepare

    tiny = experiment(files={"model.py": DEEP}, epochs=1, iterations_per_epoch=1)
    setup, state = prepare(tiny.config())
    batch = next(setup.training_from(0))
    with torch.no_grad():
        fine, coarse = state.model(batch.raw)
    labels = batch.target.dense()
    # every second voxel, the second of each pair: the nearest to the centre of a coarse voxel
    losses = [
        weighted_bce(fine, labels, setup.method.pos_weight),
        weighted_bce(coarse, labels[..., 1::2, 1::2, 1::2], setup.method.pos_weight),
    ]
    expected = (2 * losses[0] + losses[1]) / 3
    tiny.train()
    assert losses_of(tiny, "seed42") == [pytest.approx(expected.item(), rel=1e-5)]


def test_both_outputs_of_a_network_start_at_the_prior(experiment):
    from common.train.setup import prepare

    _, state = prepare(experiment(files={"model.py": DEEP}).config())
    assert state.model.fine.bias.abs().min() > 0
    assert torch.equal(state.model.fine.bias, state.model.coarse.bias)


def test_a_network_with_two_outputs_predicts_with_the_first(experiment):
    from cellmap_segmentation_challenge import predict

    tiny = experiment(files={"model.py": DEEP}, epochs=1)
    result = tiny.train()
    predict(tiny.folder, data=tiny.data)
    record = json.loads((result.logs / "run.json").read_text())
    assert record["result"]["finished"]
    assert list((tiny.folder / "predictions").rglob("mito"))


@pytest.mark.parametrize(
    ("later", "sentence"),
    [
        ("0.0", "criterion gives a float for a batch in training"),
        ("[loss]", "criterion gives a list for a batch"),
        ("loss.detach()", "without a gradient for a batch"),
        ("loss.expand(2)", r"shape \(2,\) for a batch"),
    ],
)
def test_a_loss_that_gives_something_else_later_is_told(experiment, monkeypatch, later, sentence):
    """From the second step on; before it the loss is tried, however often."""
    text = f"""
        from pathlib import Path

        from common.train.losses import weighted_bce

        _marker = Path(__file__).with_name("second_step")


        def criterion(logits, target, pos_weight):
            loss = weighted_bce(logits, target, pos_weight)
            return {later} if _marker.exists() else loss
        """
    tiny = experiment(text=text)
    take_step = steps.step
    begun = []

    def step(*arguments, **options):
        begun.append(1)
        if len(begun) == 2:
            (tiny.folder / "second_step").touch()
        return take_step(*arguments, **options)

    monkeypatch.setattr(steps, "step", step)
    with pytest.raises(UserError, match=sentence):
        tiny.train()
    assert len(begun) == 2


# ---- a loss with a state


COUNTING = """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Counting(nn.Module):
        '''Cross-entropy over the square root of the calls so far, which a buffer counts.'''

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("drawn", torch.rand(2))
            self.reduction = "mean"

        def forward(self, logits, target{third}):
            if self.training:
                self.calls += 1
            losses = F.binary_cross_entropy_with_logits(logits, {target}.float(), reduction="none")
            return {reduced} / self.calls.clamp(min=1).sqrt()


    criterion = Counting{made}
    """
ORDINARY = {"third": "", "target": "target", "reduced": "losses"}
OURS = {"third": ", pos_weight", "target": "(target.dense() > 0)", "reduced": "losses.mean()"}


@pytest.mark.parametrize("made", ["", "()"], ids=["class", "instance"])
@pytest.mark.parametrize("form", [ORDINARY, OURS], ids=["two arguments", "three"])
def test_what_a_loss_counts_is_saved_and_a_run_in_parts_equals_a_whole_one(experiment, form, made):
    text = COUNTING.format(**form, made=made)
    if made:  # an instance is on record with its numbers
        text = text.replace("torch.rand(2)", "torch.ones(2)")
    tiny = experiment(text=text, epochs=4)
    saved = {}
    for run in ("whole", "parts"):
        if run == "parts":
            tiny.train(run_name=run, epochs=2)
        result = tiny.train(run_name=run)
        saved[run] = torch.load(result.checkpoint.with_name("latest.pt"), weights_only=True)
    # neither the trial before training nor validation counts
    assert saved["whole"]["criterion"]["calls"] == saved["parts"]["criterion"]["calls"] == 4 * 3
    drawn = [saved[run]["criterion"]["drawn"] for run in saved]
    assert torch.equal(*drawn)
    for name, tensor in saved["whole"]["model"].items():
        assert torch.equal(tensor, saved["parts"]["model"][name])


def test_a_loss_that_keeps_something_else_by_now_is_refused(experiment):
    tiny = experiment(text=COUNTING.format(**ORDINARY, made=""))
    tiny.train()
    changed = COUNTING.format(**ORDINARY, made="").replace("torch.rand(2)", "torch.rand(3)")
    tiny.add(changed)
    with pytest.raises(UserError, match=r"kept something else \(1 of 2 .*drawn \(2,\) there"):
        tiny.train(epochs=3)


def test_parameters_of_a_loss_that_nobody_trains_are_told(experiment, capsys):
    text = COUNTING.format(**ORDINARY, made="")
    text = text.replace('self.reduction = "mean"', "self.scale = nn.Parameter(torch.ones(()))")
    text = text.replace('reduction="none")', 'reduction="none") * self.scale')
    experiment(text=text).train()
    assert "criterion Counting has parameters, which are not trained" in capsys.readouterr().err


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, logits, target):
        return (logits - target).square()


def test_a_class_is_made_and_not_copied_and_an_instance_that_has_no_copy_is_told():
    module.build_criterion(_Config(Locked), CPU)
    with pytest.raises(
        UserError, match=r"criterion = Locked\(...\): an instance.*= Locked, and its"
    ):
        module.build_criterion(_Config(Locked()), CPU)
