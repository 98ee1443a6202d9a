"""`.. python-package::`: the names in the __all__ of each module of the package, from its sources and its stub.

Nothing is imported: neither the compiled part nor PyTorch has to be there. The stub, _core.pyi, is made when the package is built;
without one, what is in it is only named.
"""
import ast
import inspect
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

from headers import escaped, indented


def documentation(text):
    """A docstring as reStructuredText: prose; lines in columns or with an indent stay as they are."""
    lines = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if re.search(r"^ |\S {2,}\S", paragraph, re.MULTILINE):
            lines += [".. code-block:: none", "", *indented(paragraph.split("\n")), ""]
        else:
            parts = re.split(r"`([^`]+)`", paragraph)
            parts[1::2] = [rf"\ ``{code}``\ " for code in parts[1::2]]
            parts[0::2] = [escaped(prose) for prose in parts[0::2]]
            lines += ["".join(parts), ""]
    return lines


def decorators(function):
    return [getattr(decorator, "id", "") for decorator in function.decorator_list]


def signature(function, method):
    arguments = function.args
    if method and "staticmethod" not in decorators(function):
        (arguments.posonlyargs or arguments.args).pop(0)  # self
    returned = f" -> {ast.unparse(function.returns)}" if function.returns and function.name != "__init__" else ""
    return f"({ast.unparse(arguments)}){returned}"


def entry(group, method=False):
    """A class, or the overloads of a function, as reStructuredText."""
    first = group[0]
    if isinstance(first, ast.ClassDef):
        return class_entry(first)
    text = next(filter(None, map(ast.get_docstring, group)), "")
    if "property" in decorators(first):
        return attribute(first.name, first.returns, text)
    heads = [first.name + signature(one, method) for one in group]
    options = [f":{d}:" for d in decorators(first) if d in ("staticmethod", "classmethod")]
    return [f".. py:{'method' if method else 'function'}:: {heads[0]}", *indented(heads[1:] + options), "",
            *indented(documentation(text)), ""]


def attribute(name, kind, text):
    return [f".. py:attribute:: {name}", *([f"   :type: {ast.unparse(kind)}"] if kind else []), "",
            *indented(documentation(text)), ""]


def class_entry(node):
    text, inside, methods, starts = documentation(ast.get_docstring(node)), [], {}, []
    for one, following in zip(node.body, [*node.body[1:], None]):
        if isinstance(one, ast.AnnAssign) and not one.target.id.startswith("_"):
            # The text of a field stands below it.
            described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            inside += attribute(one.target.id, one.annotation, following.value.value if described else "")
        elif isinstance(one, ast.FunctionDef) and one.name == "__init__":
            starts.append(one)
            text += documentation(ast.get_docstring(one))
        elif isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            methods.setdefault(one.name, []).append(one)
    for group in methods.values():
        inside += entry(group, method=True)
    heads = [node.name + signature(start, True) for start in starts] or [node.name]
    return [f".. py:class:: {heads[0]}", *indented(heads[1:]), "", *indented(text + inside), ""]


class PythonPackage(SphinxDirective):
    def run(self):
        self.root = Path(self.config.python_package)
        inside = [path.stem for path in sorted(self.root.iterdir())
                  if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())]
        modules = [self.root.name, *(f"{self.root.name}.{name}" for name in inside)]
        sections, shown = [], {}
        for module in modules:
            names = self.public_names(module)
            if names.items() <= shown.items():
                continue  # another module hands all of them on
            shown.update(names)
            section = nodes.section(ids=[nodes.make_id(module)])
            section += nodes.title(text=module)
            section.document = self.state.document
            nested_parse_with_titles(self.state, StringList(self.lines(module, names), source=module), section)
            sections.append(section)
        return sections

    def lines(self, module, names):
        """A module as reStructuredText."""
        docstring = ast.get_docstring(ast.parse(self.file_of(module).read_text()))
        lines, missing = [*documentation(docstring), f".. py:currentmodule:: {module}", ""], []
        for name, file in names.items():
            if file.name == "_core.py":
                file = Path(self.config.python_stub or file)
            if not file.exists():
                missing.append(f"``{name}``")
                continue
            found = [one for one in ast.parse(file.read_text()).body if getattr(one, "name", "") == name]
            if not found:
                raise self.error(f"{module}: {file} has no {name}")
            lines += entry(found)
        if missing:
            lines += [f"The package was not built beside this page. Not shown: {', '.join(missing)}.", ""]
        return lines

    def file_of(self, module):
        place = self.root.joinpath(*module.split(".")[1:])
        return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")

    def public_names(self, module):
        """{name in __all__: the file that has it}."""
        file, imported, names = self.file_of(module), {}, {}
        for one in ast.parse(file.read_text()).body:
            if isinstance(one, ast.ImportFrom) and one.level == 1 and one.module:
                imported.update({alias.name: file.parent / f"{one.module}.py" for alias in one.names})
            elif isinstance(one, ast.Assign) and one.targets[0].id == "__all__":
                for element in one.value.elts:
                    if isinstance(element, ast.Starred):  # *models.__all__
                        names.update(self.public_names(f"{module}.{element.value.value.id}"))
                    elif not element.value.startswith("__"):
                        names[element.value] = imported.get(element.value, file)
        return names


def setup(app):
    app.add_config_value("python_package", None, "env")
    app.add_config_value("python_stub", "", "env")
    app.add_directive("python-package", PythonPackage)
    return {"parallel_read_safe": True}
