#!/bin/sh
# Runs test programs in the lab's host; xtask appends one call for each.
export BULKHEAD_BIN_DIR=/bulkhead/bin BULKHEAD_GUEST_DIR=/bulkhead/guest TMPDIR=/bulkhead/tmp
# Of the hostile suite, what an emulated machine can do in a minute.
export BULKHEAD_HOSTILE="${BULKHEAD_HOSTILE:-few}"
mkdir -p "$TMPDIR" && chmod 1777 "$TMPDIR"
status=0
run_tests() {
    echo "bulkhead-lab: tests of $1, $(cut -d ' ' -f 1 /proc/uptime) s after the lab's start"
    # One at a time: the lab's processors are emulated.
    program="$2" && shift 2
    "$program" --include-ignored --test-threads 1 "$@" || status=1
}
