#!/usr/bin/python3
"""lepton template against jinja2 in the sandbox that transformers set up: every template of tests/templates over
every conversation gives the same text, or is refused with the same words."""
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TEMPLATES = os.path.join(HERE, "..", "templates")
sys.path.insert(0, TEMPLATES)
LEPTON = os.path.join(os.environ.get("LEPTON_BUILD", os.path.join(HERE, "..", "..", "build", "release")), "lepton")
NOW = 1732200000

try:
    import jinja2
    from conversations import CONVERSATIONS
    from reference import render
except ImportError as e:
    print("skip - templates render as jinja2 does: %s" % e)
    sys.exit(0)


def lepton(path, variables, scratch):
    given = os.path.join(scratch, "variables.json")
    with open(given, "w") as f:
        json.dump(variables, f, ensure_ascii=False)
    run = subprocess.run([LEPTON, "template", path, "--variables", given, "--now", str(NOW)], capture_output=True)
    return run.returncode, run.stdout.decode(), run.stderr.decode()


def compare(path, variables, scratch):
    """(None, or what differs; whether there is a text)."""
    variables = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "add_generation_prompt": True, **variables}
    with open(path, encoding="utf-8", newline="") as f:
        source = f.read()
    text, refused, failed = render(source, variables, NOW)
    code, out, err = lepton(path, variables, scratch)
    if text is not None:
        return None if (code, out) == (0, text) else "expected %r, found %r %s" % (text, out, err), True
    if code != 1 or not err:
        return "jinja2 refuses it (%s), lepton gives %r" % (refused or failed, out), False
    if refused is not None and not err.rstrip("\n").endswith("raise_exception: " + refused):
        return "expected the refusal %r, found %r" % (refused, err), False
    return None, False


def main():
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in sorted(os.listdir(TEMPLATES)):
            if not name.endswith(".jinja"):
                continue
            wrong = texts = 0
            for conversation, variables in CONVERSATIONS:
                difference, text = compare(os.path.join(TEMPLATES, name), variables, scratch)
                texts += text
                if difference:
                    print("# %s, %s: %s" % (name, conversation, difference))
                    wrong += 1
            if texts < 8:  # else the conversations do not suit the template, and little was compared
                print("# %s: %d texts of %d conversations, expected at least 8" % (name, texts, len(CONVERSATIONS)))
                wrong += 1
            print("%s - %s renders as jinja2 does: %d texts, %d refusals" %
                  ("not ok" if wrong else "ok", name, texts, len(CONVERSATIONS) - texts))
            bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
