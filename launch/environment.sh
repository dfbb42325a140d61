# shellcheck shell=bash
# Sourced by the scripts beside it, from the root of the repository.

# help_if_asked SCRIPT ARGUMENTS...: for --help, prints the comment on top of the script and exits.
help_if_asked() {
  if [[ "${2:-}" == "--help" || "${2:-}" == "-h" ]]; then
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$1"
    exit
  fi
}

# install DIR ARGUMENTS...: installs into the virtual environment DIR, with uv if it is available.
install() {
  local directory=$1
  shift
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$directory/bin/python" "$@"
  else
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  fi
}

# environment DIR EXTRAS: creates the virtual environment DIR with the package and its extras
# ("" or "[test,parity]"), from PYTHON (default: python3). Does nothing if it is up to date.
environment() {
  local directory=$1 extras=$2 python=${PYTHON:-python3} stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; name one: PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  stamp="$("$python" --version) $(cat setup.py setup.cfg pyproject.toml | cksum) $extras"
  if [[ $(cat "$directory/installed" 2>/dev/null) == "$stamp" ]]; then
    return
  fi
  echo "== Installing into $directory (once; takes a minute or two)"
  if command -v uv >/dev/null; then
    uv venv --quiet --allow-existing --python "$python" "$directory"
  else
    "$python" -m venv "$directory"
  fi
  install "$directory" --editable ".$extras"
  echo "$stamp" >"$directory/installed"
}
