#!/usr/bin/env python3
"""Doxygen's INPUT_FILTER: prints a header with its plain // comments in Doxygen's form.

  doxygen_comments.py HEADER

A comment before the first line of code describes the file, one right above a declaration or behind it that declaration; those
in bodies of functions stay as they are. Paragraphs are prose, in which nothing is a command of Doxygen but what stands in
backticks is code; lines that are indented (formulas, examples, lists) keep their form.
"""
import re
import sys
import textwrap

SCOPE = re.compile(r"(?:enum\s+class|enum|class|struct|union|namespace)\b")


def prose(lines):
    text = " ".join(line.strip() for line in lines)
    text = re.sub(r"([\\@&$#<>%])", r"\\\1", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def markup(lines):
    """The lines of a comment, without their slashes, as what Doxygen reads."""
    out, group, indented = [], [], None

    def flush():
        while group and not group[-1].strip():
            group.pop()
        if group and indented:
            out.extend(["@verbatim", *textwrap.dedent("\n".join(group)).split("\n"), "@endverbatim"])
        elif group:
            out.extend([prose(group), ""])
        group.clear()

    for line in lines:
        blank = not line.strip()
        kind = indented if blank else line.startswith("   ")
        if kind != indented or (blank and not indented):
            flush()
        indented = kind
        if not blank or group:
            group.append(line)
    flush()
    return out


def comment_start(line):
    """Where the // of a line begins, -1 if it has none. Literals are passed over."""
    for match in re.finditer(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|//', line):
        if match.group() == "//":
            return match.start()
    return -1


def block(opening, lines):
    return [opening, *(line.replace("*/", "* /") for line in lines), "*/"]


class Scopes:
    """Whether the code read so far ends where declarations stand, or within a function or an initialiser."""

    def __init__(self):
        self.stack, self.statement = [], ""

    def read(self, code):
        for character in re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'', "0", code) + " ":
            if character == "{":
                statement = re.sub(r"template\s*<[^{}]*?>(?=\s*\w)", "", self.statement)
                statement = re.sub(r"\b(?:public|private|protected)\s*:", "", statement).strip()
                self.stack.append(bool(SCOPE.match(statement)))
                self.statement = ""
            elif character == "}":
                self.stack.pop()
                self.statement = ""
            elif character == ";":
                self.statement = ""
            else:
                self.statement += character

    def declares(self):
        return all(self.stack)


def converted(lines):
    scopes, seen_code, i = Scopes(), False, 0
    while i < len(lines):
        line = lines[i]
        start = comment_start(line)
        if start < 0 or line.startswith("#"):
            seen_code = seen_code or bool(line.strip())
            if not line.startswith("#"):
                scopes.read(line)
            yield line
            i += 1
            continue
        # A block of comment lines, or a comment behind code with the lines that go on with it below.
        code = line[:start]
        end = i + 1
        while end < len(lines) and re.fullmatch(" " * start + "//.*", lines[end]):
            end += 1
        text = [one[start + 2:] for one in lines[i:end]]
        scopes.read(code)
        if code.strip():
            yield code.rstrip()
            if scopes.declares() and code.strip() != "}":
                yield from block("/**<", markup(text))
        elif not seen_code:
            yield from block("/** @file", markup(text))
            seen_code = True
        elif scopes.declares() and end < len(lines) and lines[end].strip():
            yield from block("/**", markup(text))
        i = end


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        print("\n".join(converted(file.read().splitlines())))


if __name__ == "__main__":
    main()
