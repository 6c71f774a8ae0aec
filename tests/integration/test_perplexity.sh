#!/usr/bin/env bash
# lepton perplexity: the figure does not depend on how the text was cut into steps, and matches the meaning of the word.
set -u
B=${LEPTON_BUILD:-build/release}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
verdict() {
    if [ "$1" -eq 0 ]; then echo "ok - $2"; else echo "not ok - $2" && failed=1; fi
}
model=tools/demo/lepton-demo.gguf
for _ in 1 2 3 4 5 6 7 8; do
    printf 'Once upon a time, there was a little fox. The fox liked to run through the tall grass. '
done >"$work/story"
head -c 600 /dev/urandom | od -An -tx1 >"$work/noise"

figure() { "$B/lepton" perplexity $model --json "$@" | grep -o '"perplexity": [0-9.]*'; }
one=$(figure -f "$work/story" --chunk 1 --threads 1)
for words in "--chunk 7" "--chunk 128 --threads 2" "--chunk 300 --threads 3"; do
    [ -n "$one" ] && [ "$(figure -f "$work/story" $words)" = "$one" ] || { echo "# $words: $(figure -f "$work/story" $words), not $one"; false; } || differs=1
done
[ -z "${differs:-}" ]
verdict $? "perplexity has the same digits for every chunk and thread count"

awk -v story="${one##*: }" -v noise="$(figure -f "$work/noise" | sed 's/.*: //')" 'BEGIN { print "# story " story ", noise " noise; exit !(story > 1 && story < 5 && noise > 100) }'
verdict $? "a story of the model's own kind is likely, noise is not"

# The fast kernel sets round otherwise than the reference, and may not predict otherwise. float32 weights, and integers.
text=${LEPTON_SHARED:-../shared}/data/text/wikitext2-valid.txt
trained=${LEPTON_SHARED:-../shared}/data/lm/stories260K/stories260K.gguf
if [ -r "$text" ] && [ -r "$trained" ]; then
    of_set() { "$B/lepton" perplexity "$trained" --json -f "$text" -b 20480 --kernels "$1" | sed -E 's/.*"perplexity": ([0-9.]+).*/\1/'; }
    reference=$(of_set reference) differs=
    sets=$("$B/lepton" perplexity --describe | awk -F '|' '/--kernels/ { gsub(/one of|reference|,/, " ", $4); print $4 }')
    for set in $sets; do
        fast=$(of_set "$set" 2>"$work/refused")
        if [ -z "$fast" ] && grep -q 'this processor' "$work/refused"; then continue; fi
        echo "# stories260K on 20 KB of wikitext2: $set $fast, reference $reference$(cat "$work/refused")"
        awk -v a="${fast:-0}" -v b="${reference:-0}" 'BEGIN { d = a - b; exit !(b > 1 && d < 1e-3 && d > -1e-3) }' || differs=$set
    done
    [ -n "$sets" ] && [ -z "$differs" ]
    verdict $? "stories260K has the reference kernels' perplexity on wikitext2 within 1e-3"
else
    echo "skip - stories260K has the reference kernels' perplexity on wikitext2: the shared data is not here"
fi

"$B/lepton" perplexity $model -f /no/such/file >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q '/no/such/file: No such file' "$work/out" &&
    ! "$B/lepton" perplexity $model >"$work/out" 2>&1 && grep -q 'file: expected' "$work/out" &&
    : >"$work/empty" && ! "$B/lepton" perplexity $model -f "$work/empty" >"$work/out" 2>&1 && grep -q 'nothing to score' "$work/out"
verdict $? "a missing file, no file and an empty file are refused"
exit $failed
