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

    for marker, table in (("train settings", TrainConfig), ("process settings", ProcessConfig)):
        place = f"<!-- {marker} -->"
        if place in markdown:
            markdown = markdown.replace(place, settings_table(table))
    return markdown


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
