#!/usr/bin/env bash
# The command line as a person meets it: help, versions, wrong commands, keys. Needs no coordinator.
set -u
cd "$(dirname "$0")/../.." || exit 1
lepton=${LEPTON_BUILD:-build/release}/lepton
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
out=$scratch/out err=$scratch/err

# run EXPECTED_CODE ARGUMENT...: what it wrote is in $out and $err.
run() {
    local expected=$1 code
    shift
    "$lepton" "$@" >"$out" 2>"$err" </dev/null
    code=$?
    [ $code -eq "$expected" ] || wrong "lepton $*: exit code $code, expected $expected"
}
wrong() {
    echo "# $*"
    bad=yes
}
says() { grep -qF -- "$2" "$1" || wrong "expected \"$2\" in: $(head -n 3 "$1")"; }
quiet() { [ ! -s "$1" ] || wrong "expected nothing, found: $(head -n 3 "$1")"; }
# check SENTENCE FUNCTION
check() {
    bad=no
    "$2"
    if [ $bad = yes ]; then
        echo "not ok - $1"
        failures=$((failures + 1))
    else
        echo "ok - $1"
    fi
}

commands() { sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$out"; }

test_help() {
    run 0 --help
    quiet "$err"
    [ "$(commands | head -n 1)" = run ] || wrong "run is not the first command of the list"
    for name in generate status group inspect tokenize perplexity synth devices keygen version; do
        commands | grep -qx "$name" || wrong "$name is not listed"
    done
    run 2
    quiet "$out"
    says "$err" "usage: lepton COMMAND"
}

test_command_help() {
    run 0 --help
    for name in $(commands); do
        run 0 "$name" --help
        says "$out" "usage: lepton $name"
        quiet "$err"
        cp "$out" "$scratch/first"
        run 0 help "$name"
        cmp -s "$out" "$scratch/first" || wrong "lepton help $name differs from lepton $name --help"
        awk -v n="$name" 'length($0) > 110 { print "# " n " --help: a line of " length($0) " characters"; bad = 1 } END { exit bad }' \
            "$out" || bad=yes
    done
}

test_unknown() {
    run 2 verison
    says "$err" 'lepton: "verison": unknown command; did you mean `lepton version`?'
    quiet "$out"
    run 2 qqqqqqqq
    says "$err" '`lepton --help` lists the commands'
    run 2 --frobnicate
    says "$err" "unknown option"
    run 2 version --jsno
    says "$err" "did you mean --json?"
    run 2 help qqqqqqqq
}

test_version() {
    run 0 --version
    local version
    version=$(cut -d' ' -f2 "$out")
    grep -qE '^lepton [0-9]+\.[0-9]+\.[0-9]+$' "$out" || wrong "lepton --version says $(cat "$out")"
    run 0 version
    says "$out" "$version"
    run 0 version --json
    python3 -c 'import json, sys
v = json.load(open(sys.argv[1]))
assert v["lepton"] == sys.argv[2] and v["protocol"] >= 1 and v["curve"] is True, v' "$out" "$version" || bad=yes
}

test_full_disk() {
    [ -e /dev/full ] || return
    for arguments in --help --version version "version --help"; do
        # shellcheck disable=SC2086 # two words
        "$lepton" $arguments >/dev/full 2>"$err"
        [ $? -eq 1 ] || wrong "lepton $arguments on a full disk did not exit 1"
        says "$err" "No space left on device"
    done
}

test_keygen() {
    local keys=$scratch/keys
    run 0 keygen "$keys" w1 --role worker
    says "$out" "w1.pub"
    says "$out" "authorized directory"
    [ "$(stat -c %a "$keys/w1.key")" = 600 ] || wrong "w1.key has mode $(stat -c %a "$keys/w1.key"), expected 600"
    [ "$(stat -c %a "$keys")" = 700 ] || wrong "the directory has mode $(stat -c %a "$keys"), expected 700"
    grep -qi secret "$keys/w1.pub" && wrong "w1.pub holds a secret"
    cp "$keys/w1.key" "$scratch/before"
    run 1 keygen "$keys" w1 --role worker
    cmp -s "$keys/w1.key" "$scratch/before" || wrong "a second keygen changed w1.key"
    run 2 keygen "$keys" w2
    says "$err" "--role: expected one of coordinator, worker, client"
    run 2 keygen "$keys" w2 --role boss
    says "$err" 'found "boss"'
    run 2 keygen "$keys" --role worker
    run 1 keygen "$keys" ../w3 --role worker
    run 1 keygen /proc/nowhere w4 --role worker
    says "$err" "/proc/nowhere"
    [ "$(find "$keys" -type f | wc -l)" -eq 2 ] || wrong "unexpected files: $(ls "$keys")"
}

check "lepton --help lists every command, run first" test_help
check "lepton COMMAND --help and lepton help COMMAND are the same page" test_command_help
check "an unknown command or option exits 2 and names the nearest" test_unknown
check "versions are shown, also as JSON" test_version
check "output that cannot be written is a failure" test_full_disk
check "keygen writes a secret and a public file, and never over one" test_keygen
exit $((failures != 0))
