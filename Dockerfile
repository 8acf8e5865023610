# The commands, with every version as in requirements.lock. Experiments and data stay outside:
#
#   docker build -t csc-baselines .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD:/work" csc-baselines train my_cells
#
# --ipc host: workers hand batches over in shared memory, of which a container has 64 MB.
FROM python:3.12-slim

WORKDIR /opt/csc-baselines
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY common common
COPY cellmap_segmentation_challenge cellmap_segmentation_challenge
RUN python -m pip install --no-cache-dir --constraint requirements.lock ".[formats,cluster,viewer]"

# whoever --user names has no home
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /work
ENTRYPOINT ["python", "-m", "cellmap_segmentation_challenge"]
CMD ["--help"]
