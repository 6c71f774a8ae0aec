#!/usr/bin/env bash
# comm_shm under the real mpirun: every check of tests/comm/check_comm.c with 1 to 4 ranks, and nothing left behind.
set -u
B=${LEPTON_BUILD:-build/release}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
failed=0
for count in 1 2 3 4; do
    timeout 120 mpirun --oversubscribe --bind-to none -np $count "$B/tests/mpi/shm_ranks" || failed=1
done
exit $failed
