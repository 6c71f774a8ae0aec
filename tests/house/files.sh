#!/usr/bin/env bash
# What must not be in the project: large files, and names of the machines it was written on.
. "$(dirname "$0")/house.bash"

# The words stand here in halves, so that this file does not find itself.
places='(^|[^A-Za-z0-9_.-])/(wor''k|roo''t|hom''e/[a-z][a-z0-9_-]*)/'

# Both read the files from standard input, one on each line.
too_large() {
    tr '\n' '\0' | xargs -0r stat -c '%s %n' | awk '$1 > 2 * 1024 * 1024 { print $2 ": " $1 " bytes; expected at most 2 MiB" }'
}
machine_paths() {
    tr '\n' '\0' | xargs -0r grep -nIE "$places" /dev/null
}

files >"$scratch/list"
too_large <"$scratch/list" >"$scratch/found"
verdict "no file is larger than 2 MiB" "$scratch/found"
machine_paths <"$scratch/list" >"$scratch/found"
verdict "no file names a path of one machine" "$scratch/found"

head -c 2097153 /dev/zero >"$scratch/large"
echo "see /wor""k/shared/x" >"$scratch/path"
[ -n "$(echo "$scratch/large" | too_large)" ] || echo "a large file passed" >"$scratch/missed"
[ -n "$(echo "$scratch/path" | machine_paths)" ] || echo "a path passed" >>"$scratch/missed"
touch "$scratch/missed"
verdict "a large file and a machine's path are found" "$scratch/missed"
finish
