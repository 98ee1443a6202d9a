// Text to token ids and back.
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/vector.h>

#include <filesystem>

#include <mamba/tokenizer.hpp>

#include "models.hpp"

namespace mamba::python {

std::string_view bytes_in(const char* where, nb::handle text) {
  if (nb::isinstance<nb::bytes>(text)) {
    const auto bytes = nb::borrow<nb::bytes>(text);
    return {bytes.c_str(), bytes.size()};
  }
  if (!nb::isinstance<nb::str>(text)) {
    throw ArgumentError(where, "text", "str or bytes", text_of(text));
  }
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) throw nb::python_error();
  return {data, static_cast<std::size_t>(size)};
}

namespace {

nb::bytes decode(const Tokenizer& tokenizer, nb::handle ids) {
  const std::string bytes = tokenizer.decode(ids_of("Tokenizer.decode", "ids", ids));
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<Tokenizer>(m, "Tokenizer",
                        "Text to token ids and back. Any number of threads may use one at once.")
      .def_static("bytes", &Tokenizer::bytes,
                  "One id for each byte: for models with a vocabulary of 256.")
      .def_static(
          "load",
          [](const std::filesystem::path& path) {
            const nb::gil_scoped_release release;
            return Tokenizer::load(path.string());
          },
          nb::arg("path"),
          "A tokenizer.json with byte-level BPE, or the folder that it lies in. ValueError, naming "
          "file and field, where it is broken or has a part that is not known here.")
      .def_prop_ro("vocab_size", &Tokenizer::vocab_size,
                   "One more than the largest id; a model may have more rows than that.")
      .def(
          "encode",
          [](const Tokenizer& tokenizer, nb::handle text, bool special_tokens) {
            const std::string_view bytes = bytes_in("Tokenizer.encode", text);
            const nb::gil_scoped_release release;
            return tokenizer.encode(bytes, special_tokens);
          },
          nb::arg("text"), nb::arg("special_tokens") = true,
          nb::sig("def encode(self, text: str | mamba_cpp._results.Bytes, special_tokens: bool = "
                  "True) -> "
                  "list[int]"),
          "The ids of a text, as Hugging Face's encode() has them. special_tokens: those that the "
          "file puts before and after a text are there; False for what goes on from an earlier "
          "text.")
      .def(
          "decode",
          [](const Tokenizer& tokenizer, nb::handle ids) {
            return decode(tokenizer, ids).attr("decode")("utf-8", "replace");
          },
          nb::arg("ids"), nb::sig("def decode(self, ids: collections.abc.Sequence[int]) -> str"),
          "The text of the ids; bytes that are no character come out as U+FFFD.")
      .def("decode_bytes", &decode, nb::arg("ids"),
           nb::sig("def decode_bytes(self, ids: collections.abc.Sequence[int]) -> "
                   "mamba_cpp._results.Bytes"),
           "The bytes of the ids. A character of several bytes is whole only when all of its ids "
           "are there.");
}

}  // namespace mamba::python
