#!/usr/bin/python3
"""Writes the seeds of fuzz_manifest: manifests as `lepton models add` writes them, and values for the odd form.
usage: tests/fuzz/make_manifest_seeds.py (from the root of the project, after make)"""
import os
import subprocess
import tempfile

SEEDS = "tests/fuzz/seeds/fuzz_manifest"
LEPTON = os.environ.get("LEPTON_BUILD", "build/release") + "/lepton"


def main():
    os.makedirs(SEEDS, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        model = root + "/m.gguf"
        subprocess.run([LEPTON, "synth", "--layers", "1", "--dim", "32", "--ffn", "32", "--heads", "1", "--kv-heads", "1",
                        "--vocab", "260", "--type", "f32", model], check=True, stderr=subprocess.DEVNULL)
        for name, words in (("copy", []), ("link", ["--link"])):
            subprocess.run([LEPTON, "models", "--models", root, "add", *words, model, name], check=True,
                           stdout=subprocess.DEVNULL)
            with open("%s/%s/manifest.json" % (root, name), "rb") as f, open("%s/%s" % (SEEDS, name), "wb") as out:
                out.write(b"\0" + f.read())
    with open(SEEDS + "/values", "wb") as out:
        out.write(b"\1\x04tiny\x07/a.gguf\0" + (1 << 24).to_bytes(8, "big") + bytes(8) + bytes(5) + (100).to_bytes(4, "big") +
                  b"\2\x01a" + (1 << 21).to_bytes(3, "big") + b"\1\2\x01b" + (7).to_bytes(3, "big") + b"\3\4")
    with open(SEEDS + "/short", "wb") as out:
        out.write(b'\0{"format": "lepton-model", "version": 1, "tensors": [{"name": "a", "bytes": 1}]}')


main()
