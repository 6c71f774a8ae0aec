#!/usr/bin/env bash
# The include rule: which folder may include which. tools -> coordinator | worker -> common; worker -> kernels;
# kernels -> common/base.h alone; worker/infer and worker/train do not know each other.
. "$(dirname "$0")/house.bash"

# Prints each violation below the current folder; standard input: the files, one on each line.
violations() {
    xargs -r grep -HnE '^[[:space:]]*#[[:space:]]*include' /dev/null | awk '
    # What a folder may include, the longest folder first; "common/base.h" is a file, the others are folders.
    BEGIN {
        may["common"] = "common"
        may["kernels"] = "kernels common/base.h"
        may["coordinator"] = "coordinator common"
        may["worker/model"] = "worker kernels common"
        may["worker"] = "worker kernels common"
        may["tools"] = "tools coordinator worker kernels common"
        may["tests"] = "tests tools coordinator worker kernels common"
        never["worker/model"] = "worker/infer worker/train"
        never["worker/infer"] = "worker/train"
        never["worker/train"] = "worker/infer"
        rooms = "^(common|kernels|coordinator|worker|tools|tests)/"
    }
    function below(path, folder) { return path == folder || index(path, folder "/") == 1 }
    function any(path, list,    n, i, folders) {
        n = split(list, folders, " ")
        for (i = 1; i <= n; i++) if (below(path, folders[i])) return 1
        return 0
    }
    function say(what) { print place ": " what }
    {
        match($0, /^[^:]*:[0-9]*:/)
        place = substr($0, 1, RLENGTH - 1)
        file = place; sub(/:[0-9]*$/, "", file)
        text = substr($0, RLENGTH + 1)
        quoted = match(text, /"[^"]*"/)
        if (!quoted && !match(text, /<[^>]*>/)) { say("an include that is neither \"...\" nor <...>"); next }
        target = substr(text, RSTART + 1, RLENGTH - 2)
        if (!quoted) {
            if (target ~ rooms || target ~ /^\.\.?\//) say("<" target ">: our own headers stand in quotes")
            next
        }
        first[file]++
        # tokenizer.c may begin with tokenizer_impl.h, which its neighbours share.
        stem = file; sub(/\.(c|cu)$/, "", stem)
        own = stem ".h"
        if (file ~ /\.(c|cu)$/ && first[file] == 1 && target != own && index(target, stem "_") != 1 &&
            (getline line < own) >= 0)
            say("\"" target "\": the first include of this file must be \"" own "\"")
        close(own)
        if (target ~ /(^|\/)\.\.?\// || target !~ rooms) {
            say("\"" target "\": includes are written from the root of the project"); next
        }
        if ((getline line < target) < 0) say("\"" target "\": no such file")
        close(target)
        room = file; sub(/\/.*/, "", room)
        if (!(room in may)) { say("folder " room "/ has no include rule; add it to tests/house/includes.sh"); next }
        if (!any(target, may[room])) say(room "/ must not include \"" target "\"")
        for (folder in never)
            if (below(file, folder) && any(target, never[folder])) say(folder "/ must not include \"" target "\"")
    }'
}

files '*.c' '*.h' '*.cu' '*.cuh' >"$scratch/list"
violations <"$scratch/list" >"$scratch/found"
verdict "every include points the way the house allows" "$scratch/found"

# The test of the test: each planted violation, alone in a copy of the tree, must be the one that is found.
mkdir "$scratch/copy"
xargs cp --parents -t "$scratch/copy" <"$scratch/list"
cd "$scratch/copy" || exit 1
mkdir -p worker/infer worker/train worker/model coordinator
echo '/* planted */' | tee worker/infer/planted.h worker/train/planted.h coordinator/planted.h >/dev/null
: >"$scratch/missed"
while read -r file line; do
    echo "$line" >"$file"
    n=$(echo "$file" | violations | wc -l)
    [ "$n" -eq 1 ] || echo "$file: $line: $n violations found, expected 1" >>"$scratch/missed"
    rm "$file"
done <<'END'
common/planted.c #include "worker/comm.h"
common/planted.c #include "tests/test.h"
common/planted.c #include "base.h"
common/planted.c #include "common/nowhere.h"
common/planted.c #include "../common/base.h"
kernels/planted.c #include "common/log.h"
kernels/planted.cu   #  include "worker/comm.h"
kernels/planted.h #include <common/base.h>
coordinator/planted2.c #include "kernels/tensor.h"
coordinator/planted2.h #include "worker/comm.h"
worker/planted.c #include "coordinator/planted.h"
worker/planted.c #include "tools/command.h"
worker/infer/planted2.c #include "worker/train/planted.h"
worker/train/planted2.c #include "worker/infer/planted.h"
worker/model/planted.c #include "worker/infer/planted.h"
coordinator/planted.c #include "common/base.h"
END
echo '#include "common/base.h"' >worker/planted.c
echo worker/planted.c | violations >>"$scratch/missed"
verdict "a planted violation of the include rule is found" "$scratch/missed"
finish
