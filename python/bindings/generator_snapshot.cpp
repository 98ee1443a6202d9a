// Generations as values, files and bytes.
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/shared_ptr.h>

#include <filesystem>
#include <utility>

#include <mamba/generator_snapshot.hpp>

#include "models.hpp"

namespace mamba::python {

namespace {

using Path = std::filesystem::path;

GeneratorSnapshot from_bytes(const nb::bytes& bytes) {
  return GeneratorSnapshot::load(ByteView(bytes.c_str(), bytes.size()));
}

}  // namespace

Source::Source(nb::handle source) {
  if (nb::try_cast(source, snapshot)) return;
  path = nb::cast<Path>(source).string();
}

void bind_snapshots(nb::module_& m) {
  nb::class_<GeneratorSnapshot>(
      m, "GeneratorSnapshot",
      "Everything with which a text goes on token for token. Constant once made; it needs neither "
      "the generator nor its pool any more, and can be pickled.")
      .def("clone", &GeneratorSnapshot::clone, "The same value once more; the two share memory.")
      .def(
          "to",
          [](const GeneratorSnapshot& snapshot, nb::handle device) {
            const Device where = device_of(device);
            const nb::gil_scoped_release release;
            return snapshot.to(where);
          },
          nb::arg("device"), "With its tensors in the memory of another device.")
      .def(
          "save",
          [](const GeneratorSnapshot& snapshot, const Path& path) {
            const nb::gil_scoped_release release;
            snapshot.save(path.string());
          },
          nb::arg("path"), "A state file, written whole or not at all.")
      .def(
          "save", [](const GeneratorSnapshot& snapshot) { return bytes_of(snapshot.save()); },
          "The bytes of that file.")
      .def_static("load", &from_bytes, nb::arg("bytes"))
      .def_static(
          "load",
          [](const Path& path) {
            const nb::gil_scoped_release release;
            return GeneratorSnapshot::load(path.string());
          },
          nb::arg("path"), "What save() wrote; else, ValueError.")
      .def("__getstate__",
           [](const GeneratorSnapshot& snapshot) { return bytes_of(snapshot.save()); })
      .def("__setstate__",
           [](GeneratorSnapshot& snapshot, const nb::bytes& bytes) {
             new (&snapshot) GeneratorSnapshot(from_bytes(bytes));
           })
      .def_prop_ro(
          "options", [](const GeneratorSnapshot& snapshot) { return dict_of(snapshot.options()); },
          nb::sig("def options(self) -> dict[str, typing.Any]"))
      .def_prop_ro("tokens_seen", &GeneratorSnapshot::tokens_seen, "Read and generated.")
      .def_prop_ro(
          "state", [](const GeneratorSnapshot& snapshot) { return snapshot.state().clone(); },
          "Of one row, after all tokens; a copy.")
      .def_prop_ro(
          "logits",
          [](const GeneratorSnapshot& snapshot) {
            return shared_array(snapshot.logits().to(Device::cpu()));
          },
          "f32 [1, vocab_size] for the next token; a copy.")
      .def_prop_ro("fingerprint", &GeneratorSnapshot::fingerprint, "Of the model.")
      .def_prop_ro("device",
                   [](const GeneratorSnapshot& snapshot) { return snapshot.device().name(); })
      .def_prop_ro("nbytes", &GeneratorSnapshot::bytes, "Of memory, that of the host included.");
}

}  // namespace mamba::python
