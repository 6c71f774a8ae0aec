"""The conversations over which every template of this folder is rendered: (name, variables)."""

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city, \"now\" & later", "parameters": {
        "type": "object", "properties": {
            "city": {"type": "string", "description": "The city, e.g. Zürich"},
            "days": {"type": ["integer", "null"], "description": "How many <days>"},
            "units": {"type": "string", "enum": ["C", "F"]},
            "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["city"]}}}
TIME = {"type": "function", "function": {
    "name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, ident="abcdef123"):
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def tool(content, **more):
    return {"role": "tool", "content": content, "tool_call_id": "abcdef123", **more}


HELLO = [user("Hello"), assistant("Hi there!"), user("How are you?")]
WITH_TOOL = [user("Weather in Zürich?"), assistant(None, tool_calls=[call("get_weather", {"city": "Zürich", "days": 2})]),
             tool('{"t": 21.5}'), assistant("It is 21.5 degrees."), user("And the time?")]

CONVERSATIONS = [
    ("single", {"messages": [user("What is 2 + 2?")]}),
    ("single without prompt", {"messages": [user("What is 2 + 2?")], "add_generation_prompt": False}),
    ("several turns", {"messages": HELLO}),
    ("ends with the assistant", {"messages": HELLO[:2], "add_generation_prompt": False}),
    ("system", {"messages": [system("Be brief.")] + HELLO}),
    ("system alone", {"messages": [system("Be brief.")]}),
    ("system in the middle", {"messages": HELLO[:2] + [system("Now in French.")] + HELLO[2:]}),
    ("white space", {"messages": [system("  a\n"), user("\n  b \t\n"), assistant("\u00a0c\u2003"), user(" d ")]}),
    ("unicode and quotes", {"messages": [user("\"quoted\" 'single' \\back ünïcödé 日本語 🙂 <b>&amp;</b> {{ x }} {% y %}\nline"),
                                         assistant("'\"\u0007\u00ad"), user("")]}),
    ("tools", {"messages": [user("Weather?")], "tools": [WEATHER, TIME]}),
    ("tools and system", {"messages": [system("Use tools."), user("Weather?")], "tools": [WEATHER]}),
    ("tool call and result", {"messages": WITH_TOOL, "tools": [WEATHER, TIME]}),
    ("ends with a tool result", {"messages": WITH_TOOL[:3], "tools": [WEATHER]}),
    ("two calls", {"messages": [user("Both?"), assistant("", tool_calls=[
        call("get_weather", {"city": "Paris"}), call("get_time", {}, "123456789")]), tool("1"), tool("2"), user("?")],
        "tools": [WEATHER, TIME]}),
    ("short call id", {"messages": [user("?"), assistant("", tool_calls=[call("f", {"a": [1, 2.5, None, True]}, "x")]),
                                    tool("r")], "tools": [TIME]}),
    ("no alternation", {"messages": [user("a"), user("b")]}),
    ("begins with the assistant", {"messages": [assistant("a"), user("b")]}),
    ("unknown role", {"messages": [user("a"), {"role": "wizard", "content": "b"}]}),
    ("missing content", {"messages": [user("a"), {"role": "assistant"}, user("b")]}),
    ("content none", {"messages": [user("a"), assistant(None), user("b")]}),
    ("content of parts", {"messages": [user([{"type": "text", "text": "look "}, {"type": "image"}])]}),
    ("no messages", {"messages": []}),
    ("thinking", {"messages": [user("1+1?"), assistant("<think>\nadd them\n</think>\n\n2"), user("sure?")]}),
    ("thinking off", {"messages": [system("/no_think Be kind."), user("1+1?")], "enable_thinking": False}),
    ("reasoning given", {"messages": [user("a"), assistant("b", reasoning_content="r"), tool("x")]}),
    ("built-in tools", {"messages": [user("a")], "builtin_tools": ["brave_search", "code_interpreter"]}),
    ("tools in the system message", {"messages": [system("s"), user("a")], "tools": [TIME],
                                     "tools_in_user_message": False}),
    ("other tokens", {"messages": HELLO, "bos_token": "<bos>", "eos_token": ""}),
]
