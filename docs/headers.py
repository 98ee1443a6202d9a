"""`.. header:: NAME.hpp`: what Doxygen read in a public header, in the header's own order.

Overloads that share a comment there share it here. Left out: what is private, deleted or a friend, and namespace detail.
"""
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles


def escaped(text):
    text = re.sub(r"([\\*`|_])", r"\\\1", re.sub(r"\s+", " ", text))
    return re.sub(r"^([-+•]|\w+[.)]) ", r"\\\1 ", text)


def inline(element):
    """The text of a paragraph as reStructuredText."""
    out = [escaped(element.text or "")]
    for child in element:
        text = "".join(child.itertext()).strip()
        if child.tag == "ref" and child.get("kindref") == "compound" and not text.endswith(".hpp"):
            name = re.sub("^(class|struct)", "", child.get("refid")).replace("_1_1", "::").replace("__", "_")
            out.append(rf"\ :cpp:any:`{text} <{name}>`\ ")
        elif child.tag in ("computeroutput", "ref"):
            out.append(rf"\ ``{text}``\ ")
        else:
            out.append(escaped(text))
        out.append(escaped(child.tail or ""))
    return "".join(out).strip()


def description(element):
    """The lines of a comment as reStructuredText."""
    lines = []
    for para in element.findall("detaileddescription/para"):
        # A block within a paragraph parts it.
        part = ET.Element("para")
        part.text = para.text
        for child in para:
            if child.tag != "verbatim":
                part.append(child)
                continue
            lines += [inline(part), "", ".. code-block:: none", ""]
            lines += ["   " + line for line in child.text.strip("\n").split("\n")] + [""]
            part = ET.Element("para")
            part.text = child.tail
        lines += [inline(part), ""]
    return lines if any(lines) else []


def text(element, tag):
    found = element.find(tag)
    return "" if found is None else re.sub(r"\s+", " ", "".join(found.itertext())).strip()


def template(element):
    if element.find("templateparamlist") is None:
        return ""
    params = [" ".join(filter(None, [text(p, "type"), text(p, "declname")]))
              + (f" = {text(p, 'defval')}" if p.find("defval") is not None else "")
              for p in element.findall("templateparamlist/param")]
    return f"template<{', '.join(params)}> "


def member(m):
    """(directive, signature) of a member of a class or namespace; None: it is left out."""
    kind, name, args = m.get("kind"), text(m, "name"), text(m, "argsstring")
    if m.get("prot") != "public" or kind == "friend" or "delete" in args.split(")")[-1]:
        return None
    words = [word for word in ("static", "explicit") if m.get(word) == "yes"]
    declared = " ".join(filter(None, [*words, text(m, "type"), name])).replace("(* ", "(*")
    if kind == "function":
        return "function", template(m) + declared + args
    if kind == "typedef":
        return "type", f"{template(m)}{name} = {text(m, 'type')}"
    if kind == "enum":
        return "enum-class" if m.get("strong") == "yes" else "enum", name
    value = text(m, "initializer")
    return "member", declared + args + (f" {value}" if len(value) < 60 and "{" not in value else "")


def order(element):
    return int(element.find("location").get("line"))


def joins(element, group):
    """Whether a member stands under the comment of the overloads before it."""
    same = all(e.tag == "memberdef" and e.get("kind") == "function" for e in (element, group[-1]))
    return same and text(element, "name") == text(group[-1], "name") and not description(element)


def indented(lines):
    return ["   " + line if line else "" for line in lines]


class Header(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        file = self.compound(name.replace("_", "__").replace(".", "_8"))
        self.file = file.find("location").get("file")
        lines = [".. cpp:namespace:: mamba", "", *description(file), f"``#include <{self.file}>``", ""]
        for space, elements in self.namespaces(file).items():
            lines += [f".. cpp:namespace:: {space}", "", *self.declarations(elements)]
        section = nodes.section(ids=[nodes.make_id(name)])
        section += nodes.title(text=name)
        section.document = self.state.document
        nested_parse_with_titles(self.state, StringList(lines, source=name), section)
        return [section]

    def compound(self, refid):
        return ET.parse(Path(self.config.doxygen_xml) / f"{refid}.xml").getroot().find("compounddef")

    def inner(self, element, tag):
        """The compounds that `element` names as within it, by name."""
        named = {e.text: e.get("refid") for e in element.findall(tag) if e.get("prot") in (None, "public")}
        return {name: self.compound(refid) for name, refid in named.items()}

    def namespaces(self, file):
        """{namespace: what this header declares in it}."""
        found = {}
        for space, element in self.inner(file, "innernamespace").items():
            members = element.iter("memberdef")
            found[space] = [m for m in members if m.find("location").get("file") == self.file]
        for name, element in self.inner(file, "innerclass").items():
            found.setdefault(name.rpartition("::")[0], []).append(element)
        # A class within a class stands there, not in a namespace.
        spaces = [s for s in found if re.fullmatch(r"mamba(::(?!detail)[a-z]+)*", s)]
        return {space: found[space] for space in spaces}

    def declarations(self, elements):
        groups = []
        for element in sorted(elements, key=order):
            if element.tag == "memberdef" and member(element) is None:
                continue
            if groups and joins(element, groups[-1]):
                groups[-1].append(element)
            else:
                groups.append([element])
        return [line for group in groups for line in self.declaration(group)]

    def declaration(self, group):
        if group[0].tag == "compounddef":
            return self.class_of(group[0])
        directive, _ = member(group[0])
        signatures = [signature for _, signature in map(member, group)]
        body = description(group[0])
        for value in group[0].findall("enumvalue"):
            body += [f".. cpp:enumerator:: {text(value, 'name')}", "", *indented(description(value))]
        return [f".. cpp:{directive}:: {signatures[0]}", *indented(signatures[1:]), "", *indented(body), ""]

    def class_of(self, element):
        name = text(element, "compoundname").rpartition("::")[2]
        bases = [f"public {''.join(b.itertext()).replace('mamba::', '')}" for b in element.findall("basecompoundref")]
        inner = list(element.iter("memberdef")) + list(self.inner(element, "innerclass").values())
        signature = template(element) + " : ".join(filter(None, [name, ", ".join(bases)]))
        body = description(element) + self.declarations(inner)
        return [f".. cpp:{element.get('kind')}:: {signature}", "", *indented(body), ""]


def setup(app):
    app.add_config_value("doxygen_xml", None, "env")
    app.add_directive("header", Header)
    return {"parallel_read_safe": True}
