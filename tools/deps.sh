#!/usr/bin/env bash
# Installs the Debian packages that Lepton needs and that are missing; does nothing, without asking apt, when all
# are there. Other systems are told which packages to install. CUDA and NCCL are optional: never installed here.
# usage: tools/deps.sh [--check] [--test]
#   --check  only lists what is missing; exits 1 when something is
#   --test   also what the tests need
set -euo pipefail

# set | Debian, Ubuntu | how to see it without a package manager | Fedora | Arch | reason
packages() {
    cat <<'END'
build | gcc | command gcc | gcc | gcc | compiles the C
build | libc6-dev | header stdio.h | glibc-devel | glibc | headers of the C library
build | make | command make | make | make | runs the Makefile
build | pkg-config | command pkg-config | pkgconf-pkg-config | pkgconf | tells the Makefile where libraries are
build | libzmq3-dev | library libzmq | zeromq-devel | zeromq | ZeroMQ: every message between the programs
build | libczmq-dev | library libczmq | czmq-devel | czmq | CZMQ: key files, polling
build | libopenmpi-dev | library ompi-c ompi | openmpi-devel | openmpi | MPI: the ranks of a group talk through it
build | openmpi-bin | command mpirun | openmpi | openmpi | mpirun: starts the ranks of a group
build | libmsgpack-dev | library msgpack msgpack-c | msgpack-devel | msgpack-c | msgpack: the bytes of a message
build | libconfig-dev | library libconfig | libconfig-devel | libconfig | libconfig: configuration files
build | libjansson-dev | library jansson | jansson-devel | jansson | jansson: JSON
build | libmicrohttpd-dev | library libmicrohttpd | libmicrohttpd-devel | libmicrohttpd | libmicrohttpd: HTTP in the gateway
build | libsodium-dev | library libsodium | libsodium-devel | libsodium | libsodium: keys and hashes
build | libutf8proc-dev | library libutf8proc | utf8proc-devel | libutf8proc | utf8proc: Unicode categories, which cut a text into words
build | libxxhash-dev | library libxxhash | xxhash-devel | xxhash | xxHash: finds damaged weights at the speed of memory
build | libsqlite3-dev | library sqlite3 | sqlite-devel | sqlite | SQLite: what must outlive the coordinator
test | curl | command curl | curl | curl | a foreign HTTP client for the gateway
test | git | command git | git | git | the house tests ask it for the project's files
test | python3-zmq | python zmq | python3-pyzmq | python-pyzmq | a client that shares no code with Lepton
test | python3-msgpack | python msgpack | python3-msgpack | python-msgpack | the same client's messages
test | python3-numpy | python numpy | python3-numpy | python-numpy | reference results for kernels
test | python3-regex | python regex | python3-regex | python-regex | the published expressions that cut texts into words
test | python3-jinja2 | python jinja2 | python3-jinja2 | python-jinja | the reference for chat templates
test | clang | command clang | clang | clang | libFuzzer, and a second opinion on headers
test | libclang-rt-dev | fuzzer | compiler-rt | compiler-rt | libFuzzer's own library
test | clang-format | command clang-format | clang-tools-extra | clang | the format test (version 14)
test | iproute2 | command ip | iproute | iproute2 | network namespaces: two hosts on one machine
test | nftables | command nft | nftables | nftables | cuts links between those hosts
END
}

check=no sets=" build "
for argument in "$@"; do
    case $argument in
    --check) check=yes ;;
    --test) sets=" build test " ;;
    -h | --help)
        sed -n '2,/^set /{/^# /s/^# //p}' "$0"
        exit 0
        ;;
    *)
        echo "deps.sh: $argument: expected --check or --test" >&2
        exit 2
        ;;
    esac
done

# True when the thing itself is there, whoever installed it. Administrators' folders may be missing from PATH.
PATH=$PATH:/usr/sbin:/sbin
probe() {
    local kind=$1 name
    shift
    case $kind in
    command) command -v "$1" >/dev/null ;;
    header) [ -e "/usr/include/$1" ] ;;
    library)
        for name in "$@"; do pkg-config --exists "$name" 2>/dev/null && return 0; done
        return 1
        ;;
    python) /usr/bin/env python3 -c "import $1" 2>/dev/null ;;
    fuzzer) [ -e "$(clang -print-file-name="libclang_rt.fuzzer-$(uname -m).a" 2>/dev/null)" ] ;;
    esac
}

# One dpkg-query for all: "ii name" for each installed package.
installed=" "
if command -v dpkg-query >/dev/null; then
    installed=" $(dpkg-query -W -f '${db:Status-Abbrev}${binary:Package}\n' 2>/dev/null |
        sed -n 's/^ii *\([^:]*\).*/\1/p' | tr '\n' ' ') "
fi

debian=() fedora=() arch=()
while IFS='|' read -r set name how on_fedora on_arch reason; do
    read -r set <<<"$set"
    read -r name <<<"$name"
    read -r reason <<<"$reason"
    case $sets in *" $set "*) ;; *) continue ;; esac
    case $installed in *" $name "*) continue ;; esac
    read -ra how <<<"$how"
    probe "${how[@]}" && continue
    read -r on_fedora <<<"$on_fedora"
    read -r on_arch <<<"$on_arch"
    printf 'missing: %-16s %s\n' "$name" "$reason"
    debian+=("$name") fedora+=("$on_fedora") arch+=("$on_arch")
done < <(packages)

[ ${#debian[@]} -eq 0 ] && exit 0
[ $check = yes ] && exit 1

# Asks each system for its own names; a system we do not know gets Debian's, as words to search for.
if ! command -v apt-get >/dev/null; then
    exec >&2
    echo "deps.sh: installs Debian packages only, and this system has no apt-get. Install by hand:"
    if command -v dnf >/dev/null; then
        echo "  sudo dnf install ${fedora[*]}"
        echo "  module load mpi/openmpi-$(uname -m)   # puts mpirun and its pkg-config file on the paths"
    elif command -v pacman >/dev/null; then
        echo "  sudo pacman -S --needed $(printf '%s\n' "${arch[@]}" | sort -u | tr '\n' ' ')"
    else
        echo "  Fedora:        ${fedora[*]}"
        echo "  Arch:          $(printf '%s\n' "${arch[@]}" | sort -u | tr '\n' ' ')"
        echo "  Debian's names: ${debian[*]}"
    fi
    exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "deps.sh: needs root; run as root: apt-get install ${debian[*]}" >&2
        exit 1
    fi
    # Without a terminal nobody can type a password: fail instead of waiting.
    if [ -t 0 ]; then as_root=(sudo); else as_root=(sudo -n); fi
fi
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" </dev/null
}
echo "deps.sh: installing ${debian[*]}"
apt update
apt install -y --no-install-recommends "${debian[@]}"
