#!/usr/bin/env bash
# Scripts parse, and those that are run are executable.
. "$(dirname "$0")/house.bash"

# What begins with "#! ... NAME", or ends like such a script.
shopt -s extglob
scripts_of() {
    files | while IFS= read -r file; do
        case $file in *.$2) echo "$file" && continue ;; esac
        read -r first 2>/dev/null <"$file" || continue
        case $first in '#!'*"$1"*) echo "$file" ;; esac
    done 2>/dev/null
}
scripts_of bash '@(sh|bash)' >"$scratch/bash"
scripts_of python3 py >"$scratch/python"

: >"$scratch/found"
while IFS= read -r file; do bash -n "$file" >>"$scratch/found" 2>&1; done <"$scratch/bash"
verdict "every shell script parses" "$scratch/found"

echo 'if true; then' >"$scratch/planted.sh"
bash -n "$scratch/planted.sh" 2>/dev/null && echo "planted.sh parsed" >"$scratch/missed"
touch "$scratch/missed"
verdict "a shell script that does not parse is found" "$scratch/missed"

if command -v python3 >/dev/null; then
    python3 - "$scratch/python" >"$scratch/found" 2>&1 <<'END'
import sys
for path in open(sys.argv[1]).read().split():
    try:
        compile(open(path, encoding="utf-8").read(), path, "exec")
    except SyntaxError as error:
        print(f"{path}:{error.lineno}: {error.msg}")
END
    verdict "every Python script parses" "$scratch/found"
else
    echo "skip - every Python script parses: python3 is not installed"
fi

: >"$scratch/found"
{
    echo .ci/run
    files 'tests/house/*.sh' 'tests/integration/test_*.sh' 'tests/integration/test_*.py'
    cat "$scratch/bash" "$scratch/python" | while IFS= read -r file; do
        read -r first <"$file"
        case $first in '#!'*) echo "$file" ;; esac
    done
} | sort -u | while IFS= read -r file; do [ -x "$file" ] || echo "$file: expected to be executable"; done >"$scratch/found"
verdict "every script that is run is executable" "$scratch/found"
finish
