#!/usr/bin/env bash
# lepton quantize and lepton synth's types and mixes: what they write, what they keep, what they refuse.
set -u
cd "$(dirname "$0")/../.." || exit 1
lepton=${LEPTON_BUILD:-build/release}/lepton
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0
out=$scratch/out err=$scratch/err
small=(--layers 4 --dim 256 --ffn 512 --heads 8 --kv-heads 2 --vocab 300 --context 64)
types="q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k"

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
same() { cmp -s "$1" "$2" || wrong "$1 and $2 differ"; }
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
# json EXPRESSION: a Python expression over `m`, the object in $out, and `t`, its tensors' types, that must be true.
json() {
    python3 -c 'import json, sys
m = json.load(open(sys.argv[1])); t = {x["name"]: x["type"] for x in m["tensors"]}
def kept(m): return {k: v for k, v in m["keys"].items() if k not in ("general.file_type", "general.quantization_version")}
assert eval(sys.argv[2]), sys.argv[2] + ": " + str(t)' "$out" "$1" 2>"$scratch/python" || wrong "$(tail -n 1 "$scratch/python")"
}
inspect() { run 0 inspect --json --tensors --keys "$1"; }

test_synth_types() {
    for type in $types; do
        run 0 synth "${small[@]}" --pure --threads 1 --type "$type" "$scratch/1.gguf"
        run 0 synth "${small[@]}" --pure --threads 3 --type "$type" "$scratch/3.gguf"
        same "$scratch/1.gguf" "$scratch/3.gguf"
        inspect "$scratch/1.gguf"
        json "all(v == ('f32' if 'norm' in k else '$type') for k, v in t.items()) and len(t) == 39"
    done
    run 2 synth --dim 192 --heads 8 --type q4_k "$scratch/no.gguf"
    says "$err" "--dim 192: expected a multiple of 256, the block of q4_k"
}

# Layers of the mixes that take "half of the layers": of 4 layers the last (7 * 4 / 8 = 3) and the third (2 % 3 == 2).
test_mixes() {
    for mix in "q2_k q2_k q4_k q3_k q3_k" "q3_k_s q3_k q3_k q3_k q3_k" "q3_k_m q3_k q5_k q4_k q4_k" \
        "q3_k_l q3_k q5_k q5_k q5_k" "q4_k_s q4_k q5_k q4_k q4_k" "q4_k_m q4_k q4_k q4_k q4_k" \
        "q5_k_s q5_k q5_k q5_k q5_k" "q5_k_m q5_k q5_k q5_k q5_k"; do
        read -r name most value down output <<<"$mix"
        run 0 synth "${small[@]}" --type "$name" "$scratch/mix.gguf"
        inspect "$scratch/mix.gguf"
        json "t['output.weight'] == 'q6_k' and t['token_embd.weight'] == '$most' and t['output_norm.weight'] == 'f32'"
        json "all(t['blk.%d.%s.weight' % (l, p)] == '$most' for l in range(4) for p in ('attn_q', 'attn_k', 'ffn_up', 'ffn_gate'))"
        json "t['blk.0.attn_v.weight'] == '$value' and t['blk.0.ffn_down.weight'] == '$down'"
        json "t['blk.0.attn_output.weight'] == '$output'"
    done
    json "[t['blk.%d.attn_v.weight' % l] for l in range(4)] == ['q5_k', 'q5_k', 'q6_k', 'q6_k']"
    json "[t['blk.%d.ffn_down.weight' % l] for l in range(4)] == ['q5_k', 'q5_k', 'q6_k', 'q6_k']"
    json "m['keys']['general.file_type'] == 17"
    # The quantizer mixes as synth does, and random weights of the same seed give the same bytes.
    run 0 synth "${small[@]}" --type f32 "$scratch/f32.gguf"
    run 0 quantize --type q5_k_m "$scratch/f32.gguf" "$scratch/mixed.gguf"
    run 0 inspect --tensors "$scratch/mix.gguf"
    awk '$1 == "tensor" { print $2, $3 }' "$out" | sort >"$scratch/a"
    run 0 inspect --tensors "$scratch/mixed.gguf"
    awk '$1 == "tensor" { print $2, $3 }' "$out" | sort >"$scratch/b"
    same "$scratch/a" "$scratch/b"
    [ -s "$scratch/a" ] || wrong "no tensors were listed"
}

test_every_type() {
    printf 'the quick brown fox jumps over the lazy dog and the cat sat on the mat by the door of the house ' >"$scratch/text"
    run 0 synth "${small[@]}" --type f32 "$scratch/f32.gguf"
    inspect "$scratch/f32.gguf"
    cp "$out" "$scratch/before.json"
    for type in $types f16 bf16; do
        run 0 quantize --pure --threads 1 --type "$type" "$scratch/f32.gguf" "$scratch/1.gguf"
        says "$out" "bits per weight"
        run 0 quantize --pure --threads 3 --type "$type" "$scratch/f32.gguf" "$scratch/3.gguf"
        same "$scratch/1.gguf" "$scratch/3.gguf"
        inspect "$scratch/1.gguf"
        json "all(v == ('f32' if 'norm' in k else '$type') for k, v in t.items())"
        json "kept(m) == kept(json.load(open('$scratch/before.json'))) and len(kept(m)) > 15"
        # Rounded values round to themselves, for the types whose scale is an extreme value.
        case $type in q8_0 | f16 | bf16)
            run 0 quantize --type f32 "$scratch/1.gguf" "$scratch/back.gguf"
            run 0 quantize --type "$type" "$scratch/back.gguf" "$scratch/again.gguf"
            [ "$type" = q8_0 ] || same "$scratch/1.gguf" "$scratch/again.gguf"
            ;;
        esac
        run 0 perplexity -f "$scratch/text" --context 64 "$scratch/1.gguf"
        grep -qE '^perplexity [0-9]+\.[0-9]+ over [0-9]+ tokens' "$out" || wrong "$type: $(head -n 1 "$out" "$err")"
    done
    run 0 quantize --type f32 "$scratch/f32.gguf" "$scratch/same.gguf"
    inspect "$scratch/same.gguf"
    json "m['tensors'] == json.load(open('$scratch/before.json'))['tensors']"
}

test_choices() {
    run 0 synth "${small[@]}" --type f16 "$scratch/f16.gguf"
    run 0 quantize --type q4_k_m --keep-output f16 --keep-embedding q8_0 -l "$scratch/f16.gguf" "$scratch/kept.gguf"
    says "$out" $'blk.0.attn_q.weight\tf16\tq4_k\t0.0'
    inspect "$scratch/kept.gguf"
    json "t['output.weight'] == 'f16' and t['token_embd.weight'] == 'q8_0' and t['blk.0.ffn_up.weight'] == 'q4_k'"
    run 0 quantize --type q8_0 "$scratch/kept.gguf" "$scratch/twice.gguf"
    says "$out" "28 tensors had been quantised before"
}

test_fallbacks() {
    run 0 synth --layers 1 --dim 64 --ffn 72 --heads 4 --kv-heads 2 --vocab 300 --type f32 "$scratch/odd.gguf"
    run 0 quantize --type q4_k "$scratch/odd.gguf" "$scratch/fits.gguf"
    says "$out" "blk.0.ffn_down.weight: rows of 72 elements are no whole q4_k blocks of 256: f16 instead"
    says "$out" "blk.0.ffn_up.weight: rows of 64 elements are no whole q4_k blocks of 256: q5_0 instead"
    says "$out" "9 of 12 tensors got another type than asked for"
    inspect "$scratch/fits.gguf"
    json "t['blk.0.ffn_down.weight'] == 'f16' and t['blk.0.ffn_up.weight'] == 'q5_0'"
}

# A model of eight experts without an output matrix, and everything else that the rules look at, as a bare file.
test_special_tensors() {
    python3 - "$scratch/special.gguf" <<'EOF' || wrong "the file could not be made"
import sys
sys.path.insert(0, "tests/fuzz")
from make_gguf_seeds import build, key, STRING, U32
shapes = {"token_embd": (256, 16), "position_embd": (256, 16), "blk.0.attn_qkv": (256, 32), "blk.0.attn_k": (256, 16),
          "blk.0.attn_v": (256, 16), "blk.0.attn_output": (256, 256), "blk.0.attn_k_norm": (256, 2),
          "blk.0.ffn_gate_inp": (256, 8), "blk.0.ffn_down_exps": (256, 16, 8), "blk.0.ffn_up_exps": (256, 16, 8)}
tensors = []
for name, dims in shapes.items():
    count = 1
    for n in dims:
        count *= n
    tensors.append((name + ".weight", dims, 1, 2 * count))
data = build([key("general.architecture", STRING, "llama"), key("llama.block_count", U32, 1),
              key("llama.expert_count", U32, 8), key("general.alignment", U32, 64)],
             [t for t in tensors], alignment=64)
# F16 numbers near 1: the bytes that build() counts up would hold NaN.
at = len(data) - sum(-(-t[3] // 64) * 64 for t in tensors)
open(sys.argv[1], "wb").write(data[:at] + bytes(v for i in range((len(data) - at) // 2) for v in (i * 7 % 256, 0x3c)))
EOF
    run 0 quantize --type q4_k_m "$scratch/special.gguf" "$scratch/mixed.gguf"
    inspect "$scratch/mixed.gguf"
    json "t['token_embd.weight'] == 'q6_k' and t['blk.0.attn_qkv.weight'] == 'q5_k'"
    json "t['blk.0.attn_k.weight'] == t['blk.0.attn_v.weight'] == 'q8_0' and t['blk.0.attn_output.weight'] == 'q5_k'"
    json "t['blk.0.ffn_down_exps.weight'] == 'q6_k' and t['blk.0.ffn_up_exps.weight'] == 'q4_k'"
    json "all(t[k + '.weight'] == 'f16' for k in ('position_embd', 'blk.0.attn_k_norm', 'blk.0.ffn_gate_inp'))"
    json "'general.alignment' not in m['keys'] and m['keys']['llama.expert_count'] == 8"
}

test_refusals() {
    run 0 synth "${small[@]}" --type f32 "$scratch/f32.gguf"
    run 1 quantize "$scratch/f32.gguf" "$scratch/f32.gguf"
    says "$err" "expected another file than the one that is read"
    run 1 quantize "$scratch/none.gguf" "$scratch/no.gguf"
    says "$err" "none.gguf: No such file"
    run 1 quantize "$scratch/f32.gguf" "$scratch/none/no.gguf"
    says "$err" "No such file"
    run 2 quantize --type iq2_xxs "$scratch/f32.gguf" "$scratch/no.gguf"
    # Three values of the last tensor (output.weight, 300 x 256) become NaN, infinity, and too large for F16.
    for bytes in 'NaN \x00\x00\xc0\x7f nan' 'infinity \x00\x00\x80\xff -inf' 'large \x00\x00\x80\x7e 8.50706e+37'; do
        read -r _ bits shown <<<"$bytes"
        cp "$scratch/f32.gguf" "$scratch/bad.gguf"
        printf '%b' "$bits" | dd of="$scratch/bad.gguf" bs=1 conv=notrunc status=none \
            seek=$(($(stat -c %s "$scratch/bad.gguf") - 4 * 256 * 3 + 4 * 7))
        for type in f16 q4_0 q4_k q6_k; do
            run 1 quantize --type $type --keep-output $type "$scratch/bad.gguf" "$scratch/no.gguf"
            says "$err" "tensor \"output.weight\": element [297, 7] is $shown"
            says "$err" "which $type cannot hold"
        done
    done
    [ ! -e "$scratch/no.gguf" ] && [ -z "$(find "$scratch" -name '*.tmp*')" ] || wrong "a file was left behind"
}

check "synth writes every type, the same bytes on any number of threads" test_synth_types
check "mixes give each tensor the type that the documentation says" test_mixes
check "quantize writes every type, keeps the metadata, and the model runs" test_every_type
check "the output matrix and the embedding can be kept apart" test_choices
check "matrices whose rows do not fit get another type, and it is said" test_fallbacks
check "experts, tied embeddings, routers and norms of heads get their types" test_special_tensors
check "what cannot be written is refused, and nothing is left behind" test_refusals
[ $failures -eq 0 ]
