#!/usr/bin/env bash
# lepton bench kernels: every kernel has its figures, beside limits of the same run. No figure's size is judged here.
set -u
B=${LEPTON_BUILD:-build/release}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
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
assert {("matmul", t, n) for t in ("q8_0", "q4_0", "q4_k", "f16", "bf16", "f32") for n in (1, 8, 32, 512)} < seen, seen
assert {r["rows"] for r in run["results"] if r["kernel"] == "attention"} == {1, 32}
for r in run["results"]:
    assert r["ms"] > 0 and r["gop_per_s"] > 0 and r["limit"] in ("read", "fp32", "int8") and 0 <= r["error"] < 0.05, r
END
verdict $? "bench kernels --json holds each kernel's figures, its limit and its error"
"$B/lepton" bench kernels $small --type q6_k --kernels reference >"$out" 2>&1 && grep -q 'q6_k' "$out" && grep -q 'limits of this run' "$out"
verdict $? "one type and the reference set can be measured alone"
"$B/lepton" bench engines >"$out" 2>&1
[ $? -eq 2 ] && grep -q 'expected kernels' "$out" && ! "$B/lepton" bench kernels --type q9 >"$out" 2>&1 && grep -q 'no weight type' "$out"
verdict $? "wrong usage is refused by name"
exit $failed
