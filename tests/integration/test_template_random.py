#!/usr/bin/python3
"""lepton template against jinja2 over random small templates: the same text, or both refuse.

usage: test_template_random.py [FIRST COUNT]    other seeds than the usual ones
"""
import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "templates")]
LEPTON = os.path.join(os.environ.get("LEPTON_BUILD", os.path.join(HERE, "..", "..", "build", "release")), "lepton")
NOW = 1732200000
SENTENCE = "random templates render as jinja2 renders them"
# What Lepton refuses and Python does: said by name, and not part of the comparison. Constants are folded by jinja2
# under other rules than it evaluates by, so a slice of a constant that has none differs too.
REFUSALS = ("is not supported", "cannot be sliced", "does not fit 64 bits", "has no text")

try:
    import template_grammar
    from reference import environment, render
except ImportError as e:
    print("skip - %s: %s" % (SENTENCE, e))
    sys.exit(0)


def main():
    first, count = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) == 3 else (0, 1200)
    warnings.simplefilter("ignore")
    sandbox = environment(NOW)
    bad = texts = refused_by_name = 0
    variables = {**template_grammar.VARIABLES, "tools": None, "documents": None, "add_generation_prompt": True}
    with tempfile.TemporaryDirectory() as scratch:
        path, given = os.path.join(scratch, "t"), os.path.join(scratch, "variables.json")
        with open(given, "w") as f:
            json.dump(variables, f)
        for seed in range(first, first + count):
            source = template_grammar.template(seed)
            with open(path, "w", newline="") as f:
                f.write(source)
            # Fresh variables: jinja2's filter indent changes a list that it is given.
            want, _, failed = render(source, copy.deepcopy(variables), NOW, sandbox)
            run = subprocess.run([LEPTON, "template", path, "--variables", given, "--now", str(NOW)],
                                 capture_output=True)
            found, said = run.stdout.decode(), run.stderr.decode()
            texts += want is not None
            if run.returncode not in (0, 1) or (run.returncode == 1 and not said):
                wrong = "exit code %d, %r" % (run.returncode, said)
            elif run.returncode == 1 and any(r in said for r in REFUSALS):
                refused_by_name += 1
                continue
            elif want is None:
                wrong = None if run.returncode == 1 else "jinja2 refuses it (%s), lepton gives %r" % (failed, found)
            else:
                wrong = None if run.returncode == 0 and found == want else "expected %r, found %r %s" % (want, found, said)
            if wrong:
                bad += 1
                print("# seed %d: %r: %s" % (seed, source, wrong))
    if texts < count // 4:
        print("# %d texts of %d templates: too few to mean something" % (texts, count))
        bad += 1
    print("%s - %s: %d texts, %d refused by both, %d refused here by name" %
          ("not ok" if bad else "ok", SENTENCE, texts, count - texts - refused_by_name, refused_by_name))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
