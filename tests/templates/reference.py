"""The reference: jinja2 as Hugging Face's transformers use it for chat templates."""
import datetime
import json

import jinja2
import jinja2.ext
import jinja2.sandbox


class Refused(Exception):
    """What a template raises itself."""


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks what the model wrote; the text stays."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("keep"), [], [], body).set_lineno(line)

    def keep(self, caller):
        return caller()


def environment(now):
    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    e = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    e.filters["tojson"] = tojson
    e.globals["raise_exception"] = raise_exception
    e.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(now).strftime(form)
    return e


def render(source, variables, now, sandbox=None):
    """(text, None, None), (None, what the template said, None) or (None, None, what went wrong)."""
    try:
        return (sandbox or environment(now)).from_string(source).render(**variables), None, None
    except Refused as e:
        return None, str(e.args[0]), None
    except Exception as e:  # whatever Python raises inside a template
        return None, None, "%s: %s" % (type(e).__name__, e)
