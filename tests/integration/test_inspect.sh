#!/usr/bin/env bash
# lepton inspect and lepton synth: what they write, what they refuse, and that no weight is read to inspect.
set -u
cd "$(dirname "$0")/../.." || exit 1
lepton=${LEPTON_BUILD:-build/release}/lepton
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
out=$scratch/out err=$scratch/err
small=(--layers 2 --dim 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 400 --context 128)

# run EXPECTED_CODE ARGUMENT...: what it wrote is in $out and $err.
run() {
    local expected=$1 code
    shift
    "$lepton" "$@" >"$out" 2>"$err" </dev/null
    code=$?
    [ $code -eq "$expected" ] || wrong "lepton $*: exit code $code, expected $expected: $(head -n 1 "$err")"
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
# json EXPRESSION: a Python expression over `m`, the object in $out, that must be true.
json() {
    python3 -c 'import json, sys; m = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), sys.argv[2]' "$out" "$1" \
        2>"$scratch/python" || wrong "$(tail -n 1 "$scratch/python")"
}

test_synth_shapes() {
    for type in f32 f16 bf16 q8_0; do
        run 0 synth "${small[@]}" --type $type "$scratch/$type.gguf"
        quiet "$out"
        quiet "$err"
        run 0 inspect --json --tensors --keys "$scratch/$type.gguf"
        json "m['architecture'] == 'llama' and m['vocabulary'] == 400 and m['context_length'] == 128"
        json "m['block_count'] == 2 and m['embedding_length'] == 64 and m['feed_forward_length'] == 96"
        json "m['attention.head_count'] == 4 and m['attention.head_count_kv'] == 2 and m['rope.dimension_count'] == 16"
        json "m['tensor_count'] == 21 == len(m['tensors']) and m['types']['f32']['tensors'] >= 5"
        json "m['parameters'] == 2 * 400 * 64 + 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)"
        json "{t['name']: t['shape'] for t in m['tensors']}['blk.1.ffn_down.weight'] == [64, 96]"
        json "{t['name']: t['type'] for t in m['tensors']}['blk.0.attn_k.weight'] == '$type'"
        json "{t['name']: t['type'] for t in m['tensors']}['output_norm.weight'] == 'f32'"
        json "'benchmarks only' in m['keys']['general.description']"
    done
}

test_synth_repeatable() {
    run 0 synth "${small[@]}" --threads 1 --seed 7 "$scratch/a.gguf"
    run 0 synth "${small[@]}" --threads 3 --seed 7 "$scratch/b.gguf"
    run 0 synth "${small[@]}" --threads 1 --seed 8 "$scratch/c.gguf"
    cmp -s "$scratch/a.gguf" "$scratch/b.gguf" || wrong "1 and 3 threads differ"
    cmp -s "$scratch/a.gguf" "$scratch/c.gguf" && wrong "seeds 7 and 8 give the same file"
    run 0 inspect --fingerprint --json "$scratch/a.gguf"
    local first
    first=$(grep -o '"fingerprint":"[0-9a-f]*"' "$out")
    run 0 inspect --fingerprint --json "$scratch/c.gguf"
    [ -n "$first" ] || wrong "no fingerprint"
    grep -qF "$first" "$out" && wrong "two models have one fingerprint"
}

# Mean, spread and tails of the embeddings and of one matrix, read without Lepton.
test_synth_distribution() {
    run 0 synth "${small[@]}" --type f32 "$scratch/f32.gguf"
    run 0 inspect --json --tensors "$scratch/f32.gguf"
    python3 - "$out" "$scratch/f32.gguf" >"$scratch/python" 2>&1 <<'PYTHON' || wrong "$(tail -n 1 "$scratch/python")"
import array, json, math, sys
data = open(sys.argv[2], "rb").read()
for t in json.load(open(sys.argv[1]))["tensors"]:
    x = array.array("f", data[t["offset"]:t["offset"] + t["bytes"]])
    n, want = len(x), 0.02 if t["name"].startswith("token_embd") else 1 / math.sqrt(t["shape"][-1])
    if "norm" in t["name"]:
        assert all(v == 1 for v in x), t["name"]
        continue
    mean = sum(x) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / n)
    assert abs(mean) < 5 * want / math.sqrt(n), (t["name"], mean)
    assert abs(spread / want - 1) < 5 / math.sqrt(2 * n), (t["name"], spread)
    assert 2.5 < max(map(abs, x)) / want < 5, (t["name"], max(x))
    assert len(set(x)) > n / 2, t["name"]
PYTHON
}

test_synth_vocabulary() {
    run 0 synth "${small[@]}" --layers 1 --vocab 40000 "$scratch/v.gguf"
    if "$lepton" --help | grep -q '^  tokenize'; then
        run 0 tokenize "$scratch/v.gguf" -p "Hello, the world! Grüße 😀" --json
        json "4 < len(m['tokens']) < 26 and all(2 < t < 40000 for t in m['tokens'])"
    fi
    python3 - "$scratch/v.gguf" >"$scratch/python" 2>&1 <<'PYTHON' || wrong "$(tail -n 1 "$scratch/python")"
import struct, sys
data = open(sys.argv[1], "rb").read()
at = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
count, = struct.unpack_from("<Q", data, at)
at += 8
tokens = []
for _ in range(count):
    n, = struct.unpack_from("<Q", data, at)
    tokens.append(data[at + 8:at + 8 + n].decode())
    at += 8 + n
assert count == 40000 and len(set(tokens)) == count and "" not in tokens
assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and tokens[258:260] == ["<0xFF>", "\u2581"], tokens[:4]
have = set(tokens)
for t in tokens[260:]:
    assert len(t) == 1 or t[:-1] in have and t[-1] in have, f"{t} cannot be reached by merging"
PYTHON
}

test_synth_refusals() {
    local model=$scratch/never.gguf
    run 2 synth --dim 100 --heads 3 "$model" && says "$err" "--dim 100: expected a multiple of --heads (3)"
    run 2 synth --dim 96 --heads 32 "$model" && says "$err" "expected an even number per head"
    run 2 synth --dim 64 --heads 4 --kv-heads 3 "$model" && says "$err" "--heads 4: expected a multiple of --kv-heads (3)"
    run 2 synth --dim 48 --heads 4 --kv-heads 2 "$model" && says "$err" "--dim 48: expected a multiple of 32, the block of q8_0"
    run 2 synth --dim 64 --heads 4 --ffn 100 "$model" && says "$err" "--ffn 100: expected a multiple of 32"
    run 2 synth --vocab 259 "$model" && says "$err" "--vocab: expected an integer from 260"
    run 2 synth --type q4_K "$model" && says "$err" "--type: expected one of q8_0, f32, f16, bf16"
    run 2 synth --arch gpt2 "$model" && says "$err" "--arch: expected one of llama"
    run 2 synth && says "$err" "expected OUT.gguf"
    run 1 synth "${small[@]}" "$scratch/absent/x.gguf" && says "$err" "No such file or directory"
    [ ! -e "$model" ] || wrong "a refused model was written"
}

# The temporary file must not stay when the work ends early.
test_synth_interrupted() {
    mkdir "$scratch/interrupted"
    "$lepton" synth --layers 400 --threads 1 "$scratch/interrupted/large.gguf" 2>"$err" &
    local pid=$!
    for _ in $(seq 100); do
        [ -n "$(ls "$scratch/interrupted")" ] && break
        sleep 0.05
    done
    kill -TERM $pid
    wait $pid
    local code=$?
    [ $code -eq 130 ] || wrong "exit code $code, expected 130"
    says "$err" "interrupted"
    [ -z "$(ls "$scratch/interrupted")" ] || wrong "left behind: $(ls "$scratch/interrupted")"
}

test_synth_no_room() {
    (
        ulimit -f 64 # blocks of 1 KiB
        trap '' XFSZ
        "$lepton" synth "${small[@]}" --vocab 4000 "$scratch/full.gguf" 2>"$err"
    )
    local code=$?
    [ $code -eq 1 ] || wrong "exit code $code, expected 1"
    says "$err" "cannot write: File too large"
    [ -z "$(ls "$scratch" | grep full)" ] || wrong "left behind: $(ls "$scratch" | grep full)"
}

test_inspect_pipe() {
    run 0 synth "${small[@]}" "$scratch/p.gguf"
    run 0 inspect -k -t "$scratch/p.gguf"
    quiet "$err"
    says "$out" "architecture	llama"
    says "$out" "layers	2"
    says "$out" "key	llama.block_count	u32	2"
    says "$out" "tensor	blk.0.attn_q.weight	q8_0	64 x 64	"
    grep -q "$(printf '\033')" "$out" && wrong "escape sequences in a pipe"
    awk -F '\t' 'NF < 2 { bad = 1 } END { exit bad }' "$out" || wrong "a line without a tab: $(grep -v "	" "$out" | head -n 1)"
    run 0 inspect "$scratch/p.gguf"
    grep -q '^tensor	' "$out" && wrong "tensors are listed unasked"
}

test_inspect_usage() {
    run 2 inspect && says "$err" "expected MODEL"
    run 2 inspect a b && says "$err" "one argument too many"
    run 2 inspect --tensor x && says "$err" "did you mean --tensors?"
    run 1 inspect "$scratch/absent.gguf" && says "$err" "absent.gguf: No such file or directory"
    run 1 inspect "$scratch" && says "$err" "config.json is missing"
    run 1 inspect /dev/null && says "$err" "no regular file"
    run 0 inspect --help && says "$out" "usage: lepton inspect"
}

test_inspect_bad() {
    local f=$scratch/bad.gguf
    : >"$f"
    run 1 inspect "$f" && says "$err" "bad.gguf:0: magic: expected 4 bytes"
    printf 'GGML\3\0\0\0' >"$f"
    run 1 inspect "$f" && says "$err" "bad.gguf:0: magic: expected 47 47 55 46"
    printf 'GGUF\1\0\0\0' >"$f"
    run 1 inspect "$f" && says "$err" "bad.gguf:4: GGUF version 1 is obsolete"
    printf 'GGUF\0\0\0\3' >"$f"
    run 1 inspect "$f" && says "$err" "a big-endian GGUF file (version 3)"
    cp tests/fuzz/seeds/fuzz_gguf/refused_type.gguf "$f"
    run 1 inspect "$f" && says "$err" "type iq2_xxs (16) is not supported yet"
    cp tests/fuzz/seeds/fuzz_gguf/refused_overlap.gguf "$f"
    run 1 inspect --json "$f" && says "$err" 'tensors "a" and "b" overlap'
    quiet "$out"
    "$lepton" synth "${small[@]}" "$scratch/whole.gguf"
    head -c -1 "$scratch/whole.gguf" >"$f"
    run 1 inspect "$f" && says "$err" "reach past the end of the file"
}

# Odd but valid files: every value type, bytes that are no UTF-8, no tensors at all.
test_inspect_odd() {
    for seed in empty scalars arrays tensors version2 model; do
        run 0 inspect --json --keys --tensors --fingerprint "tests/fuzz/seeds/fuzz_gguf/$seed.gguf"
        json "isinstance(m['keys'], dict) and m['bytes'] > 0"
        run 0 inspect -k -t "tests/fuzz/seeds/fuzz_gguf/$seed.gguf"
    done
    run 0 inspect --json --keys tests/fuzz/seeds/fuzz_gguf/scalars.gguf
    json "m['keys']['j'] == str(2**63) and m['keys']['k'] == -4 and m['keys']['h'] is True and m['keys']['l'] == 1e300"
    run 0 inspect --json --keys tests/fuzz/seeds/fuzz_gguf/arrays.gguf
    json "m['keys']['e'] == {'array': 'string', 'count': 3, 'first': ['', '<unk>', '\ufffd']}"
    json "m['keys']['g']['count'] == 40 and len(m['keys']['g']['first']) == 8"
}

# A sparse file of 8 GiB whose tables say it is one tensor: were the weights read, memory or time would show it.
test_inspect_large() {
    python3 - "$scratch/large.gguf" <<'PYTHON'
import struct, sys
n = 1 << 31
record = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, n, 0, 0)
head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + record
with open(sys.argv[1], "wb") as f:
    f.write(head + bytes(-len(head) % 32))
    f.truncate(len(head) + -len(head) % 32 + 4 * n)
PYTHON
    run 0 inspect --json "$scratch/large.gguf"
    json "m['parameters'] == 2**31"
    local kib
    kib=$(peak_kib "$scratch/large.gguf")
    [ "$kib" -lt 65536 ] || wrong "inspecting took $kib KiB of memory"
}
# Peak memory of inspecting a file, mapped pages counted.
peak_kib() {
    python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)' "$lepton" inspect "$1"
}

check "synth writes the shape that is asked for, in every type" test_synth_shapes
check "a synthetic model depends on the seed and not on the threads" test_synth_repeatable
check "synthetic weights have the right spread" test_synth_distribution
check "a synthetic vocabulary is whole, and its pieces can be reached" test_synth_vocabulary
check "impossible shapes are refused" test_synth_refusals
check "an interrupted synth leaves nothing behind" test_synth_interrupted
check "a write that fails is reported and leaves nothing behind" test_synth_no_room
check "inspect into a pipe is one record a line" test_inspect_pipe
check "inspect refuses wrong usage with exit code 2" test_inspect_usage
check "inspect says what is wrong with a bad file" test_inspect_bad
check "inspect shows every type of value" test_inspect_odd
check "inspect reads no weights" test_inspect_large
exit $((failures != 0))
