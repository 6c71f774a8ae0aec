#!/usr/bin/env bash
# comm_nccl over the fake libnccl in forked ranks: every check of tests/comm/check_comm.c with 2, 3 and 4 ranks, then
# each fault that the fake library can inject: it is told with NCCL's words, nobody hangs, abort and close end.
set -u
cd "$(dirname "$0")/../.." || exit 1
B=${LEPTON_BUILD:-build/release}
ranks=$B/tests/comm/nccl_ranks fake=$B/tests/libfake_nccl.so
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export TMPDIR=$dir ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
failed=0

verdict() { # verdict RC SENTENCE
    if [ "$1" -eq 0 ]; then echo "ok - $2"; else
        echo "not ok - $2" && failed=1
        sed 's/^/# /' "$dir/out"
    fi
}

# fault SPEC RANKS SENTENCE WORDS...: every rank must end by itself, and each of the words must be told.
fault() {
    local spec=$1 count=$2 sentence=$3 rc=0
    shift 3
    FAKE_NCCL_FAIL=$spec timeout 120 "$ranks" "$fake" "$count" loop 1500 >"$dir/out" 2>&1
    for words in "$@"; do grep -q -- "$words" "$dir/out" || { rc=1 && echo "# missing: $words"; }; done
    if grep -Eq "HUNG|LATE|GOES ON|fatal|Sanitizer" "$dir/out"; then rc=1; fi
    verdict $rc "$sentence"
}

for count in 1 2 3 4; do
    timeout 250 "$ranks" "$fake" $count check >"$dir/out" 2>&1 || failed=1
    cat "$dir/out"
done

FAKE_NCCL_FAIL='' timeout 60 "$ranks" "$fake" 3 loop 30000 >"$dir/out" 2>&1
[ "$(grep -c ': done$' "$dir/out")" -eq 3 ]
verdict $? "without a fault every rank ends its steps"

fault send:3@1 3 "a send that fails is told with NCCL's words, and the peers find out" \
    "rank 1: failed: NCCL rank 1 of 3: send of 999 bytes to rank 2: unhandled system error (2): injected: send number 3" \
    "rank 0: failed: .*NCCL" "rank 2: failed: .*NCCL"
fault recv:2@0 2 "a receive that fails is told, and the peer finds out" \
    "rank 0: failed: NCCL rank 0 of 2: receive of 999 bytes from rank 1: unhandled system error (2): injected: recv number 2" \
    "rank 1: failed: .*NCCL"
fault allgather:2@2 3 "a collective that fails is told with its name" \
    "rank 2: failed: allreduce: NCCL rank 2 of 3: allgather: unhandled system error (2): injected: allgather number 2"
fault broadcast:3@1 2 "a broadcast that fails is told" \
    "rank 1: failed: NCCL rank 1 of 2: broadcast: unhandled system error (2): injected: broadcast number 3"
fault async:9@1 3 "an asynchronous error ends the call under way" \
    "rank 1: failed: .*remote process exited or there was a network error (6): injected: asynchronous error" \
    "rank 0: failed: .*NCCL" "rank 2: failed: .*NCCL"
fault die:8@1 3 "a rank that dies is found by the others" \
    "rank 1: ended with status 9" "rank 0: failed: .*NCCL .*remote process exited" "rank 2: failed: .*NCCL .*remote process exited"
# Whose time is up first says so; the others may see it leave before theirs is.
fault hang:8@0 3 "an operation that never ends is given up after the timeout, and abort frees it" \
    "rank [012]: failed: .*not done within 1500 ms; a peer is gone or stuck" "rank 0: failed: .*NCCL" "rank 1: failed: .*NCCL" "rank 2: failed: .*NCCL"
fault init:1@1 2 "a communicator that cannot be made is refused, and the peer does not wait for ever" \
    "rank 1: not opened: NCCL rank 1 of 2: making the communicator: unhandled system error (2)" \
    "rank 0: not opened: NCCL rank 0 of 2: making the communicator: not done within 1500 ms"
fault id:1 2 "an id that cannot be made is refused" "no id: NCCL: ncclGetUniqueId: unhandled system error (2): no directory"

"$ranks" libm.so.6 0 probe >"$dir/out" 2>&1
grep -q "libm.so.6 lacks ncclGetVersion, ncclGetUniqueId, ncclCommInitRankConfig, .*ncclBroadcast" "$dir/out"
verdict $? "a library that is no NCCL is refused and each missing symbol named"
"$ranks" "$dir/none.so" 0 probe >"$dir/out" 2>&1
grep -q "no id: NCCL: .*none.so: cannot open shared object file" "$dir/out"
verdict $? "a library that is not there is refused with its path"

real=$(ls /usr/local/cuda/lib*/libnccl.so.2 /usr/lib/*/libnccl.so.2 2>/dev/null | head -1)
if [ -n "$real" ]; then
    # Without a GPU no id can be made, but by then every symbol was found and the version read.
    LD_LIBRARY_PATH=${real%/*}:${LD_LIBRARY_PATH:-} "$ranks" "$real" 0 probe >"$dir/out" 2>&1
    grep -Eq "^id made|ncclGetUniqueId: " "$dir/out"
    verdict $? "the installed libnccl has every symbol and a version that is new enough"
else
    echo "skip - the installed libnccl has every symbol: no libnccl.so.2 here"
fi
exit $failed
