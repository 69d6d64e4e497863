#!/bin/bash
# Makes the fuzzer's inputs again: fuzz/corpus and cr-fuzz/base.records. As root, in the repository's root, with `cr` and the guests built
# (`cargo xtask test` does that). Needed when the format of the index or of a record has changed.
set -u
scratch=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$scratch"' EXIT
stores=()
for guest in ${GUESTS:-timers unix pty sysv queues}; do
    mkdir -p "$scratch/$guest.d"
    # Descriptors of whoever runs this do not belong to the job.
    (
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            if ((fd > 2)); then eval "exec $fd>&-"; fi
        done
        exec setsid target/guests/"$guest" "$scratch/$guest.d" </dev/null >"$scratch/$guest.out" 2>&1
    ) &
    pid=$!
    for _ in $(seq 100); do
        [ -L "$scratch/$guest.d/ready" ] && break
        sleep 0.1
    done
    if target/debug/cr checkpoint "$pid" --store "$scratch/$guest" >"$scratch/cr.out" 2>&1; then
        stores+=("$scratch/$guest")
    else
        echo "$guest: $(tail -1 "$scratch/cr.out")" >&2
    fi
    kill -9 -- "-$pid" 2>/dev/null
    wait "$pid" 2>/dev/null
done
cargo run -q -p cr-fuzz -- seeds "${stores[@]}"
