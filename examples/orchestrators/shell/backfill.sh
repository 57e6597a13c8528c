#!/bin/sh
# Submit a job to a daemon, follow it to its end, and say by the exit code whether the next step may go:
#   BACKFILL_DAEMON=unix:///run/backfill/backfill.sock ./backfill.sh job.yaml && ./drop-the-old-table.sh
# Whatever ends this script, the job goes on. Start it again, here or elsewhere: the same spec is the same job.
set -eu
spec=${1:?usage: backfill.sh job.yaml}
: "${BACKFILL_DAEMON:=unix:///run/backfill/backfill.sock}"
export BACKFILL_DAEMON
if [ -n "${BACKFILL_TOKEN_FILE:-}" ]; then
    BACKFILL_TOKEN=$(cat "$BACKFILL_TOKEN_FILE")
    export BACKFILL_TOKEN
fi

# 5: nobody answers; 75: try again, so many times, and then it is the orchestrator's turn. Everything else is decided:
# 0 done, 3 spec, 4 preflight, 6 mismatch, 7 stopped by a guard, 8 cancelled (docs/cli.md).
left=${BACKFILL_TRIES:-20}
until backfill run "$spec"; do
    code=$?
    left=$((left - 1))
    case $code in
        5 | 75) [ "$left" -gt 0 ] || exit "$code" ;;
        *) exit "$code" ;;
    esac
    sleep "${BACKFILL_RETRY_S:-5}"
done
exec backfill gate "$spec"   # 0 only when the old side may be given up
