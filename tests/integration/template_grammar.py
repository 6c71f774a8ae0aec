"""Random small templates over the grammar that lepton template knows, for the comparison with jinja2."""
import random

NAMES = ["messages", "s", "n", "f", "l", "d", "t", "nothing", "missing", "u"]
STRINGS = ["", "a", "Abc def", " x y ", "1", "12", "-3.5", "a,b,,c", "line\none\r\ntwo\n", "ünï 日本", "it's \"q\"", "\\", "\t"]
VARIABLES = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hëllo\nyou"},
                 {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [1.5, True]}}]}],
    "s": "Some Text, with words", "n": 7, "f": 2.5, "l": [3, 1, 2, 1], "d": {"b": 1, "A": "x", "c": None},
    "t": True, "nothing": None, "u": "Ünïcode 🙂 x",
}
METHODS = ["strip()", "lstrip()", "rstrip()", "strip('a ')", "split()", "split(',')", "split(' ', 1)", "rsplit(' ', 1)", "upper()",
           "lower()", "title()", "capitalize()", "replace('a', 'bb')", "replace('', '-')", "replace('a', 'b', 1)", "startswith('a')",
           "startswith(('a', 'S'))", "endswith('s')", "find('e')", "rfind('e')", "count('a')", "join(['x', 'y'])", "splitlines()",
           "isdigit()", "items()", "keys()", "values()", "get('b')", "get('zz', 5)", "count(1)"]
FILTERS = ["trim", "trim('a')", "upper", "lower", "capitalize", "title", "length", "count", "string", "int", "int(5)", "float", "list",
           "first", "last", "reverse", "sort", "sort(reverse=true)", "sort(case_sensitive=true)", "unique", "join", "join('-')",
           "join(', ', attribute='role')", "default('dd')", "default('dd', true)", "d(1)", "tojson", "tojson(indent=2)", "abs",
           "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(ensure_ascii=true)", "map('upper')", "map(attribute='role')", "map(attribute='content', default='-')",
           "map('string')", "select", "reject", "select('string')", "select('odd')", "reject('equalto', 1)", "select('>', 1)",
           "selectattr('content')", "selectattr('role', 'equalto', 'user')", "rejectattr('role', 'in', ['user'])",
           "selectattr('tool_calls', 'defined')", "indent", "indent(2, true)", "indent(2, blank=true)", "replace('a', 'b')",
           "items", "dictsort", "dictsort(by='value')", "min", "max", "sum", "sum(start=2)", "safe", "map('length')", "sort(attribute='role')",
           "min(attribute='role')", "unique(attribute='role')"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "true",
         "false", "even", "odd", "divisibleby 3", "divisibleby(2)", "equalto 1", "eq 'a'", "ne 1", "in [1, 'a']", "in s", "upper",
         "lower", "lt 3", "ge(2)", "callable"]
ATTRIBUTES = ["role", "content", "a", "b", "zz", "tool_calls", "items", "upper", "count"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.names = list(NAMES)

    def pick(self, *options):
        return self.r.choice(options)

    def literal(self):
        r = self.r
        return self.pick(
            lambda: str(r.choice([0, 1, 2, 3, 7, 10, 255, 12345678901])), lambda: r.choice(["0.5", "1e3", "2.25", "1.0", "100.0"]),
            lambda: quoted(r.choice(STRINGS), r), lambda: r.choice(["true", "false", "none", "True", "None"]))()

    def expression(self, depth):
        if depth <= 0:
            return self.literal() if self.r.random() < 0.4 else self.r.choice(self.names)
        e = lambda: self.expression(depth - 1 - (self.r.random() < 0.3))  # noqa: E731
        kind = self.r.randrange(22)
        if kind < 3:
            return "%s %s %s" % (e(), self.r.choice(["+", "-", "*", "/", "//", "%", "~", "~", "+"]), e())
        if kind == 3:
            return "(%s) ** %s" % (e(), self.r.choice(["2", "0", "3", "0.5", "-1"]))
        if kind == 4:
            return "%s %s %s" % (e(), self.r.choice(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]), e())
        if kind == 5:
            return "%s %s %s" % (e(), self.r.choice(["and", "or"]), e())
        if kind == 6:
            return "%s %s" % (self.r.choice(["not", "-", "+"]), e())
        if kind == 7:
            return "(%s if %s else %s)" % (e(), e(), e())
        if kind == 8:
            return "(%s if %s)" % (e(), e())
        if kind == 9:
            return "[%s]" % ", ".join(e() for _ in range(self.r.randrange(4)))
        if kind == 10:
            return "{%s}" % ", ".join("%s: %s" % (quoted(self.r.choice(["a", "b", "role"]), self.r), e()) for _ in range(self.r.randrange(3)))
        if kind == 11:
            return "(%s, %s)" % (e(), e())
        if kind == 12:
            return "(%s).%s" % (e(), self.r.choice(ATTRIBUTES))
        if kind == 13:
            return "(%s)[%s]" % (e(), self.r.choice(["0", "1", "-1", "'role'", "'b'", "'items'", e()]))
        if kind == 14:
            return "(%s)[%s:%s%s]" % (e(), self.r.choice(["", "1", "-2", "9"]), self.r.choice(["", "2", "-1"]),
                                      self.r.choice(["", "", ":2", ":-1", ":"]))
        if kind == 15:
            return "(%s).%s" % (e(), self.r.choice(METHODS))
        if kind in (16, 17, 18):
            filter_ = self.r.choice(FILTERS)
            # Python's generators do nothing until they are walked, ours at once: walk them.
            lazy = filter_.split("(")[0] in ("map", "select", "reject", "selectattr", "rejectattr", "unique", "items", "reverse")
            return "%s|%s%s" % (self.atom(depth), filter_, "|list" if lazy else "")
        if kind == 19:
            return "%s is %s%s" % (self.atom(depth), self.r.choice(["", "not "]), self.r.choice(TESTS))
        if kind == 20:
            return "range(%s)" % self.r.choice(["3", "1, 4", "5, 0, -2", "n", "0"])
        return "(%s)" % e()

    def atom(self, depth):
        return self.r.choice(self.names) if self.r.random() < 0.7 else "(%s)" % self.expression(depth - 1)

    def tag(self, inner, kind="%"):
        left, right = ("{{", "}}") if kind == "{" else ("{%", "%}")
        a = self.r.choice(["", "", "-", "+"] if kind == "%" else ["", "", "-"])
        b = self.r.choice(["", "", "-", "+"] if kind == "%" else ["", "", "-"])
        return "%s%s %s %s%s" % (left, a, inner, b, right)

    def text(self):
        return self.r.choice(["", "", "a", " ", "\n", "  \n", "\n  ", "x\n\n", "\t", " b ", "{", "}", "% ", "\r\n", "ü\u00a0", "{#- c -#}", "{# c #}\n"])

    def statement(self, depth):
        kind = self.r.randrange(12)
        e = lambda: self.expression(self.r.choice([0, 1, 1, 1, 2]))  # noqa: E731
        if depth <= 0 or kind < 4:
            return self.text() + self.tag(e(), "{") + self.text()
        body = lambda: self.body(depth - 1)  # noqa: E731
        if kind < 6:
            out = self.tag("if " + e()) + body()
            if self.r.random() < 0.3:
                out += self.tag("elif " + e()) + body()
            if self.r.random() < 0.5:
                out += self.tag("else") + body()
            return out + self.tag("endif")
        if kind < 8:
            target = self.r.choice(["m", "x", "k, v"])
            outer = list(self.names)
            # Python unpacks when it comes to an element, Lepton before the loop where the loop has a filter.
            over = self.r.choice(["d.items()", "d|dictsort", "[(1, 2)]"] if "," in target else ["messages", "l", "d.items()", "d|dictsort", "range(3)", "s", "missing", "messages[::-1]"])
            self.names = self.names + target.split(", ") + ["loop.index", "loop.last", "loop.previtem", "loop.first", "loop.length", "loop.revindex0"]
            condition = " if " + self.r.choice([target.split(", ")[0], "true", target.split(", ")[0] + " is defined"]) if self.r.random() < 0.3 else ""
            inner = body()
            if self.r.random() < 0.2:
                inner += self.tag("if " + self.r.choice(["loop.index > 1", "loop.first"])) + self.tag(self.r.choice(["break", "continue"])) + self.tag("endif") + body()
            self.names = outer
            out = self.tag("for %s in %s%s" % (target, over, condition)) + inner
            if self.r.random() < 0.2:
                out += self.tag("else") + body()
            return out + self.tag("endfor")
        if kind == 8:
            name = self.r.choice(["v", "w"])
            out = self.tag("set %s = %s" % (name, e()))
            self.names = self.names + [name]
            return out
        if kind == 9:
            return self.tag("set v") + self.text() + self.tag(e(), "{") + self.tag("endset") + "{{ v }}"
        if kind == 10:
            return self.tag("macro g(a, b=%s)" % self.literal()) + self.text() + "{{ a ~ b }}" + self.tag("endmacro") + self.r.choice(
                ["{{ g(1) }}", "{{ g('x', 2) }}", "{{ g(b=3) }}", "{{ g(1, a=2) }}", "{{ g(n)|upper }}", "{{ g(1, 2, 3) }}"])
        return self.tag("set q = namespace(a=%s)" % self.literal()) + self.tag("set q.a = %s" % e()) + "{{ q.a }}"

    def body(self, depth):
        return "".join(self.text() + self.statement(depth) for _ in range(self.r.randrange(1, 3)))

    def template(self):
        return self.text() + self.body(2) + self.text()


def quoted(s, r):
    q = r.choice("'\"")
    return q + s.replace("\\", "\\\\").replace(q, "\\" + q).replace("\n", "\\n").replace("\r", "\\r") + q


def template(seed):
    return Maker(seed).template()
