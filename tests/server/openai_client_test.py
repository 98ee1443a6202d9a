"""mamba-server with the official client of OpenAI: python openai_client_test.py http://127.0.0.1:PORT"""
import concurrent.futures
import sys

import openai

ADDRESS = sys.argv[1]
client = openai.OpenAI(base_url=ADDRESS + "/v1", api_key="none", max_retries=0)
PROMPT = "And the king said"


def complete(**more):
    return client.completions.create(**{"model": "any", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **more})


def expect(holds, what):
    if not holds:
        sys.exit(f"openai client: {what}")


def refused(kind, **more):
    try:
        complete(**more)
    except kind as error:
        return error
    sys.exit(f"openai client: {more} was not refused with {kind.__name__}")


models = client.models.list()
expect(len(models.data) == 1 and models.data[0].object == "model", "models")
expect(client.models.list().data[0].id, "the model's name")

whole = complete()
text = whole.choices[0].text
expect(len(text) == 24 and whole.choices[0].finish_reason == "length", "a text of 24 bytes")
expect(whole.usage.prompt_tokens == len(PROMPT) and whole.usage.completion_tokens == 24, "usage")
expect(complete().choices[0].text == text, "the same text twice")
expect(complete(prompt=list(PROMPT.encode())).choices[0].text == text, "a prompt of ids")

pieces = list(complete(stream=True, stream_options={"include_usage": True}))
expect("".join(p.choices[0].text for p in pieces if p.choices) == text, "the text of a stream")
expect(pieces[-1].usage.completion_tokens == 24 and not pieces[-1].choices, "the usage of a stream")
expect([p.choices[0].finish_reason for p in pieces if p.choices][-1] == "length", "the end of a stream")

several = complete(prompt=[PROMPT, "In the beginning"], n=2, temperature=0.9, seed=7)
expect([c.index for c in several.choices] == [0, 1, 2, 3], "choices")
one = complete(temperature=0.9, seed=8)
expect(several.choices[1].text == one.choices[0].text, "choice 1 is that of seed + 1")
drawn = {complete(temperature=1.5).choices[0].text for _ in range(3)}
expect(len(drawn) > 1, "texts without a seed differ")

stop = text[10:13]
expect(complete(stop=stop).choices[0].text == text[: text.index(stop)], "a stop string")
expect(complete(stop=["never", stop]).choices[0].finish_reason == "stop", "the reason of a stop")

odds = complete(prompt="In", max_tokens=3, logprobs=2, echo=True).choices[0]
expect(odds.text.startswith("In") and odds.logprobs.tokens[:2] == ["I", "n"], "echo")
expect(odds.logprobs.token_logprobs[0] is None and len(odds.logprobs.top_logprobs[3]) == 2, "logprobs")
expect(odds.logprobs.text_offset == [0, 1, 2, 3, 4], "offsets")

expect(refused(openai.UnprocessableEntityError, temperature=-1).param == "temperature", "the field of an error")
refused(openai.UnprocessableEntityError, prompt=[10**6])
refused(openai.UnprocessableEntityError, extra_body={"top_k": -1})
expect(complete(extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1}).choices[0].text, "other fields")
try:
    client.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hi"}])
    sys.exit("openai client: a chat without a template was answered")
except openai.UnprocessableEntityError as error:
    expect("chat template" in error.message, "why there is no chat")

stream = complete(stream=True, max_tokens=100000)
next(iter(stream))
stream.close()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    texts = list(pool.map(lambda i: complete(stream=False).choices[0].text, range(32)))
expect(texts == [text] * 32, "32 at once")
print("openai", openai.__version__, "gets what it expects")
