#!/usr/bin/env bash
# lepton bench: every kernel and every test of the engine has its figures, beside limits of the same run. No figure's
# size is judged here.
set -u
B=${LEPTON_BUILD:-build/release}
out=$(mktemp)
scratch=$(mktemp -d)
trap 'rm -rf "$out" "$scratch"' EXIT
failed=0
verdict() {
    if [ "$1" -eq 0 ]; then echo "ok - $2"; else echo "not ok - $2" && failed=1 && head -c 2000 "$out"; fi
}
small="--repeats 1 --inputs 256 --outputs 48 --context 32 --threads 1"
"$B/lepton" bench kernels $small --json >"$out" 2>&1 && /usr/bin/python3 - "$out" <<'END'
import json, sys
run = json.load(open(sys.argv[1]))
assert run["limits"]["read_bytes_per_s"] > 0 and run["limits"]["fp32_flop_per_s"] > 0
seen = {(r["kernel"], r["type"], r["rows"]) for r in run["results"]}
types = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "f16", "bf16", "f32")
assert {("matmul", t, n) for t in types for n in (1, 8, 32, 512)} < seen, seen
others = ("rmsnorm", "layernorm", "add", "silu", "gelu", "rope", "gather", "embed", "kv_store", "attention", "greedy", "nucleus", "loss")
assert {(k, n) for k in others for n in (1, 32)} <= {(r["kernel"], r["rows"]) for r in run["results"]}, seen
for r in run["results"]:
    assert r["ms"] > 0 and r["gop_per_s"] + r["gb_per_s"] > 0 and r["limit"] in ("read", "cache", "fp32", "bf16", "int8") and 0 <= r["error"] < 0.05, r
END
verdict $? "bench kernels --json holds each kernel's figures, its limit and its error"
"$B/lepton" bench kernels $small --type q6_k --kernels reference >"$out" 2>&1 && grep -q 'q6_k' "$out" && grep -q 'limits of this run' "$out"
verdict $? "one type and the reference set can be measured alone"
"$B/lepton" bench kernels --repeats 1 --context 520 --only attention --json >"$out" 2>&1 && /usr/bin/python3 - "$out" <<'END'
import json, sys
results = json.load(open(sys.argv[1]))["results"]
assert {(r["kernel"], r["type"], r["rows"]) for r in results} == {("attention", t, n) for t in ("f32", "f16") for n in (1, 128, 512)}, results
assert all(r["error"] < 1e-5 for r in results), results
END
verdict $? "one kernel can be measured alone: attention of a row and of a prompt's chunk, over pages of both types"
! "$B/lepton" bench kernels $small --only attentive >"$out" 2>&1 && grep -q 'expected a kernel without weights, found "attentive"' "$out" &&
    ! "$B/lepton" bench kernels $small --only add --type q8_0 >"$out" 2>&1 && grep -q 'expected one of the two' "$out"
verdict $? "a kernel that is none, and a kernel and a type at once, are refused by name"
model=tools/demo/lepton-demo.gguf
"$B/lepton" bench engine $model -p 24,40 -n 6 -b 1,3 --repeats 1 --threads 2 --prefix 48 --json >"$out" 2>&1 && /usr/bin/python3 - "$out" <<'END'
import json, sys
run = json.load(open(sys.argv[1]))
assert [(r["test"], r["batch"]) for r in run["results"]] == [("pp24", 1), ("pp40", 1), ("tg6", 1), ("tg6", 3)], run
for r in run["results"]:
    assert set(r) - {"joules_per_token"} == {"test", "batch", "threads", "type", "tokens_per_second", "fraction", "limit", "spread", "idle_ratio"}, r
    assert r["tokens_per_second"] > 0 and r["fraction"] > 0 and r["spread"] >= 0 and 0 <= r["idle_ratio"] < 1, r
    assert r["threads"] == 2 and r["type"] == "f16" and r["limit"] in ("read", "int8", "bf16", "fp32"), r
    assert r["test"][:2] != "pp" or r["limit"] != "read", r
assert run["limits"]["read_bytes_per_s"] > 0 and run["limits"]["fp32_flop_per_s"] > 0 and run["limits"]["read_by"], run
assert run["first_token_ms"] > run["load_ms"] > 0 and run["resident_bytes"] >= run["anonymous_bytes"] > 0, run
assert run["weight_bytes"] > 1e6 and run["kv_budget_bytes"] > 0 and run["stages"] == 1 and run["energy_readable"] in (True, False), run
assert run["prefix"]["tokens"] == 48 and run["prefix"]["first_ms"] > 0 and run["prefix"]["second_ms"] > 0, run
END
verdict $? "bench engine --json holds each test with its fraction, limit and spread, and load, memory and limits of the run"
"$B/lepton" bench engine $model -p 24 -n 6 -b 2 --repeats 2 --threads 1 --stages 2 -- --page-tokens 4 >"$out" 2>&1 &&
    grep -q '^method: one warm-up, median of 2 runs, spread' "$out" && grep -q 'a group of 2 stages, [12] threads in all' "$out" &&
    grep -q '^limits of this run: read .* GB/s' "$out" && grep -qE '^energy: (joules|not readable here)' "$out" &&
    grep -qE '^load [0-9]+ ms, to the first token [0-9]+ ms' "$out" && grep -q '^resident [0-9]* MB' "$out" &&
    grep -qE '^pp24 +1 +[12] f16 +[0-9.]+ +[0-9.]+ % fp32' "$out" && grep -qE '^tg6 +2 +[12] f16 .* % \(stages wait [0-9.]+, [0-9.]+\)$' "$out"
verdict $? "bench engine drives a real group of two stages, and says its method, the bubbles, and how long each stage waits"
# One stream: one stage computes while the other waits. With one processor for both that is no loss, with one each all of it.
for processors in 1 2; do
    "$B/lepton" bench engine $model -p 0 -n 40 -b 1 --repeats 1 --threads 1 --stages 2 --json -- --processors $processors >"$out.$processors" 2>&1 || cat "$out.$processors"
done
/usr/bin/python3 - "$out.1" "$out.2" <<'END'
import json, sys
shared, apart = (json.load(open(f))["results"][0]["stages"] for f in sys.argv[1:])
assert all(0 < s["bubble_us"] == s["wait_us"] for s in apart), apart
assert all(s["bubble_us"] < s["wait_us"] for s in shared), shared
END
verdict $? "what a stage waits while another has its processors is no bubble; with processors of its own all of it is"
rm -f "$out.1" "$out.2"
"$B/lepton" bench engine $model -p 0 -n 40 -b 1,2 --repeats 2 --threads 1 --stages 2 --speculation --json >"$out" 2>&1 && /usr/bin/python3 - "$out" <<'END'
import json, sys
run = json.load(open(sys.argv[1]))
for r in run["results"]:
    assert len(r["stages"]) == 2 and all(s["busy_us"] > 0 for s in r["stages"]) and 0 <= r["bubble_ratio"] < 1, r
    assert all(s["processor_us"] > 0 for s in r["stages"]) and 0 <= r["idle_ratio"] < 1, r
busy, waits, bubble = (sum(s[k] for s in run["results"][0]["stages"]) for k in ("busy_us", "wait_us", "bubble_us"))
assert abs(run["results"][0]["bubble_ratio"] - bubble / (busy + waits)) < 1e-6, run
looked = run["speculation"]
assert [(r["test"], r["batch"]) for r in looked] == [("tg40", 1), ("tg40", 2)], looked
for r in looked:
    assert r["off_tokens_per_second"] > 0 and r["on_tokens_per_second"] > 0 and r["tokens"] >= 2 * 40 * r["batch"], r
    assert 0 < r["drafted"] and 0 <= r["accepted"] <= r["drafted"] and r["accepted"] < r["tokens"], r
END
verdict $? "bench engine --speculation generates the same streams without and with prompt lookup, and counts drafts"
"$B/lepton" bench engine $model -p 0 -n 40 -b 1 --repeats 1 --threads 1 --speculation >"$out" 2>&1 &&
    grep -q '^speculation by prompt lookup' "$out" && grep -qE '^tg40 +1 +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9]+ +[0-9]+$' "$out"
verdict $? "bench engine --speculation drives the engine in its own process too"
"$B/lepton" bench engine $model -p 0 -n 6 -b 2 --repeats 1 --threads 1 --tensor 2 --json >"$out" 2>&1 &&
    /usr/bin/python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); assert r["tensor"] == 2 and r["results"][0]["tokens_per_second"] > 0, r' "$out"
verdict $? "bench engine drives a group of two tensor slots"
# 600 rows of 2048 numbers are more than the ring between two ranks holds: the rest goes on while the leader waits.
"$B/lepton" synth --layers 2 --dim 2048 --ffn 64 --heads 32 --kv-heads 1 --vocab 300 "$scratch/wide.gguf" >"$out" 2>&1 &&
    timeout 60 "$B/lepton" bench engine "$scratch/wide.gguf" -p 600 -n 0 --repeats 1 --threads 1 --stages 2 --step-tokens 600 >"$out" 2>&1 &&
    grep -qE '^pp600 +1 +2 ' "$out"
verdict $? "a step whose rows are more than the memory between two stages comes through"
"$B/lepton" bench engine $model -p 12, >"$out" 2>&1
[ $? -eq 2 ] && grep -q -- '--prompts: expected numbers' "$out" && ! "$B/lepton" bench engine $model -p 0 -n 6000 >"$out" 2>&1 &&
    grep -q "is more than the model's" "$out" && ! "$B/lepton" bench engine /nowhere.gguf >"$out" 2>&1 && grep -q '/nowhere.gguf' "$out"
verdict $? "a list that is none, a context beyond the model's and a missing model are refused by name"
mkdir "$scratch/relay"
TMPDIR=$scratch/relay "$B/lepton" bench relay --streams 8 --steps 12 --step-us 3000 --rounds 2 --idle-s 1 --json >"$out" 2>&1 && /usr/bin/python3 - "$out" <<'END'
import json, sys
r = json.load(open(sys.argv[1]))
assert r["rounds"] == 2 and r["tokens_per_core_s"] > 0 and r["idle_core"] >= 0
for way in ("floor_ms", "relay_ms"):
    w = r[way]
    assert 0 < w["p50"] <= w["p90"] <= w["p99"] <= w["max"], r
assert abs(r["adds_ms"]["p50"] - (r["relay_ms"]["p50"] - r["floor_ms"]["p50"])) < 1e-6
assert r["adds_by_round_ms"]["p50_best"] <= r["adds_by_round_ms"]["p50_median"]
END
verdict $? "bench relay times tokens with and without a coordinator, and says the difference"
"$B/lepton" bench relay --streams 0 >"$out" 2>&1
[ $? -eq 2 ] && grep -q 'streams' "$out" && [ -z "$(ls -A "$scratch/relay")" ]
verdict $? "bench relay leaves nothing behind, and refuses wrong usage"
"$B/lepton" bench engines >"$out" 2>&1
[ $? -eq 2 ] && grep -q 'expected engine, kernels or relay' "$out" && ! "$B/lepton" bench kernels --type q9 >"$out" 2>&1 && grep -q 'no weight type' "$out"
verdict $? "wrong usage is refused by name"
exit $failed
