#!/usr/bin/env bash
# Every C, C++ and CUDA file stands as clang-format 14 writes it; other versions disagree about details.
. "$(dirname "$0")/house.bash"
sentence="every C and CUDA file is formatted"

formatter=
for candidate in clang-format-14 clang-format; do
    case $("$candidate" --version 2>/dev/null) in *"version 14."*) formatter=$candidate && break ;; esac
done
if [ -z "$formatter" ]; then
    echo "skip - $sentence: clang-format 14 is not installed"
    exit 0
fi
files '*.c' '*.h' '*.cc' '*.cpp' '*.cu' '*.cuh' |
    xargs -r -P2 -n 8 "$formatter" --dry-run -Werror >"$scratch/found" 2>&1
verdict "$sentence" "$scratch/found"

cp .clang-format "$scratch/"
printf 'int  main( void ) { return 0; }\n' >"$scratch/planted.c"
"$formatter" --dry-run -Werror "$scratch/planted.c" >/dev/null 2>&1 && echo "planted.c passed" >"$scratch/missed"
touch "$scratch/missed"
verdict "a file that is not formatted is found" "$scratch/missed"
finish
