#!/bin/sh
# Rolls a pool out, follows it to its end, and says how it ended by its exit code, which pipelines go by:
#
#   0  promoted          3  rolled back, or ended before it began
#   4  still under way   5  somebody else's rollout is under way
#   6  no agent          1, 2  anything else
#
#   rollout.sh SERVICE POOL [TIMEOUT] [REASON]
#
# It runs where the agent's socket is (a member of the group `lb` may talk to it), or over ssh. A pipeline that is stopped does
# not stop the rollout; with ON_TIMEOUT=abort one that takes too long is rolled back. SUPERSEDE=yes takes the place of a
# rollout that is under way: the newest revision wins.
set -u

service=${1:?"usage: $0 SERVICE POOL [TIMEOUT] [REASON]"}
pool=${2:?"usage: $0 SERVICE POOL [TIMEOUT] [REASON]"}
timeout=${3:-2h}
reason=${4:-$(basename "$0")}

set -- --to "$pool" --reason "$reason"
[ "${SUPERSEDE:-no}" = yes ] && set -- "$@" --supersede
lbctl rollout start "$service" "$@" || exit

lbctl rollout status "$service" --watch --timeout "$timeout"
code=$?

case $code in
0) echo "$service: $pool is promoted" ;;
3) echo "$service: $pool is not promoted" >&2 ;;
4)
    if [ "${ON_TIMEOUT:-leave}" = abort ]; then
        echo "$service: $pool took longer than $timeout" >&2
        lbctl rollout abort "$service" --reason "longer than $timeout" && code=3
    fi
    ;;
esac
exit $code
