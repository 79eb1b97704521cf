"""The official OpenAI package against a running cluster.

It is used as anyone uses it: everything it needs is in the environment that
.mrgc/env sets (OPENAI_BASE_URL, OPENAI_API_KEY, MRGC_MODEL). Each check names
itself; the first that fails ends the run with an exception.

The model is tiny and samples, so nothing is asserted about what it says; where
a check needs an answer of some length, it forbids the model to end (NEVER_END).
"""

import json
import os

import openai

MODEL = os.environ["MRGC_MODEL"]
NEVER_END = {"0": -100, "2": -100}  # as logit_bias: SmolLM2's <|endoftext|> and <|im_end|>
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "url": {"type": "string", "default": "http://example.com"}},
            "required": ["city"],
        },
    },
}

client = openai.OpenAI(max_retries=0, timeout=120)


def say(text):
    return [{"role": "user", "content": text}]


def check(name, condition, detail=None):
    if not condition:
        raise AssertionError(f"{name}: {detail!r}")
    print("ok", name, flush=True)


def refused(name, status, code, call):
    try:
        call()
    except openai.APIStatusError as error:
        check(name, (error.status_code, error.code) == (status, code), (error.status_code, error.code, error.message))
        return
    raise AssertionError(f"{name}: was not refused")


models = [model.id for model in client.models.list()]
check("models are listed", MODEL in models, models)

answer = client.chat.completions.create(model=MODEL, messages=say("Say hello."), max_tokens=16, logit_bias=NEVER_END)
check("a chat completion", answer.choices[0].message.content and answer.model == MODEL, answer)
check("its usage", answer.usage.completion_tokens > 0 and answer.usage.prompt_tokens > 0, answer.usage)

pieces, usage, finished = [], None, None
stream = client.chat.completions.create(
    model=MODEL, messages=say("Count to ten."), max_tokens=24, logit_bias=NEVER_END,
    stream=True, stream_options={"include_usage": True},
)
for event in stream:
    for choice in event.choices:
        pieces.append(choice.delta.content or "")
        finished = choice.finish_reason or finished
    usage = event.usage or usage
check("a streamed chat completion comes in pieces", len(pieces) > 5 and "".join(pieces).strip(), pieces)
check("it ends with a reason and its usage", finished in ("stop", "length") and usage.completion_tokens > 0, (finished, usage))

answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, logit_bias=NEVER_END)
check("a completion", answer.choices[0].text, answer)
stream = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, logit_bias=NEVER_END, stream=True)
texts = [event.choices[0].text for event in stream]
check("a streamed completion", len(texts) > 1, texts)

answer = client.chat.completions.create(
    model=MODEL, messages=say("What is the weather in Paris?"), max_tokens=200, temperature=0, seed=1,
    tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}},
)
check("tools reach the engine", answer.choices[0].finish_reason in ("tool_calls", "stop", "length"), answer)

answer = client.chat.completions.create(
    model=MODEL, messages=say("Give me a person as JSON."), max_tokens=200, temperature=0, seed=1,
    response_format={
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["age"],
                "additionalProperties": False,
            },
        },
    },
)
check("JSON mode shapes the answer", set(json.loads(answer.choices[0].message.content)) == {"age"}, answer)

long_prompt = "word " * 1500
answer = client.chat.completions.create(model=MODEL, messages=say(long_prompt), max_tokens=1)
check("a long prompt", answer.usage.prompt_tokens > 1500, answer.usage)

refused("an unknown model", 404, "model_not_found", lambda: client.chat.completions.create(model="none", messages=say("x")))
refused(
    "an unknown field", 400, "unknown_field",
    lambda: client.chat.completions.create(model=MODEL, messages=say("x"), extra_body={"cache_prompt": True}),
)
refused(
    "a remote URL", 400, "invalid_request",
    lambda: client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
    ),
)
refused("an operation that is not offered", 404, "unsupported_operation", lambda: client.embeddings.create(model=MODEL, input="x"))
stranger = client.with_options(api_key="mrgc-dev-" + "A" * 43)
refused("another key", 401, "invalid_api_key", lambda: stranger.chat.completions.create(model=MODEL, messages=say("x")))
refused("no key of ours", 401, "invalid_api_key", lambda: client.with_options(api_key="sk-other").models.list())

# By these ids the operator finds what the tenant has sent: the spec runs `mrgc explain` with each.
answer = client.chat.completions.create(model=MODEL, messages=say("Say hello."), max_tokens=1)
stream = client.chat.completions.create(model=MODEL, messages=say("Say hello."), max_tokens=1, stream=True)
for event in stream:
    pass
try:
    client.chat.completions.create(model=MODEL, messages=say("x"), extra_body={"cache_prompt": True})
except openai.BadRequestError as error:
    failed = error
ids = {"answer": answer._request_id, "stream": stream.response.headers.get("x-request-id"), "error": failed.request_id}
check("each says its request's id", all(ids.values()) and len(set(ids.values())) == len(ids), ids)
for of, request_id in ids.items():
    print("explain", of, request_id, flush=True)

print("all checks passed")
