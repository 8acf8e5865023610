"""Downloads by the public toolbox's arguments."""

from __future__ import annotations

import os

from cellmap_segmentation_challenge._public import names_of
from common.data.download import fetch
from common.data.download.fetch import FetchReport
from common.errors import UserError
from common.talk import note, say

__getattr__ = names_of(__name__, {})


# the public toolbox's arguments, in its order
def fetch_data(  # noqa: PLR0913, PLR0917
    crops: str = "all",
    raw_padding: int | None = None,
    dest: str | os.PathLike[str] | None = None,
    access_mode: str = "append",
    fetch_all_em_resolutions: bool = False,
    batch_size: int | None = None,
    num_workers: int = 32,
    use_zip: bool = False,
    *,
    dry_run: bool = False,
) -> FetchReport:
    """Fetch crops and the raw around them, as the command fetch-data does.

    Args:
        crops: "all", "test", or names separated by commas.
        raw_padding: voxels of raw around a crop; as far as the baselines read unless given.
        dest: the data root.
        access_mode: "append", or "overwrite", which checks what is there and replaces what differs.
        fetch_all_em_resolutions: every level of the raw.
        batch_size: without effect.
        num_workers: downloads at a time.
        use_zip: refused.
        dry_run: say the sizes, fetch nothing.

    Raises:
        UserError: as `common.data.download.fetch.fetch` does.
    """
    if use_zip:
        raise UserError("fetch_data: files are fetched one by one; leave use_zip out")
    if access_mode not in ("append", "overwrite"):
        raise UserError(f"fetch_data: access_mode '{access_mode}'; write append or overwrite")
    if batch_size is not None:
        note("fetch_data: batch_size has no effect; files are fetched one by one")
    return fetch.fetch(
        "*" if crops == "all" else crops,
        padding_voxels=raw_padding,
        data=None if dest is None else str(dest),
        all_resolutions=fetch_all_em_resolutions,
        workers=num_workers,
        verify=access_mode == "overwrite",
        dry_run=dry_run,
        say=say,
    )
