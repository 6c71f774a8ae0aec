# Shared by the house tests: the project's files, and the lines that tests/run counts. Sourced, never run.
set -u
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0

# The files of the project, as git knows them (a new one after `git add`). Arguments: pathspecs ('*.c'). Without
# git (an unpacked archive) all that is no build output.
files() {
    if [ -n "$(git -c safe.directory='*' ls-files Makefile 2>/dev/null)" ]; then
        git -c safe.directory='*' ls-files -- "$@"
    else
        local paths=() pattern
        for pattern in "${@:-*}"; do paths+=(-o -path "./$pattern"); done
        find . \( -path ./build -o -path ./.git -o -name __pycache__ \) -prune -o -type f \( "${paths[@]:1}" \) -print |
            sed 's|^\./||'
    fi | sort -u | while IFS= read -r file; do [ -f "$file" ] && printf '%s\n' "$file"; done
    return 0
}

# verdict SENTENCE FINDINGS: ok when the file FINDINGS is empty; else its lines are shown.
verdict() {
    if [ -s "$2" ]; then
        head -n 40 "$2" | sed 's/^/# /'
        echo "not ok - $1"
        failures=$((failures + 1))
    else
        echo "ok - $1"
    fi
}

finish() {
    exit $((failures != 0))
}
