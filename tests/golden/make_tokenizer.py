#!/usr/bin/env python3
"""Makes tokenizer/: a small tokenizer.json of the pipeline of GPT-NeoX, and what Hugging Face's tokenizers
library makes of a few thousand strings with it.

    python make_tokenizer.py        needs only `tokenizers`; made with 0.23.3. Seeds are fixed.

tokenizer.json  NFC, byte-level BPE of 700 tokens; added tokens as published (two special ones in front, runs
                of spaces behind), and three whose content is not the same before and after NFC.
encoded.txt     a line per string: its bytes, a tab, its ids. Bytes outside printable ASCII, and the backslash,
                are \\xNN. A string that is not UTF-8 was read as Python reads it with errors="replace".
pipelines.txt   what other pipelines make of some hundred strings each. A line "\\pipeline", a tab, and a JSON object
                begins one: the members that it has in place of those of tokenizer.json. With "ignore_merges" the
                model has that option, and lacks its first 60 merges. Then lines as in encoded.txt.
decoded.txt     a line per list of ids: the ids, a tab, the text (bytes as above). Without the added tokens that
                hold Latin-1 letters after NFC: the library takes those letters for bytes.
"""
import json
import pathlib
import random
import unicodedata

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).resolve().parent / "tokenizer"

SENTENCES = [
    "The state remembers what the sequence has said, and the sequence is long.",
    "A selective state space model reads one token at a time; it's what they'd call recurrent.",
    "We've measured it, you're welcome to measure it again, and I'll wait. I'm sure he'd agree: that's 42.",
    "In 1969, 600000000 people watched; 3.14159 is not 22/7, and 1e-5 isn't zero.",
    "for (int i = 0; i < n; ++i) {\n        sum += x[i] * w[i];\n    }\n    return sum;\n}",
    "def forward(self, x, state=None):\n    \"\"\"One step.\"\"\"\n    return x @ self.weight.T + self.bias\n",
    "#include <vector>\n#include <string>\n\nstatic constexpr int width = 4;\n",
    "Größe, Straße, Äpfel und Öl: schöne Grüße aus Köln, das heißt überall.",
    "L'été où l'élève a mangé la crêpe à côté du château, ça va très bien.",
    "El niño soñó que el pingüino comía piñas mañana por la mañana.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία.",
    "你好，世界。今天天气很好，我们去公园散步吧。",
    "日本語の文章です。カタカナとひらがなと漢字が混ざっています。",
    "안녕하세요 세계. 한국어 문장을 읽습니다.",
    "नमस्ते दुनिया, यह एक वाक्य है।",
    "مرحبا بالعالم، هذه جملة عربية.",
    "שלום עולם, זה משפט בעברית.",
    "สวัสดีชาวโลก นี่คือประโยคภาษาไทย",
    "\U0001f600 \U0001f680\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
]

# One of each kind that the pipeline treats differently; strings are drawn from these.
PIECES = {
    "ascii": list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "digits": list("0123456789") + ["\u0663", "\u0967", "\u00b2", "\u00bd", "\u2163", "\u3007", "\uff15"],
    "signs": list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["\u2026", "\u20ac", "\u3002", "\u00ab", "\u2019"],
    "contractions": ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'v", "'l", "\u2019s"],
    "blanks": [" ", "  ", "   ", "     ", " " * 23, " " * 24, " " * 25, " " * 60, "\t", "\n", "\r\n", "\n\n", " \n",
               "\n    ", "\u00a0", "\u1680", "\u2003", "\u2028", "\u3000", "\u0085", "\x0b", "\x0c", "\u200b", "\u180e"],
    "latin": list("àéîõüßøåæœçñÀÉÎÕÜẞØÅÆŒÇÑ\u0131\u017f\u0149"),
    "marks": ["e\u0301", "E\u0301", "n\u0303", "o\u0302\u0323", "o\u0323\u0302", "a\u030a", "\u0301", "\u0327\u0301", "q\u0307\u0323",
              "\u1e69", "\u1e9b\u0323", "\u212b", "\u2126", "\u0958", "\u0344", "\ufb1d", "\u2adc", "Zoe\u0308", "Zo\u00eb", "<|e\u0301|>", "<|\u00e9|>"],
    "hangul": ["한", "글", "\u1112\u1161\u11ab", "\u1100\u1161", "\uac00\u11a8", "\u1161"],
    "cjk": list("你好世界今天日本語漢字ひらがなカタカナ") + ["\uf900", "\U0002f800", "\U00020000", "\uff76\uff9e"],
    "scripts": list("СъешьбулокΞεσκεπάζωनमस्तेعربيעבריתไทยհայერი"),
    "emoji": ["\U0001f600", "\U0001f680", "\u2764\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd"],
    "odd": ["\x00", "\x01", "\x1b", "\x7f", "\u00ad", "\ufeff", "\ufffd", "\uffff", "\ue000", "\U0010ffff", "\u0378"],
    "added": ["<|endoftext|>", "<|padding|>", "<|endoftext", "endoftext|>", "<|<|padding|>|>"],
    "words": " ".join(SENTENCES).split(),
}
# Not UTF-8: lone and missing continuations, overlong forms, surrogates, beyond the last code point, never-bytes.
INVALID = [b"\x80", b"\xbf\xbf", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\xaf", b"\xed\xa0\x80",
           b"\xed\xbf\xbf", b"\xf0\x80\x80\xaf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe\xfe", b"\xe2a", b"\xf0\x9fa",
           b"\xe2\xe2\x82\xac", b"\xf8\x88\x80\x80\x80"]


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


def sequence(*steps):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def split(behavior, invert=False, **pattern):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def template(before, after):
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<|endoftext|>", "<|padding|>")]
    single = [*special[:before], {"Sequence": {"id": "A", "type_id": 0}}, *special[:after]]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}
                               for id, name in enumerate(("<|endoftext|>", "<|padding|>"))}}


LINES = ["a \nb\n", "a \n", "\n", "ab  \n\n c", " \n \n", "x\ny \nz ", "a\r\n b\t\n", "in the state\nin the\n"]
PIPELINES = [
    sequence({"type": "Punctuation", "behavior": "Contiguous"}, dict(BYTES, use_regex=True),  # Falcon
             {"type": "Digits", "individual_digits": False}, split("Isolated", Regex="[0-9][0-9][0-9]"))
    | {"normalizer": None, "post_processor": None},
    sequence(split("Isolated", Regex=LLAMA_3), BYTES)
    | {"normalizer": None, "ignore_merges": True,
       "post_processor": {"type": "Sequence", "processors": [dict(BYTES, use_regex=True), template(1, 0)]}},
    sequence(split("Isolated", Regex=LLAMA_3.replace("{1,3}", "")), BYTES),  # Qwen
    {"post_processor": template(0, 0)},  # as transformers saves GPT-NeoX
    {"post_processor": template(1, 2)},
    {"pre_tokenizer": dict(BYTES, use_regex=True, add_prefix_space=True), "normalizer": {"type": "Sequence", "normalizers": []}},
    {"pre_tokenizer": BYTES, "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
    sequence({"type": "Digits", "individual_digits": True}, {"type": "Punctuation"}, dict(BYTES, add_prefix_space=True)),
    *[sequence(split(behavior, invert, **pattern), dict(BYTES, add_prefix_space=True))
      for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
      for invert in (False, True) for pattern in ({"String": "e"}, {"Regex": "[aeiou\\-\\s]"})],
    sequence(split("Isolated", Regex=r"^.|\s+$|e$|(?<=\d)[^-a-m\]](?!\w)|\u0061++|x{2,}"),
             split("MergedWithNext", Regex=r"\p{Han}+|\P{Ll}\x{e9}|(?i:the|ss)|(b)*"), BYTES),
]


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<|endoftext|>", "<|padding|>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tokenizer.add_tokens([AddedToken("Zoe\u0308", normalized=True), AddedToken("<|e\u0301|>", normalized=False),
                          AddedToken("\u212b\u212b", normalized=True)])
    return tokenizer


def strings(draw):
    yield b""
    for sentence in SENTENCES:
        yield sentence.encode()
        yield unicodedata.normalize("NFD", sentence).encode()
    for pieces in PIECES.values():
        for piece in pieces:
            for text in (piece, " " + piece, "a" + piece + "b", piece + piece):
                yield text.encode()
    for piece in INVALID:
        for text in (piece, b"a" + piece + b" b", piece + "é".encode(), "世".encode() + piece):
            yield text
    kinds = list(PIECES)
    for _ in range(1500):  # a few kinds at a time, so that runs and borders between kinds both come
        some = draw.sample(kinds, draw.randint(1, 3))
        parts = [draw.choice(PIECES[draw.choice(some)]).encode() for _ in range(draw.randint(1, 8))]
        if draw.random() < 0.1:
            parts.insert(draw.randint(0, len(parts)), draw.choice(INVALID))
        yield b"".join(parts)


def pipelines(made, texts, draw):
    for changes in PIPELINES:
        changed = {key: changes.get(key, value) for key, value in made.items()}
        if changes.get("ignore_merges"):
            changed["model"] = made["model"] | {"ignore_merges": True, "merges": made["model"]["merges"][60:]}
        tokenizer = Tokenizer.from_str(json.dumps(changed))
        yield f"\\pipeline\t{json.dumps(changes, separators=(',', ':'))}\n"
        for text in [line.encode() for line in SENTENCES[::3] + LINES] + draw.sample(texts, 100):
            yield f"{escaped(text)}\t{' '.join(map(str, tokenizer.encode(text.decode(errors='replace')).ids))}\n"


def escaped(text):
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in text)


def main():
    FOLDER.mkdir(exist_ok=True)
    trained = train()
    trained.save(str(FOLDER / "tokenizer.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    draw = random.Random(7)
    lines = []
    texts = list(dict.fromkeys(strings(draw)))
    for text in texts:
        ids = tokenizer.encode(text.decode(errors="replace")).ids
        lines.append(f"{escaped(text)}\t{' '.join(map(str, ids))}\n")
    (FOLDER / "encoded.txt").write_text("".join(lines))
    made = json.loads((FOLDER / "tokenizer.json").read_text())
    (FOLDER / "pipelines.txt").write_text("".join(pipelines(made, texts, random.Random(8))))
    count = tokenizer.get_vocab_size()
    known = [id for id in range(count) if tokenizer.id_to_token(id) not in ("Zoe\u0308", "Zo\u00eb", "\u212b\u212b", "\u00c5\u00c5")]
    lists = [[id] for id in known]
    lists += [[draw.choice(known) for _ in range(draw.randint(2, 12))] for _ in range(300)]
    decoded = (f"{' '.join(map(str, ids))}\t{escaped(tokenizer.decode(ids, skip_special_tokens=False).encode())}\n" for ids in lists)
    (FOLDER / "decoded.txt").write_text("".join(decoded))
    print(f"{len(lines)} strings, {len(lists)} lists of ids, {count} tokens")


if __name__ == "__main__":
    main()
