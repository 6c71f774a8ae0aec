#!/usr/bin/env bash
# `lepton devices`: the CPU is always listed; GPUs are, or a plain reason stands in their place.
set -u
cd "$(dirname "$0")/../.." || exit 1
lepton=${LEPTON_BUILD:-build/release}/lepton
failures=0

# check SENTENCE CONDITION...
check() {
    local sentence=$1
    shift
    if "$@"; then
        echo "ok - $sentence"
    else
        echo "not ok - $sentence"
        failures=$((failures + 1))
    fi
}

lists_the_cpu() {
    local out
    out=$("$lepton" devices) && grep -qE '^cpu +cpu-(reference|avx2|avx512vnni|avx512bf16) +[0-9]+ threads?$' <<<"$out" &&
        grep -qE '^(cuda:0 |no GPU +.)' <<<"$out"
}
json_is_whole() {
    "$lepton" devices --json | python3 -c '
import json, sys
said = json.load(sys.stdin)
cpu = said["devices"][0]
assert cpu["name"] == "cpu" and cpu["serves"] and cpu["threads"] >= 1, cpu
assert len(said["devices"]) > 1 or said["no_gpu"], said'
}
names_a_bad_plugin() {
    "$lepton" devices --plugin /nowhere/plugin.so | grep -qF 'no GPU   GPU plug-in /nowhere/plugin.so: '
}

check "the CPU is listed, and a GPU or the reason why there is none" lists_the_cpu
check "--json is one object with the same" json_is_whole
check "a plug-in that cannot be opened is named with the reason" names_a_bad_plugin
[ $failures -eq 0 ]
