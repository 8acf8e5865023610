"""Start TensorBoard in this process."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from urllib.parse import urlencode

from common.errors import UserError

LOOPBACK = "127.0.0.1"

PINNED = ("mean/dice", "mean/iou", "loss/validation", "loss/train")
"""Tags of the charts that are pinned above all others."""

INTERVAL = 5
"""Seconds between two looks at the runs, by us and by TensorBoard."""


def start(folder: Path, port: int) -> str:
    """Start TensorBoard on a folder of runs, in a thread of this process, and return its address.

    Its data server (the default) and its reader in Python, which it falls back to, both follow
    links. Raises UserError if the port cannot be had.
    """
    from tensorboard import program  # takes longer than all else here

    _refuse_busy(port)
    tensorboard = program.TensorBoard()
    tensorboard.configure(logdir=str(folder), host=LOOPBACK, port=port, reload_interval=INTERVAL)
    try:
        return tensorboard.launch()
    except program.TensorBoardServerException as error:
        raise UserError(
            f"{error.msg}; choose another by --port, or --port 0 for any free one"
        ) from error


def first_page(address: str) -> str:
    """Return the address of the page with losses and means above the charts of single classes.

    TensorBoard sorts charts by the alphabet, but for those that its address pins.
    """
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    query = urlencode({"pinnedCards": json.dumps(cards, separators=(",", ":"))})
    return f"{address}?{query}#timeseries"


def _refuse_busy(port: int) -> None:
    """Raise UserError if `port` cannot be had.

    TensorBoard itself finds out only once its data server runs, which it then leaves behind.
    """
    with socket.socket() as probe:
        # as TensorBoard does: a port that was closed just now is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise UserError(
                f"port {port}: {reason}; choose another by --port, or --port 0 for any free one"
            ) from error
