#!/usr/bin/env bash
# The GPU's kernels beside the CPU's where no GPU is: tests/unit/kernels/test_cuda.c over the emulated GPU of
# tests/fake_cuda, which runs the .cu files thread by thread.
set -u
cd "$(dirname "$0")/../.." || exit 1
B=${LEPTON_BUILD:-build/release}
if [ ! -e "$B/tests/lepton_fake_cuda.so" ]; then
    echo "skip - the emulated GPU: it was not built (no C++ compiler)"
    exit 0
fi
LEPTON_CUDA_PLUGIN=$B/tests/lepton_fake_cuda.so "$B/tests/unit/kernels/test_cuda" | sed -E 's/^(ok|not ok|skip) - /\1 - emulated: /'
exit "${PIPESTATUS[0]}"
