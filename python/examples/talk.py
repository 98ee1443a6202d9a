"""Streams a text, stops in the middle, and goes on in another process as if it had never stopped.

    python talk.py begin examples/model "And the king said" 100
    python talk.py go_on examples/model 100        as often as you like
"""

import sys

import mamba_cpp

STATE = "talk.state"


def tokenizer_of(folder):
    try:
        return mamba_cpp.Tokenizer.load(folder)
    except OSError:  # no tokenizer.json: the model that comes with the library reads bytes
        return mamba_cpp.Tokenizer.bytes()


def main(what, folder, *rest):
    model = mamba_cpp.LanguageModel.load(folder)
    tokenizer = tokenizer_of(folder)
    if what == "begin":
        generator = mamba_cpp.Generator(model, tokenizer, temperature=0.7, seed=1)
        generator.read(rest[0])
        print(rest[0], end="")
    else:  # nothing is read again
        generator = mamba_cpp.Generator.restore(STATE, model, tokenizer)
    for text in generator.stream(int(rest[-1])):
        print(text, end="", flush=True)
    generator.save(STATE)


main(*sys.argv[1:])
