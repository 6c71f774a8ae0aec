#!/usr/bin/env python3
"""Makes the seeds of fuzz_model: the tiny models of test_arch.py, made smaller still. Those that stay large (sizes
of their own, quantised types) are left out: a fuzzer wants short inputs.

usage: make_model_seeds.py [DIR]   (default: seeds/fuzz_model beside this script)
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import test_arch

# The builders read these when they are called.
test_arch.LAYERS, test_arch.VOCAB, test_arch.CONTEXT = 2, 8, 6
test_arch.C, test_arch.F, test_arch.H, test_arch.G = 16, 8, 2, 1


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "seeds", "fuzz_model")
    os.makedirs(directory, exist_ok=True)
    for name, build in test_arch.MODELS:
        model = build()[0]
        path = os.path.join(directory, name.replace(" ", "_") + ".gguf")
        model.write(path)
        if os.path.getsize(path) > 30000:
            os.unlink(path)


if __name__ == "__main__":
    main()
