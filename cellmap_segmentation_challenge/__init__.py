"""The command line, and the public names that scripts of this field import. The engine is in `common/`."""

from __future__ import annotations

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # other submodules of an installed public toolbox stay importable


def train(config_path, overrides=(), data=None, **settings):  # noqa: ANN001, ANN201 - see common.train
    """Train the experiment of a configuration file; see `common.train.train`."""
    from common.train import train as run

    return run(config_path, overrides, data, **settings)
