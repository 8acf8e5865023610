"""Settings of a public configuration that mean what ours do, in another form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.classes import ATOM_IDS, GROUP_IDS, unknown_names
from common.config.as_text import as_text
from common.config.public.draft import Draft
from common.talk import some


def array_info(name: str) -> Callable[[Draft, Any], None]:
    """The rule of one array info: the toolbox may give its array a name."""

    def rule(draft: Draft, info: Any) -> None:
        if info is None:
            return
        if isinstance(info, dict) and info and all(isinstance(v, dict) for v in info.values()):
            distinct = {as_text(value) for value in info.values()}
            if len(distinct) == 1:
                draft.note(name, f"the array {some([*map(str, info)])} has no name here")
                info = next(iter(info.values()))
        draft.settings[name] = info

    return rule


def classes(draft: Draft, classes: Any) -> None:
    """Names, also ones outside of the challenge's table."""
    if hasattr(classes, "tolist"):  # an array of NumPy, a column of a table
        classes = classes.tolist()
    draft.settings["classes"] = classes
    are_names = isinstance(classes, list | tuple) and all(isinstance(n, str) for n in classes)
    # what are none is told by the checks
    if not are_names or "extra_classes" in draft.given:
        return
    own = [name for name in classes if name not in ATOM_IDS and name not in GROUP_IDS]
    if own:
        draft.settings["extra_classes"] = tuple(own)
        told = [sentence for sentence in unknown_names(own) if "did you mean" in sentence]
        told = told or [f"nothing is inferred about {some(own)}"]
        draft.note("classes", f"outside the challenge's table; {'; '.join(told)}")


def random_seed(draft: Draft, seed: Any) -> None:
    """A number, also as text."""
    if seed is None:
        return
    # os.environ.get gives text
    is_text = isinstance(seed, str) and seed.isdecimal()
    draft.settings["random_seed"] = int(seed) if is_text else seed
    draft.note(
        "random_seed",
        "SEED of the environment goes before it, and getattr(os.environ, 'SEED', 42) gives it "
        "here; in the toolbox that is always 42",
    )


def dataloader_kwargs(draft: Draft, keywords: Any) -> None:
    """The number of workers."""
    keywords = dict(keywords or {})
    workers = keywords.pop("num_workers", None)
    if workers is not None and "num_workers" not in draft.given:
        draft.settings["num_workers"] = workers
    if keywords:
        draft.note(
            "dataloader_kwargs",
            f"num_workers is taken; {some(sorted(keywords))} the loader here sets by itself",
        )


def device(draft: Draft, device: Any) -> None:
    """As text; None is auto."""
    if device is not None:
        draft.settings["device"] = str(device)


def smoothing_window(draft: Draft, window: Any) -> None:
    """Epochs over which a metric is averaged, as the weight of a running mean."""
    if not isinstance(window, int) or window <= 1:
        return
    # a running mean with this weight looks as far back as the window
    draft.settings["metric_smoothing"] = (window - 1) / (window + 1)
    draft.note(
        "smoothing_window",
        f"metric_smoothing = {draft.settings['metric_smoothing']:.3g}, a running mean that looks "
        "as far back",
    )


def use_mixed_precision(draft: Draft, on: Any) -> None:
    """The number type."""
    draft.settings.setdefault("precision", "auto" if on else "fp32")
    draft.note("use_mixed_precision", f"precision = '{draft.settings['precision']}'")
