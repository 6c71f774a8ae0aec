#!/usr/bin/env bash
# Every header compiles alone as C; one that says extern "C" and all of kernels/ compile alone as C++ too, for CUDA
# code includes them.
. "$(dirname "$0")/house.bash"

packages=()
for package in libczmq libzmq msgpack msgpack-c libconfig jansson libsodium ompi-c ompi; do
    pkg-config --exists "$package" 2>/dev/null && packages+=("$package")
done
flags="-I. -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused -fsyntax-only"
[ ${#packages[@]} -eq 0 ] || flags="$flags $(pkg-config --cflags "${packages[@]}")"
export flags

# compile LANGUAGE HEADER...: one line of findings for each that does not compile. Only the first error: the rest
# follows from it.
compile() {
    local language=$1 header
    shift
    for header in "$@"; do
        # shellcheck disable=SC2086 # the flags are many words
        printf '#include "%s"\n' "$header" | $compiler $flags -x "$language" - 2>&1 | grep -m1 -E 'error' |
            sed "s|^|$header as $language: |"
    done
}
export -f compile

# tests/fake_cuda stands for a vendor's C++ headers and is written as they are.
files '*.h' | grep -v '^tests/fake_cuda/' >"$scratch/c"
{
    xargs -r grep -l 'extern "C"' <"$scratch/c"
    grep -E '^kernels/[^/]*$' "$scratch/c"
} | sort -u >"$scratch/cpp"

export compiler=${CC:-gcc}
xargs -r -P2 -n 4 bash -c 'compile c "$@"' _ <"$scratch/c" >"$scratch/found"
verdict "every header compiles alone as C" "$scratch/found"

mkdir "$scratch/planted"
printf 'size_t planted(void);\n' >"$scratch/planted/planted.h"
flags="$flags -I$scratch/planted" compile c planted.h >"$scratch/planted.out"
[ -s "$scratch/planted.out" ] || echo "planted.h compiled" >"$scratch/missed"
touch "$scratch/missed"
verdict "a header that needs another one before it is found" "$scratch/missed"

sentence='every header that CUDA code includes compiles alone as C++'
compiler=
for candidate in g++ clang; do
    echo 'int x;' | $candidate -x c++ -fsyntax-only - 2>/dev/null && compiler=$candidate && break
done
if [ -z "$compiler" ]; then
    echo "skip - $sentence: no C++ compiler is installed"
else
    xargs -r -P2 -n 4 bash -c 'compile c++ "$@"' _ <"$scratch/cpp" >"$scratch/found"
    verdict "$sentence" "$scratch/found"
fi
finish
