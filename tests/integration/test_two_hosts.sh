#!/usr/bin/env bash
# One group across two hosts: two network namespaces with host names of their own hold a stage each, the coordinator sits in
# a third, the client in it too. mpirun reaches the second host through a launch agent that enters its namespace.
set -u
build=$(cd "${LEPTON_BUILD:-build/release}" && pwd) || exit 1
root=$(pwd)
sentence="one group across two hosts gives the ids of one process"
skip() { echo "skip - $sentence: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "needs root for network namespaces"
command -v ip >/dev/null || skip "needs iproute2"
id=lt$$
ip netns add $id-x 2>/dev/null || skip "network namespaces are not allowed here"

work=$(mktemp -d)
coordinator=
group=
finish() {
    [ -n "$group" ] && kill -TERM "$group" 2>/dev/null
    [ -n "$coordinator" ] && kill -TERM "$coordinator" 2>/dev/null
    for _ in $(seq 50); do
        kill -0 ${group:-0} 2>/dev/null || kill -0 ${coordinator:-0} 2>/dev/null || break
        sleep 0.1
    done
    for n in x c a b; do
        ip netns pids $id-$n 2>/dev/null | xargs -r kill -9 2>/dev/null
        ip netns del $id-$n 2>/dev/null
    done
    rm -rf "$work"
}
trap finish EXIT

# A switch (x) with three hosts: c = 10.77.0.1 the coordinator, a = .2 and b = .3 the stages.
ip -n $id-x link add bridge0 type bridge && ip -n $id-x link set bridge0 up || skip "no bridge device here"
address=1
for n in c a b; do
    ip netns add $id-$n
    ip -n $id-x link add to-$n type veth peer name eth0 netns $id-$n || skip "no veth devices here"
    ip -n $id-x link set to-$n master bridge0 up
    ip -n $id-$n addr add 10.77.0.$address/24 dev eth0
    ip -n $id-$n link set eth0 up
    ip -n $id-$n link set lo up
    address=$((address + 1))
done

# Enters a host: its network, a host name of its own, a temporary directory of its own.
cat >"$work/enter" <<EOF
#!/bin/sh
host=\$1; shift
case \$host in 10.77.0.1) n=c;; 10.77.0.2) n=a;; *) n=b;; esac
mkdir -p $work/tmp-\$n
exec ip netns exec $id-\$n unshare --uts sh -c "hostname host-\$n; export TMPDIR=$work/tmp-\$n; \$*"
EOF
chmod +x "$work/enter"
printf '10.77.0.2 slots=1\n10.77.0.3 slots=1\n' >"$work/hosts"

mkdir "$work/authorized"
for name in coordinator worker client; do
    "$build/lepton" keygen --role $name "$work/keys" $name >/dev/null || exit 1
done
cp "$work/keys/worker.pub" "$work/keys/client.pub" "$work/authorized/"
"$work/enter" 10.77.0.1 "exec $build/lepton-coordinator --endpoint tcp://10.77.0.1:5555 --key $work/keys/coordinator.key \
    --authorized $work/authorized --endpoint-file $work/endpoint" >"$work/coordinator.log" 2>&1 &
coordinator=$!

model=$root/tools/demo/lepton-demo.gguf
"$work/enter" 10.77.0.2 "exec $build/lepton group --stages 2 --hostfile $work/hosts --launcher mpirun \
    --launcher-arguments '--mca plm_rsh_agent $work/enter --mca btl tcp,self --mca btl_tcp_if_include eth0 \
    --mca oob_tcp_if_include eth0 --map-by node' -- --model $model --group worker --endpoint tcp://10.77.0.1:5555 \
    --server-key $work/keys/coordinator.pub --key $work/keys/worker.key" >"$work/group.log" 2>&1 &
group=$!

client="--endpoint tcp://10.77.0.1:5555 --server-key $work/keys/coordinator.pub --key $work/keys/client.key"
ready=
for _ in $(seq 300); do
    if "$work/enter" 10.77.0.1 "$build/lepton status --json $client" 2>/dev/null >"$work/status" && grep -q '"state":"ready"' "$work/status"; then
        ready=1
        break
    fi
    sleep 0.1
done
prompt='-p "Once upon a time" -n 48 --temperature 0 --json'
if [ -n "$ready" ]; then
    "$work/enter" 10.77.0.1 "$build/lepton generate $client $prompt" >"$work/answer" 2>"$work/answer.err"
fi
export LEPTON_HOME=$work/home
mkdir -m 700 "$LEPTON_HOME"
eval "$build/lepton run $model $prompt" >"$work/alone" 2>&1

tokens() { grep -o '"tokens":\[[0-9,]*\]' "$1" 2>/dev/null; }
hosts=$(grep -o '"host":"host-[ab]"' "$work/status" | sort -u | wc -l)
if [ -n "$ready" ] && [ "$hosts" = 2 ] && [ -n "$(tokens "$work/answer")" ] && [ "$(tokens "$work/answer")" = "$(tokens "$work/alone")" ]; then
    echo "ok - $sentence"
else
    for f in coordinator.log group.log status answer answer.err alone; do
        [ -f "$work/$f" ] && sed "s/^/# $f: /" "$work/$f" | tail -n 15
    done
    echo "not ok - $sentence"
    exit 1
fi
