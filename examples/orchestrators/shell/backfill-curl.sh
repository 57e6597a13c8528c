#!/bin/sh
# The same with nothing but curl and jq, over a Unix socket or TCP:
#   BACKFILL_DAEMON=unix:///run/backfill/backfill.sock ./backfill-curl.sh job.json && ./drop-the-old-table.sh
# Exit codes are those of the command line: 0 ready, 2 no such job, 3 spec, 4 preflight, 5 no answer or not let in,
# 6 mismatch, 7 stopped by a guard or not ready, 8 cancelled, 75 try again. Whatever ends this script, the job goes on; start it again: the same spec is the same job.
set -eu
spec=${1:?usage: backfill-curl.sh job.json}
daemon=${BACKFILL_DAEMON:-unix:///run/backfill/backfill.sock}
patience=${BACKFILL_PATIENCE:-60}   # tries, a second apart, while the daemon is away: a restart takes a few
name=$(jq -er .name "$spec")

umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
answer=$folder/answer
: >"$folder/headers"
token=${BACKFILL_TOKEN:-}
[ -z "${BACKFILL_TOKEN_FILE:-}" ] || token=$(cat "$BACKFILL_TOKEN_FILE")
# In a file, because everybody can read the arguments of a process.
[ -z "$token" ] || printf 'Authorization: Bearer %s\n' "$token" >"$folder/headers"
case $daemon in
    unix://*) socket=${daemon#unix://} base=http://localhost ;;
    *) socket='' base=$daemon ;;
esac

# ask METHOD PATH [more of curl's arguments]: the answer is in $answer, its status in $status.
ask() {
    method=$1 path=$2
    shift 2
    tries=0
    while :; do
        status=$(curl --silent ${socket:+--unix-socket "$socket"} --max-time 90 --header "@$folder/headers" \
            --request "$method" --output "$answer" --write-out '%{http_code}' "$@" "$base$path") || status=000
        case $status in
            000 | 429 | 503)
                tries=$((tries + 1))
                if [ "$tries" -ge "$patience" ]; then
                    echo "no answer from $daemon ($status)" >&2
                    exit 5
                fi
                sleep 1
                ;;
            *) return ;;
        esac
    done
}

# What went wrong (RFC 9457) on stderr, and the exit code of its kind.
refused() {
    jq -r '"\(.code): \(.detail)", (.hint | select(. != "")),
        (.errors[]? | "  \(.pointer // .parameter // ""): \(.message)"),
        (.findings[]? | "  \(.code): \(.message)")' "$answer" >&2
    case $(jq -r .code "$answer") in
        unknown_job | ambiguous_job | usage) exit 2 ;;
        spec_invalid | spec_changed | not_allowed | superuser_refused) exit 3 ;;
        preflight_refused) exit 4 ;;
        cannot_connect | unauthenticated | forbidden | stranger) exit 5 ;;
        busy | changed_meanwhile) exit 75 ;;
        *) exit 1 ;;
    esac
}

# 201: begun. 200: it was there already, begun by an earlier start of this script or by somebody else.
ask POST /v1/jobs --header 'Content-Type: application/json' --data-binary "@$spec"
case $status in
    200 | 201) ;;
    *) refused ;;
esac

# The daemon keeps each question for up to 30 s, and answers at once when the job ends.
while :; do
    ask GET "/v1/jobs/$name?wait=30s&until=final"
    [ "$status" = 200 ] || refused
    jq -r '"\(.job): \(.state), \(.progress * 100 | floor) %, \(.rows_per_s | floor) rows/s"
        + (if .pace.held_by then ", held: \(.pace.reason)" else "" end)' "$answer" >&2
    case $(jq -r .state "$answer") in
        done) break ;;
        failed)
            jq -r '.error | "\(.message // .code)", (.hint // empty)' "$answer" >&2
            exit 7
            ;;
        cancelled) exit 8 ;;
        *) ;;
    esac
done

ask GET "/v1/jobs/$name/gate"
[ "$status" = 200 ] || refused
jq -r '.checks[] | "\(if .ok then "yes" else "NO " end)  \(.name): \(.detail)"' "$answer"
jq -e .ready "$answer" >/dev/null && exit 0
jq -e .mismatch "$answer" >/dev/null && exit 6
exit 7
