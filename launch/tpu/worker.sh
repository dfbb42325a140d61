#!/usr/bin/env bash
# Installs uv, Python 3.12 and the package with jax[tpu]; setup.sh runs this on each worker.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/environment.sh
help_if_asked "launch/tpu/${0##*/}" "$@"

PATH="$HOME/.local/bin:$PATH"
if ! command -v uv >/dev/null; then
  curl --fail --silent --show-error --location https://astral.sh/uv/install.sh | sh
fi
uv python install --quiet 3.12
PYTHON=$(uv python find 3.12)
environment .venv "[tpu]"
