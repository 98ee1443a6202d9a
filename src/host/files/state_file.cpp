#include <mamba/state_file.hpp>

#include <fmt/format.h>

#include <charconv>
#include <iterator>
#include <set>

#include <mamba/check.hpp>
#include <mamba/safetensors.hpp>

#include "host/core/json.hpp"
#include "host/files/state_names.hpp"

namespace mamba {
namespace {

constexpr const char* where = "save";
constexpr const char* format_name = "mamba.cpp state";
constexpr std::int64_t version = 1;
constexpr const char* note_prefix = "note.";
constexpr std::int64_t per_layer = std::size(state_tensors);
constexpr const char* words[] = {"no", "one", "two", "three", "four"};

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// ---- saving -----------------------------------------------------------------------------------

using Layers = std::vector<const MambaState*>;

void check_layers(const Layers& layers) {
  if (layers.empty()) throw ArgumentError(where, "state", "at least one layer", "none");
  const MambaState& first = *layers.front();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const StateTensor& one : state_tensors) {
      const std::string name = name_in_file(i, one);
      const Tensor& tensor = layers[i]->*one.tensor;
      const Tensor& like = first.*one.tensor;
      check::rank(where, name.c_str(), tensor, 3);
      if (!one.f32) check::storage(where, name.c_str(), tensor);
      check::is(where, name.c_str(), tensor, like.shape(), one.f32 ? DType::f32 : like.dtype(),
                first.device());
    }
  }
}

std::map<std::string, std::string> metadata_text(const Layers& layers,
                                                 const StateMetadata& metadata) {
  const std::int64_t rows = layers.front()->batch();
  std::map<std::string, std::string> text{{"format", format_name},
                                          {"version", fmt::format("{}", version)},
                                          {"layers", fmt::format("{}", layers.size())},
                                          {"rows", fmt::format("{}", rows)}};
  if (!metadata.fingerprint.empty()) text["fingerprint"] = metadata.fingerprint;
  const auto& seen = metadata.tokens_seen;
  if (!seen.empty()) {
    if (static_cast<std::int64_t>(seen.size()) != rows) {
      throw ArgumentError(where, "tokens_seen", fmt::format("{} values or none", rows),
                          fmt::format("{}", seen.size()));
    }
    for (const std::int64_t count : seen) {
      if (count < 0) {
        throw ArgumentError(where, "tokens_seen", "at least 0", fmt::format("{}", count));
      }
    }
    text["tokens_seen"] = Json(Json::Array(seen.begin(), seen.end())).dump();
  }
  for (const auto& [key, value] : metadata.notes) text[note_prefix + key] = value;
  return text;
}

Layers layers_of(const MambaState& state) { return {&state}; }

Layers layers_of(const StackState& state) {
  Layers layers;
  for (const MambaState& layer : state.layers) layers.push_back(&layer);
  return layers;
}

// What is written; the items are views of the arguments.
struct Contents {
  std::vector<SafetensorsItem> items;
  std::map<std::string, std::string> metadata;
};

Contents contents_of(const Layers& layers, const StateMetadata& metadata,
                     const StateExtras& extras) {
  check_layers(layers);
  std::vector<SafetensorsItem> items;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const StateTensor& one : state_tensors) {
      items.push_back({name_in_file(i, one), layers[i]->*one.tensor});
    }
  }
  for (const auto& [name, view] : extras) {
    if (starts_with(name, layer_prefix)) {
      throw ArgumentError(where, name, "a name that does not start with \"layers.\"",
                          "one that does");
    }
    items.push_back({name, view});
  }
  return {std::move(items), metadata_text(layers, metadata)};
}

void save_layers(const std::string& path, const Layers& layers, const StateMetadata& metadata,
                 const StateExtras& extras) {
  const Contents contents = contents_of(layers, metadata, extras);
  save_safetensors(path, contents.items, contents.metadata);
}

Bytes save_layers(const Layers& layers, const StateMetadata& metadata, const StateExtras& extras) {
  const Contents contents = contents_of(layers, metadata, extras);
  return save_safetensors(contents.items, contents.metadata);
}

// ---- loading ----------------------------------------------------------------------------------

// A state file that is open, with every statement in it checked before memory is taken for it.
class StateFile {
 public:
  explicit StateFile(SafetensorsFile file) : file_(std::move(file)) {
    check_metadata();
    check_tensors();
  }

  SavedState load(Device device) const {
    SavedState saved;
    saved.metadata = metadata_;
    for (std::size_t i = 0; i < layers_; ++i) {
      MambaState state;
      for (const StateTensor& one : state_tensors) {
        state.*one.tensor = read(name_in_file(i, one), device);
      }
      saved.state.layers.push_back(std::move(state));
    }
    for (const std::string& name : extras_) {
      saved.extras.emplace(name, file_.read(file_.entry(name)));
    }
    return saved;
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(file_.path(), name, expected, got);
  }

  const std::string* text(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    return found == file_.metadata().end() ? nullptr : &found->second;
  }

  void expect_text(const std::string& key, const std::string& expected) const {
    const std::string* got = text(key);
    if (got == nullptr || *got != expected) {
      refuse(key, in_quotes(expected), got == nullptr ? "nothing" : in_quotes(*got));
    }
  }

  static bool is_count(const Json& value) {
    return value.is_count() && value.count() <= std::uint64_t{1} << 62;
  }

  std::int64_t count(const std::string& key) const {
    const std::string* got = text(key);
    if (got == nullptr) refuse(key, "a whole number", "nothing");
    std::int64_t value = 0;
    const auto parsed = std::from_chars(got->data(), got->data() + got->size(), value);
    // Only the one way of writing a number that save() uses: no sign, no zeros in front.
    if (parsed.ec != std::errc() || value < 0 || fmt::format("{}", value) != *got) {
      refuse(key, "a whole number", in_quotes(*got));
    }
    return value;
  }

  void check_metadata() {
    expect_text("format", format_name);
    expect_text("version", fmt::format("{}", version));
    rows_ = count("rows");
    static const std::set<std::string> known{"format", "version",     "layers",
                                             "rows",   "fingerprint", "tokens_seen"};
    for (const auto& [key, value] : file_.metadata()) {
      if (starts_with(key, note_prefix)) {
        metadata_.notes[key.substr(std::string(note_prefix).size())] = value;
      } else if (known.count(key) == 0) {
        refuse(in_quotes(key), "metadata of this version", in_quotes(value));
      }
    }
    if (const std::string* fingerprint = text("fingerprint")) metadata_.fingerprint = *fingerprint;
    if (const std::string* seen = text("tokens_seen")) check_tokens_seen(*seen);
  }

  void check_tokens_seen(const std::string& seen) {
    const Json list = parse_json(seen, file_.path(), "tokens_seen");
    if (!list.is_array()) refuse("tokens_seen", "a list", describe(list));
    for (const Json& value : list.elements()) {
      if (!is_count(value)) refuse("tokens_seen", "whole numbers", describe(value));
      metadata_.tokens_seen.push_back(static_cast<std::int64_t>(value.count()));
    }
    const std::size_t size = list.elements().size();
    if (size > 0 && static_cast<std::int64_t>(size) != rows_) {
      refuse("tokens_seen", fmt::format("{} values or none", rows_), fmt::format("{}", size));
    }
  }

  // Every tensor is one of a layer's or an extra, and every layer has all of its.
  void check_tensors() {
    const std::int64_t layers = count("layers");
    std::int64_t of_layers = 0;
    for (const SafetensorsEntry& entry : file_.entries()) {
      if (starts_with(entry.name, layer_prefix)) {
        ++of_layers;
      } else {
        check_extra(entry);
      }
    }
    if (layers < 1 || of_layers % per_layer != 0 || of_layers / per_layer != layers) {
      refuse(
          "layers",
          fmt::format("{} tensors for each of {} layers, at least one", words[per_layer], layers),
          fmt::format("{} tensors", of_layers));
    }
    layers_ = static_cast<std::size_t>(layers);
    for (const StateTensor& one : state_tensors) check_first_layer(one);
    for (std::size_t i = 0; i < layers_; ++i) {
      for (const StateTensor& one : state_tensors) {
        const SafetensorsEntry& first = file_.entry(name_in_file(0, one));
        const SafetensorsEntry& entry = file_.entry(name_in_file(i, one));
        const std::string dtype = one.f32 ? "F32" : first.dtype;
        if (entry.dtype != dtype) refuse(entry.name, dtype, entry.dtype);
        if (entry.shape != first.shape) refuse(entry.name, first.shape_text(), entry.shape_text());
      }
    }
  }

  // Its shapes and dtypes are then those of all layers.
  void check_first_layer(const StateTensor& one) const {
    const SafetensorsEntry& entry = file_.entry(name_in_file(0, one));
    const std::set<std::string> storage{"F32", "BF16", "F16"};
    if (!one.f32 && storage.count(entry.dtype) == 0) {
      refuse(entry.name, "F32, BF16 or F16", entry.dtype);
    }
    if (entry.shape.size() != 3 || entry.shape[0] != rows_) {
      refuse(entry.name, fmt::format("[{}, {}, ...]", rows_, one.channels), entry.shape_text());
    }
  }

  void check_extra(const SafetensorsEntry& entry) {
    if (!tensor_dtype(entry)) refuse(entry.name, "F32, BF16, F16 or I32", entry.dtype);
    if (entry.shape.empty() || entry.shape.size() > std::size_t{Shape::max_rank}) {
      refuse(entry.name, fmt::format("1 to {} dimensions", Shape::max_rank), entry.shape_text());
    }
    extras_.push_back(entry.name);
  }

  Tensor read(const std::string& name, Device device) const {
    Tensor tensor = file_.read(file_.entry(name));
    return device == Device::cpu() ? std::move(tensor) : tensor.to(device);
  }

  SafetensorsFile file_;
  StateMetadata metadata_;
  std::int64_t rows_ = 0;
  std::size_t layers_ = 0;
  std::vector<std::string> extras_;
};

}  // namespace

void save(const std::string& path, const MambaState& state, const StateMetadata& metadata,
          const StateExtras& extras) {
  save_layers(path, layers_of(state), metadata, extras);
}

void save(const std::string& path, const StackState& state, const StateMetadata& metadata,
          const StateExtras& extras) {
  save_layers(path, layers_of(state), metadata, extras);
}

Bytes save(const MambaState& state, const StateMetadata& metadata, const StateExtras& extras) {
  return save_layers(layers_of(state), metadata, extras);
}

Bytes save(const StackState& state, const StateMetadata& metadata, const StateExtras& extras) {
  return save_layers(layers_of(state), metadata, extras);
}

SavedState load_state(const std::string& path, Device device) {
  return StateFile(SafetensorsFile(path)).load(device);
}

SavedState load_state(ByteView bytes, Device device, const std::string& name) {
  return StateFile(SafetensorsFile(bytes, name)).load(device);
}

}  // namespace mamba
