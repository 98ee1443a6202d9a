// A language model of bytes that learns from a text: truncated backpropagation through time that
// carries the state from step to step and forgets it where a document ends.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/checkpoint.hpp>
#include <mamba/language_model.hpp>
#include <mamba/loss.hpp>
#include <mamba/optimizer.hpp>

#include "corpus.hpp"
#include "ranks.hpp"

struct TrainerOptions {
  mamba::LanguageModelConfig model;
  std::string start;  // a folder with a model of bytes to start from, instead of `model` and random
  mamba::DType dtype = mamba::DType::f32;
  mamba::Device device;
  int threads = 0;
  std::uint64_t seed = 0;
  std::int64_t batch = 16;  // of all ranks together
  std::int64_t time = 256;
  std::int64_t steps = 1000;
  std::int64_t warmup = 100;
  float rate = 3e-3f;
  float last_rate = 3e-4f;
  bool recompute = false;
  mamba::AdamWOptions adamw;
};

struct StepResult {
  double loss = 0;  // nats per byte
  double norm = 0;  // of the gradients
  double rate = 0;
};

// The states that the ranks carry, put together while a checkpoint is written; one for each rank.
using CarriedStates = std::vector<mamba::StackState>;

// One rank's share: its rows of every batch, and a copy of weights and moments that each step keeps
// the same as all others'. What is read, computed of the whole batch and written does not depend on
// the number of ranks, except by rounding.
class Trainer {
 public:
  Trainer(const TrainerOptions& options, const Text& text, Ranks& ranks, CarriedStates& carried);

  // One step, with all ranks. A loss or gradient that is not finite is an Error that says at which
  // step and whose; but a gradient that is too large for f16 costs only its batch and half of the
  // loss scale.
  StepResult step();
  std::int64_t steps() const { return optimizer_.steps(); }

  // Bits per byte on the first `most` bytes of another text, read in order, the state carried.
  double validate(const Text& text, std::int64_t most);
  // What the model writes after `prompt`.
  std::string sample(const std::string& prompt, std::int64_t count, float temperature);

  const mamba::LanguageModel& model() const { return model_; }
  // With all ranks; the first one writes.
  void save(const std::string& path);
  // A checkpoint of other options is refused; of another number of ranks, it is not.
  void load(const std::string& path);

 private:
  StepResult try_step();
  mamba::Tensor there(const mamba::Tensor& host) const { return host.to(options_.device); }

  TrainerOptions options_;
  const Text& text_;
  Ranks& ranks_;
  CarriedStates& carried_;
  std::int64_t first_row_, rows_;  // this rank's of the batch
  mamba::Stream stream_;
  mamba::LanguageModel model_;
  mamba::LanguageModelWeights gradients_;
  mamba::AdamW optimizer_;
  mamba::StackState state_;
  mamba::TrainingProgress progress_;
  mamba::LanguageModelTape tape_;
  mamba::TokenLoss loss_;
  mamba::Tensor ids_, targets_, reset_, logits_, dlogits_;
};
