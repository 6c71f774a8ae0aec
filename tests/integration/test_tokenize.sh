#!/usr/bin/env bash
# lepton tokenize as a person and a script meet it, over a vocabulary made here; the demo model and the shared data
# where they are.
set -u
cd "$(dirname "$0")/../.." || exit 1
lepton=${LEPTON_BUILD:-build/release}/lepton
shared=${LEPTON_SHARED:-../shared}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
out=$scratch/out err=$scratch/err tiny=$scratch/tiny.gguf

# A GGUF file with a vocabulary and nothing else: <unk> <s> </s>, 256 byte tokens, then the pieces 259...
python3 - "$tiny" <<'PYTHON'
import struct, sys
pieces = ["\u2581", "h", "i", "hi", "\u2581hi", "\x1b", "\u0085"]
tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)] + pieces
types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
scores = [-float(i) for i in range(len(tokens))]
string = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
array = lambda kind, items: struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
keys = [
    string("tokenizer.ggml.model") + struct.pack("<I", 8) + string("llama"),
    string("tokenizer.ggml.tokens") + array(8, [string(t) for t in tokens]),
    string("tokenizer.ggml.scores") + array(6, [struct.pack("<f", s) for s in scores]),
    string("tokenizer.ggml.token_type") + array(5, [struct.pack("<i", t) for t in types]),
]
open(sys.argv[1], "wb").write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
PYTHON

wrong() {
    echo "# $*"
    bad=yes
}
# run EXPECTED_CODE ARGUMENT...: what `lepton tokenize` wrote is in $out and $err. Standard input passes through.
run() {
    local expected=$1 code
    shift
    "$lepton" tokenize "$@" >"$out" 2>"$err"
    code=$?
    [ $code -eq "$expected" ] || wrong "lepton tokenize $*: exit code $code, expected $expected: $(head -n 3 "$err")"
}
# prints TEXT: all that came out, and nothing on standard error.
prints() {
    [ "$(cat "$out")" = "$1" ] || wrong "expected \"$1\", found \"$(head -c 300 "$out")\""
    [ ! -s "$err" ] || wrong "expected nothing on standard error, found: $(head -n 3 "$err")"
}
says() { grep -qF -- "$1" "$err" || wrong "expected \"$1\" in: $(head -n 3 "$err")"; }
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

test_forms() {
    run 0 "$tiny" -p "hi hi"
    prints "263 263"
    run 0 "$tiny" -p "hi hi" --json
    prints '{"tokens":[263,263]}'
    run 0 "$tiny" -p "hi" --json --bos
    prints '{"tokens":[1,263]}'
    run 0 "$tiny" -p "" --json
    prints '{"tokens":[]}'
    run 0 "$tiny" -p "hi h" --pieces
    prints $'263\t\xe2\x96\x81hi\n259\t\xe2\x96\x81\n260\th'
    run 0 "$tiny" -p "hi a" --pieces --json
    prints '{"tokens":[263,259,100],"pieces":["▁hi","▁","<0x61>"]}'
}

test_special() {
    run 0 "$tiny" -p "</s>" --special
    prints "2"
    run 0 "$tiny" -p "</s>"
    prints "259 63 50 118 65"
}

test_inputs() {
    printf 'hi\n\0\377' >"$scratch/text"
    run 0 "$tiny" -f "$scratch/text"
    prints "263 13 3 258"
    run 0 "$tiny" -f - <"$scratch/text"
    prints "263 13 3 258"
    run 0 "$tiny" -f - </dev/null
    prints ""
}

test_hostile_pieces() {
    printf '\033\302\205' >"$scratch/text"
    run 0 "$tiny" -f "$scratch/text" --pieces
    prints $'259\t\xe2\x96\x81\n264\t\\x1B\n265\t\\u0085'
}

test_refusals() {
    run 2 "$tiny"
    says "either -p TEXT or -f PATH"
    run 2 "$tiny" -p a -f b
    run 2
    says "MODEL"
    run 1 "$scratch/nothing" -p a
    says "$scratch/nothing: No such file"
    run 1 "$tiny" -f "$scratch/nothing"
    says "$scratch/nothing: No such file"
    head -c 1000 "$tiny" >"$scratch/cut.gguf"
    run 1 "$scratch/cut.gguf" -p a
    says "cut.gguf"
    sed 's/llama/bloom/' "$tiny" >"$scratch/bloom.gguf"
    run 1 "$scratch/bloom.gguf" -p a
    says '"bloom" is not supported'
    head -c 67108865 /dev/zero >"$scratch/long"
    run 1 "$tiny" -f "$scratch/long"
    says "at most 67108864 bytes"
    [ ! -s "$out" ] || wrong "a refusal printed ids"
}

test_demo() {
    run 0 tools/demo/lepton-demo.gguf -p "The cat" --json
    python3 -c 'import json, sys
tokens = json.load(open(sys.argv[1]))["tokens"]
assert tokens and all(isinstance(t, int) and t >= 0 for t in tokens), tokens' "$out" || bad=yes
}

test_shared() {
    run 0 "$shared/data/tokenizer/ggml-vocab-$1.gguf" -p "Hello world"
    prints "$2"
    python3 - "$lepton" "$shared/data/tokenizer/ggml-vocab-$1.gguf" <<'PYTHON' || bad=yes
import json, subprocess, sys
lepton, vocabulary = sys.argv[1:]
texts = open(vocabulary + ".inp", "rb").read().split(b"\n__ggml_vocab_test__\n")[:-1]
lines = open(vocabulary + ".out").read().splitlines()
assert len(texts) == len(lines), (len(texts), len(lines))
for text, line in zip(texts, lines):
    command = [lepton, "tokenize", vocabulary, "-f", "-", "--json"]
    found = json.loads(subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout)["tokens"]
    expected = [int(word) for word in line.split()]
    assert found == expected, (text, found, expected)
PYTHON
}
test_llama() { test_shared llama-spm "15043 3186"; }
test_gpt2() { test_shared gpt-2 "15496 995"; }
test_falcon() { test_shared falcon "9856 1079"; }

check "ids are printed on a line, with pieces, or as JSON" test_forms
check "control tokens are recognised with --special only" test_special
check "a file and standard input are read to the last byte" test_inputs
check "a piece that would command the terminal is escaped" test_hostile_pieces
check "what cannot be read is refused with its name and exit code" test_refusals
if [ -e tools/demo/lepton-demo.gguf ]; then
    check "the demo model's vocabulary tokenizes" test_demo
else
    echo "skip - the demo model's vocabulary tokenizes: no tools/demo/lepton-demo.gguf"
fi
for kind in llama gpt2 falcon; do
    if [ -e "$shared/data/tokenizer" ]; then
        check "every string of the $kind vocabulary has the reference's ids" test_$kind
    else
        echo "skip - every string of the $kind vocabulary has the reference's ids: no shared data"
    fi
done
exit $((failures != 0))
