#!/usr/bin/python3
"""Writes the first inputs of fuzz_template to tests/fuzz/seeds/fuzz_template: the shorter templates of
tests/templates, and lines that use what those do not.

usage: tests/fuzz/make_template_seeds.py
"""
import os

here = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(here, "seeds", "fuzz_template")
templates = os.path.join(here, "..", "templates")
more = {
    "filters": "{{ messages|map(attribute='role')|map('upper')|list|sort(reverse=true)|unique|join(', ') }}"
               "{{ messages|selectattr('role','equalto','user')|list|length }}{{ messages|tojson(indent=2) }}",
    "macro": "{% macro f(a, b=2) %}{{ a ~ b }}{% if b > 0 %}{{ f(a, b=b-1) }}{% endif %}{% endmacro %}{{ f('x') }}",
    "slices": "{{ messages[::-1][0].role[1:-1] }}{{ y[-2:] }}{{ 'abc'[::2] }}{{ (1, 2)[0] }}{{ {'a': [1]}['a'][0] }}",
    "numbers": "{{ 7 // -2 }}{{ -7 % 3 }}{{ 2 ** 10 }}{{ 1 / 3 }}{{ 0x1F + 1_000 }}{{ '12'|int + ' 1e3 '|float }}",
    "loop": "{% for a, b in {'k': 1, 'l': 2}.items() if b %}{{ loop.index }}{% if loop.last %}{% break %}{% endif %}"
            "{% else %}none{% endfor %}",
    "block": "{% set x | trim %} a {% endset %}{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}"
             "{% generation %}{{ x }}{% endgeneration %}",
}
os.makedirs(folder, exist_ok=True)
for name in sorted(os.listdir(templates)):
    with open(os.path.join(templates, name), "rb") as f:
        data = f.read()
    if name.endswith(".jinja") and len(data) < 2500:
        more[name[:-6]] = data.decode()
for name, text in more.items():
    with open(os.path.join(folder, name), "wb") as f:
        f.write(b"\0" + text.encode())
