// States on disk or as bytes: a safetensors file of a stated format and version, with a model's
// fingerprint if wanted.
//
// Tensors "layers.N.conv" [rows, conv channels, d_conv - 1] and "layers.N.ssm" [rows, d_inner,
// d_state], and whatever was saved beside them under its own names. Metadata: "format" = "mamba.cpp
// state", "version", "layers", "rows", and if given "fingerprint", "tokens_seen" (a JSON list) and
// the caller's notes as "note.KEY". Other metadata, or other names that start with "layers.", make
// it a file of another version.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <mamba/bytes.hpp>
#include <mamba/state.hpp>

namespace MAMBA_EXPORT mamba {

struct StateMetadata {
  std::string fingerprint;                // of the model; empty: the state is tied to none
  std::vector<std::int64_t> tokens_seen;  // per row; empty: not known
  std::map<std::string, std::string> notes;
};

struct SavedState {
  StackState state;  // a single MambaState is a stack of one layer
  StateMetadata metadata;
  std::map<std::string, Tensor> extras;  // by name, on the CPU
};

// Tensors to be saved beside a state. Names starting with "layers." are an ArgumentError.
using StateExtras = std::map<std::string, ConstTensorView>;

// Written whole or not at all (see save_safetensors). The state may be on any device.
void save(const std::string& path, const MambaState& state, const StateMetadata& metadata = {},
          const StateExtras& extras = {});
void save(const std::string& path, const StackState& state, const StateMetadata& metadata = {},
          const StateExtras& extras = {});
// The bytes of that file.
[[nodiscard]] Bytes save(const MambaState& state, const StateMetadata& metadata = {},
                         const StateExtras& extras = {});
[[nodiscard]] Bytes save(const StackState& state, const StateMetadata& metadata = {},
                         const StateExtras& extras = {});

// Everything is checked before anything is used; a file that is not a state, of another version,
// cut short or inconsistent is a FormatError naming it.
SavedState load_state(const std::string& path, Device device = Device::cpu());
// From what such a file would hold. `name` stands for the path in errors.
SavedState load_state(ByteView bytes, Device device = Device::cpu(),
                      const std::string& name = "bytes");

}  // namespace mamba
