# Sourced by the scripts beside it: makes the virtual environment DIR with the package and its
# EXTRAS, with uv where there is one, else with venv and pip. Does nothing if it is up to date.
#
#   environment DIR EXTRAS      e.g. environment .venv ""    environment .venv-test "[test]"

environment() {
  local directory=$1 extras=$2 python=${PYTHON:-python3} stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  stamp="$("$python" --version) $(cat setup.cfg pyproject.toml | cksum) $extras"
  if [[ $(cat "$directory/installed" 2>/dev/null) == "$stamp" ]]; then
    return
  fi
  echo "== Installing into $directory (once; a few minutes on a slow network)"
  if command -v uv >/dev/null; then
    uv venv --quiet --allow-existing --python "$python" "$directory"
    uv pip install --quiet --python "$directory/bin/python" --editable ".$extras"
  else
    "$python" -m venv "$directory"
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  fi
  echo "$stamp" >"$directory/installed"
}
