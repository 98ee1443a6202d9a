// States as files and as bytes.
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/vector.h>

#include <filesystem>
#include <utility>

#include <mamba/state_file.hpp>

#include "models.hpp"

namespace mamba::python {

namespace {

using Path = std::filesystem::path;

// Arrays of the caller's that are saved beside a state, and must live meanwhile.
struct Extras {
  std::vector<Operand> arrays;
  StateExtras views;
};

Extras extras_of(const char* where, nb::handle extras) {
  Extras all;
  if (extras.is_none()) return all;
  for (const auto [name, array] : nb::cast<nb::dict>(extras)) {
    all.arrays.emplace_back(where, "extras", array);
    all.views[nb::cast<std::string>(name)] = all.arrays.back().view();
  }
  return all;
}

nb::dict arrays_of(std::map<std::string, Tensor>& tensors) {
  nb::dict all;
  for (auto& [name, tensor] : tensors) all[name.c_str()] = shared_array(std::move(tensor));
  return all;
}

struct FileArguments {
  StateMetadata metadata;
  Extras extras;
  FileArguments(nb::handle given) {
    constexpr const char* where = "save_state";
    Keywords keywords(where, given);
    keywords.take("fingerprint", metadata.fingerprint, "text");
    keywords.take("tokens_seen", metadata.tokens_seen, "a list of whole numbers");
    keywords.take("notes", metadata.notes, "a dict of text");
    if (const nb::object arrays = keywords.take("extras"); arrays.is_valid()) {
      extras = extras_of(where, arrays);
    }
    keywords.finish();
  }
};

template <class State>
void save_file(const Path& path, const State& state, const nb::kwargs& given) {
  const FileArguments arguments(given);
  const nb::gil_scoped_release release;
  save(path.string(), state, arguments.metadata, arguments.extras.views);
}

template <class State>
nb::bytes save_bytes(const State& state, const nb::kwargs& given) {
  const FileArguments arguments(given);
  return bytes_of(save(state, arguments.metadata, arguments.extras.views));
}

nb::object saved(SavedState loaded) {
  const nb::object type = nb::module_::import_("mamba_cpp._results").attr("SavedState");
  nb::dict extras = arrays_of(loaded.extras);
  return type(nb::cast(std::move(loaded.state)), loaded.metadata.fingerprint,
              loaded.metadata.tokens_seen, loaded.metadata.notes, extras);
}

}  // namespace

nb::bytes bytes_of(const Bytes& bytes) { return nb::bytes(bytes.data(), bytes.size()); }

void bind_state_files(nb::module_& m) {
  constexpr const char* file_doc =
      "Writes a state file, whole or not at all.\n\n"
      "fingerprint: of the model (LanguageModel.fingerprint()), \"\" ties it to none. tokens_seen: "
      "for each row. notes: a dict of text. extras: arrays by name, saved beside the state.";
  constexpr const char* bytes_doc = "The bytes of such a file.";
  m.def("save_state", &save_file<StackState>, nb::arg("path"), nb::arg("state"), nb::arg("options"),
        file_doc);
  m.def("save_state", &save_file<MambaState>, nb::arg("path"), nb::arg("state"), nb::arg("options"),
        file_doc);
  m.def("save_state", &save_bytes<StackState>, nb::arg("state"), nb::arg("options"), bytes_doc);
  m.def("save_state", &save_bytes<MambaState>, nb::arg("state"), nb::arg("options"), bytes_doc);
  m.def(
      "load_state",
      [](const nb::bytes& bytes, nb::handle device, const std::string& name) {
        return saved(load_state(ByteView(bytes.c_str(), bytes.size()), device_of(device), name));
      },
      nb::arg("bytes"), nb::arg("device") = "cpu", nb::arg("name") = "bytes",
      "From the bytes of a state file; `name` stands for the path in errors.");
  m.def(
      "load_state",
      [](const Path& path, nb::handle device) {
        const Device where = device_of(device);
        SavedState loaded;
        {
          const nb::gil_scoped_release release;
          loaded = load_state(path.string(), where);
        }
        return saved(std::move(loaded));
      },
      nb::arg("path"), nb::arg("device") = "cpu",
      "A state file as SavedState. ValueError where it is none, cut short or inconsistent.");
}

}  // namespace mamba::python
