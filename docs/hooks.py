"""MkDocs hook: what is made of the code when the pages are built, so that it cannot go stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[1]

AUGMENTATIONS = "<!-- augmentations -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Show the picture of a real result, which `evaluate --write-readme` writes."""
    picture = REPOSITORY / "examples" / "flyem_medulla" / "scores.png"
    files.append(File.generated(config, "scores.png", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables of settings in the places of their markers."""
    from common.config.settings import ProcessConfig, TrainConfig

    if AUGMENTATIONS in markdown:
        markdown = markdown.replace(AUGMENTATIONS, augmentations_table())

    for marker, made in (
        ("public options", public_options),
        ("public defaults", public_defaults),
        ("public names", public_names),
    ):
        place = f"<!-- {marker} -->"
        if place in markdown:
            markdown = markdown.replace(place, made())
    for marker, table in (("train settings", TrainConfig), ("process settings", ProcessConfig)):
        place = f"<!-- {marker} -->"
        if place in markdown:
            markdown = markdown.replace(place, settings_table(table))
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Leave empty what mkdocs-click writes of an option without a default since click 8.3."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def settings_table(table: type) -> str:
    """A Markdown table of the settings of a configuration: name, default, meaning."""
    from common.config.settings import describe

    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, default, meaning in describe(table):
        cells = [f"`{name}`", f"`{default}`", meaning.strip()]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def augmentations_table() -> str:
    """A Markdown table of the kinds of the setting `augmentations`, and of their values."""
    from common.config.augmentations import KINDS
    from common.config.settings import describe

    lines = ["| kind | value | default | meaning |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        does = " ".join((kind.__doc__ or "").split())
        lines.append(f"| **`{name}`** | | | {does} |")
        for value, default, meaning in describe(kind):
            lines.append(f"| | `{value}` | `{default}` | {meaning.strip()} |")
    return "\n".join(lines)


def public_options() -> str:
    """A Markdown table of the options of the public toolbox's commands."""
    from common.shell import public

    lines = ["| command | option | here |", "|---|---|---|"]
    for command, flags, here in public.rows():
        lines.append(_row(f"`{command}`", flags, here))
    return "\n".join(lines)


def public_defaults() -> str:
    """A Markdown table of the options that `csc` has another default of."""
    from common.shell import public
    from common.shell.cli import cli

    lines = ["| command | option | `csc` | here |", "|---|---|---|---|"]
    for name, defaults in public.DEFAULTS.items():
        for param in cli.commands[name].params:
            if param.name in defaults:
                ours = f"`{param.default}`" if isinstance(param.default, str) else "to be given"
                cells = (f"`{name}`", f"`{param.opts[0]}`", f"`{defaults[param.name]}`", ours)
                lines.append(_row(*cells))
    return "\n".join(lines)


def public_names() -> str:
    """A Markdown table of public names for each module of ours."""
    from cellmap_segmentation_challenge import _names

    parts = []
    for module in _names.MODULES:
        lines = [f"### {module}", "", "| name | here | differs |", "|---|---|---|"]
        lines += [_row(*row) for row in _names.rows(module)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
