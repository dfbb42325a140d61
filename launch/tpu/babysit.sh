#!/usr/bin/env bash
# Sees a run through to its end: creates the TPU, sets it up and starts the run, again whenever a
# spot TPU is taken away or the run dies. The run resumes from its last checkpoint.
#
#   bash launch/tpu/babysit.sh [--dry-run] ARGUMENTS      as for run.sh
#
# Waits TPU_POLL_SECONDS before the first restart, then twice as long each time, at most half an
# hour; an hour without a restart resets the wait. Gives up after TPU_RESTARTS. Exit code: 0 the run
# has finished, 2 its arguments are wrong (see logs.sh), 1 given up. The TPU is not deleted. Start
# this in tmux, on a machine that stays on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
tpu() { bash "launch/tpu/$1.sh" "${@:2}"; }

if [[ $dry_run ]]; then
  tpu create --dry-run
  tpu setup --dry-run
  tpu run --dry-run "$@"
  exit
fi

limit=${TPU_RESTARTS:-20} restarts=0 delay=$poll unanswered=0
SECONDS=0 # since the last restart, counted by bash

# before_restart REASON: waits, or gives up.
before_restart() {
  if ((restarts == limit)); then
    say "$1; given up after $limit restarts"
    exit 1
  fi
  if ((SECONDS > 3600)); then
    delay=$poll
  fi
  restarts=$((restarts + 1))
  say "$1; restart $restarts of $limit in $delay s"
  sleep "$delay"
  delay=$((delay < 900 ? delay * 2 : 1800)) unanswered=0 SECONDS=0
}

# look ARGUMENTS: checks the run on an active TPU; starts or restarts it, exits when it is over.
look() {
  local runs
  if ! runs=$(on_workers all "$show_unit"); then
    unanswered=$((unanswered + 1))
    if ((unanswered == 10)); then
      before_restart "the workers do not answer"
      tpu delete || true
    fi
  elif [[ $runs == *": running "* ]]; then
    unanswered=0
  elif [[ $runs =~ ": failed 2"($|[^0-9]) ]]; then
    say "the run refuses its arguments, see logs.sh"
    exit 2
  elif [[ $runs =~ ": failed "([0-9]+) ]]; then
    before_restart "the run ended with exit code ${BASH_REMATCH[1]}"
    if [[ $(state) == ACTIVE ]]; then # if not, the run ended because the VM did
      tpu run "$@" || true
    fi
  elif [[ $runs == *": dead "* ]]; then
    say "setting up and starting the run"
    if ! tpu setup || ! tpu run "$@"; then
      before_restart "the run could not be started"
    fi
  elif ! grep --quiet --invert-match ": exited 0$" <<<"$runs"; then
    say "the run has finished"
    exit
  fi
}

while true; do
  case $(state) in
    NONE)
      say "asking for $TPU_NAME"
      tpu create || before_restart "the TPU could not be created"
      ;;
    SUSPENDED | FAILED)
      before_restart "the TPU was taken away"
      tpu delete || true
      ;;
    ACTIVE)
      look "$@"
      sleep "$poll"
      ;;
    *) sleep "$poll" ;; # in preparation
  esac
done
