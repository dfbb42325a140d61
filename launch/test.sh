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
directory=${VENV:-.venv-test}
environment "$directory" "[test]"
"$directory/bin/python" -m pytest "$@"
