#!/usr/bin/python3
"""Writes the seeds of fuzz_openai: the byte that chooses the route, then a body."""
import json
import os

WHERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds/fuzz_openai")
COMPLETION = dict(model="m", prompt="Once\u0000 \U0001f642", max_tokens=7, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, n=2,
                  stop=["x", "\u00e9"], seed=1, stream=True, stream_options=dict(include_usage=True), logprobs=2,
                  logit_bias={"5": -100, "17": 2.5}, presence_penalty=1, frequency_penalty=-1.0, repetition_penalty=1.1,
                  ignore_eos=False, no_bos=True, special=True, speculation="off", draft_tokens=3, cache_salt="s", priority=10,
                  deadline_ms=5000, request_id="mine", service_tier="flex", user="u", metadata={"a": [1, None]}, echo=False,
                  suffix=None, best_of=1)
CHAT = dict(messages=[dict(role="system", content="Be brief."),
                      dict(role="user", content=[dict(type="text", text="a"), dict(type="text", text="b")], name="n")],
            max_completion_tokens=4, logprobs=True, top_logprobs=3, stop="x", tools=[], tool_choice="none",
            response_format=dict(type="text"), parallel_tool_calls=True)
SEEDS = {"completion": (0, json.dumps(COMPLETION)), "chat": (1, json.dumps(CHAT)),
         "escapes": (0, r'{"prompt":"\ud83d\ude42\u0000\n\\\"\/","max_tokens":1e0,"temperature":1E-2}'),
         "small": (0, '{"prompt":"x"}'), "deep": (0, '{"metadata":' + "[" * 31 + "]" * 31 + ',"prompt":""}'),
         "twice": (0, '{"prompt":"x","prompt":"y"}'), "huge": (0, '{"prompt":"x","seed":1e400,"n":-99999999999999999999}')}

if __name__ == "__main__":
    os.makedirs(WHERE, exist_ok=True)
    for name, (route, text) in SEEDS.items():
        with open(os.path.join(WHERE, name + ".bin"), "wb") as f:
            f.write(bytes([route]) + text.encode())
