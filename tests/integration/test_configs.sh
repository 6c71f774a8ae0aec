#!/usr/bin/env bash
# The examples of cluster-configs are what the programs read, and docs/config.md is what they say of themselves.
set -u
B=${LEPTON_BUILD:-build/release}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
verdict() {
    if [ "$1" -eq 0 ]; then echo "ok - $2"; else echo "not ok - $2" && failed=1; fi
}

# describe TITLE PROGRAM...: one section of docs/config.md
describe() {
    printf '## %s\n\n' "$1"
    shift
    "$@" --describe || echo "# $* --describe failed"
    printf '\n'
}
{
    printf '# Options\n\nMade from the option tables of the programs by `tests/integration/test_configs.sh --write`. A key of a file is the\n'
    printf 'option with `_` for `-`; flags win over the file, the file over the defaults.\n\n'
    describe lepton-coordinator "$B/lepton-coordinator"
    describe lepton-worker "$B/lepton-worker"
    for command in $("$B/lepton" --help | sed -n '/^commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
        describe "lepton $command" "$B/lepton" "$command"
    done
} >"$work/config.md"
if [ "${1:-}" = --write ]; then
    cp "$work/config.md" docs/config.md
    exit
fi
diff -u docs/config.md "$work/config.md" | sed 's/^/# /'
cmp -s docs/config.md "$work/config.md"
verdict $? "docs/config.md is what the programs say (tests/integration/test_configs.sh --write refreshes it)"

# A file that is read to its end fails only at what it names and this machine has not: the model, the keys.
sed 's/@PATH@//' cluster-configs/worker.cfg >"$work/worker.cfg"
OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 "$B/lepton-worker" --config "$work/worker.cfg" >"$work/out" 2>&1
[ $? -eq 78 ] && grep -q '/srv/models/model.gguf' "$work/out"
verdict $? "cluster-configs/worker.cfg is read whole"
timeout 60 "$B/lepton" status --config cluster-configs/client.cfg >"$work/out" 2>&1
[ $? -ne 2 ] && grep -q '/etc/lepton/keys' "$work/out"
verdict $? "cluster-configs/client.cfg is read whole"
timeout 60 "$B/lepton" group --config cluster-configs/two-node/group.cfg --worker /no/such/program --restarts 0 --hostfile "$work/none" >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q 'job ended with' "$work/out"
verdict $? "cluster-configs/two-node/group.cfg is read whole"
timeout 60 "$B/lepton" gateway --config cluster-configs/gateway.cfg >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q '/etc/lepton/api-keys' "$work/out"
verdict $? "cluster-configs/gateway.cfg is read whole"
# shows FILE PROGRAM...: every option of the program stands in the file, if as a comment
shows() {
    local file=$1 key missing=0
    shift
    for key in $("$@" --describe | sed -n 's/^| `\{0,1\}\([a-z_]*\)`\{0,1\} .*/\1/p' | grep -v '^config$\|^key$\|^option$\|^new_key$'); do
        grep -q "^#* *$key = " "$file" || { echo "# $file lacks $key" && missing=1; }
    done
    verdict $missing "$file shows every option"
}
shows cluster-configs/worker.cfg "$B/lepton-worker"
shows cluster-configs/gateway.cfg "$B/lepton" gateway
exit $failed
