// A training run on disk: what it takes to go on as if it had never stopped.
//
// One safetensors file. Tensors are those of AdamW::each_tensor, and of a carried state
// "layers.N.conv" and "layers.N.ssm". Metadata: "format" = "mamba.cpp training", "version", "hash"
// (XXH3 over names and data), "progress" (JSON: steps, seed, draws, loss_scale, good_steps,
// positions), and the program's notes as "note.KEY".
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <mamba/optimizer.hpp>
#include <mamba/state.hpp>

namespace MAMBA_EXPORT mamba {

struct TrainingProgress {
  std::uint64_t seed = 0;   // of the random numbers,
  std::uint64_t draws = 0;  // and how many of them were drawn
  LossScale loss_scale;
  std::vector<std::int64_t> positions;  // in the data, counted as the program likes
  std::map<std::string, std::string> notes;
};

// Written whole or not at all (see save_safetensors). `carried` may be nullptr. Waits for the
// device.
void save_training(const std::string& path, const AdamW& optimizer, const StackState* carried,
                   const TrainingProgress& progress);

// Into an optimizer over the same parameters (its weights, masters, moments and count) and a state
// of the same shape. Everything is checked before anything is touched: a file that is not a
// checkpoint, of another version, cut short, or of other parameters is a FormatError naming it.
// `carried` must be given exactly when the file holds a carried state.
TrainingProgress load_training(const std::string& path, AdamW& optimizer, StackState* carried);

}  // namespace mamba
