// mamba-lm logits: the logits of every position of given token ids, and the states after the last.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include <mamba/safetensors.hpp>

#include "../programs/interrupt.hpp"
#include "../programs/memory.hpp"
#include "commands.hpp"

namespace {

using mamba::DType;
using mamba::MambaState;
using mamba::Shape;
using mamba::Stream;
using mamba::Tensor;

struct LogitsFlags {
  ModelFlags model;
  std::string tokens;
  std::string out;
  std::optional<std::int64_t> chunk;  // absent: whole
};

Tensor read_ids(const std::string& path) {
  const mamba::SafetensorsFile file(path);
  const mamba::SafetensorsEntry& entry = file.entry("input_ids");
  if (entry.dtype != "I32" && entry.dtype != "I64") {
    throw mamba::FormatError("logits", "input_ids", "I32 or I64", entry.dtype);
  }
  if (entry.shape.size() != 2) {
    throw mamba::FormatError("logits", "input_ids", "[batch, time]", entry.shape_text());
  }
  return file.read(entry);
}

// One tensor of every layer's state, as [layers, ...] f32 on the CPU.
Tensor stacked(const mamba::StackState& state, Tensor MambaState::*part, Stream& stream) {
  const Shape one = (state.layers.front().*part).shape();
  Tensor all({static_cast<std::int64_t>(state.layers.size()), one[0], one[1], one[2]}, DType::f32);
  for (std::size_t i = 0; i < state.layers.size(); ++i) {
    mamba::copy(state.layers[i].*part,
                all.view().rows(static_cast<std::int64_t>(i), 1).reshape(one), stream);
  }
  return all;
}

int logits(const LogitsFlags& flags) {
  check_can_write("logits", "--out", flags.out);
  const Tensor host_ids = read_ids(flags.tokens);
  const mamba::LanguageModel model = flags.model.load("logits");
  Stream stream = flags.model.stream();
  const Tensor ids = host_ids.to(model.device());
  const std::int64_t batch = ids.dim(0);
  const std::int64_t time = ids.dim(1);
  const std::int64_t vocab = model.config().vocab_size;

  const auto rows = static_cast<double>(batch);
  const auto tokens = rows * static_cast<double>(time);
  const std::int64_t chunk = flags.chunk.value_or(time);
  // The whole on the host, and a piece wherever the model is.
  const double host = tokens * static_cast<double>(vocab) * sizeof(float) +
                      rows * bytes_of_state(model.config(), DType::f32);
  const double piece_tokens = rows * static_cast<double>(std::min(chunk, time));
  check_memory(
      "logits", "--tokens", "the logits of all tokens",
      host + (model.device().is_cpu() ? piece_tokens * static_cast<double>(vocab) * sizeof(float) +
                                            bytes_of_call(model.config(), piece_tokens)
                                      : 0),
      mamba::Device::cpu());

  const auto start = std::chrono::steady_clock::now();
  mamba::StackState state = model.make_state(batch);
  Tensor all({batch, time, vocab}, DType::f32);
  for (std::int64_t first = 0; first < time; first += chunk) {
    const std::int64_t count = std::min(chunk, time - first);
    Tensor piece({batch, count, vocab}, DType::f32, model.device());
    model.forward(ids.view().columns(first, count), state, mamba::Logits::all(piece), stream);
    mamba::copy(piece, all.view().steps(first, count), stream);
    stream.synchronize();  // `piece` goes
  }
  const Tensor conv = stacked(state, &MambaState::conv, stream);
  const Tensor ssm = stacked(state, &MambaState::ssm, stream);
  stream.synchronize();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;

  catch_interrupts();  // until now one leaves nothing behind; here it would leave half a file
  mamba::save_safetensors(flags.out, {{"logits", all}, {"conv_states", conv}, {"ssm_states", ssm}});
  std::fprintf(stderr, "mamba-lm: %lld tokens, %.1f tok/s\n", static_cast<long long>(batch * time),
               static_cast<double>(batch * time) / seconds.count());
  return interrupted() ? exit_interrupted : 0;
}

}  // namespace

void add_logits(CLI::App& app, Command& command) {
  CLI::App* sub = app.add_subcommand("logits", "Logits of every position, and the final states");
  const auto flags = std::make_shared<LogitsFlags>();
  flags->model.add_folder(*sub);
  sub->add_option("--tokens", flags->tokens,
                  "Safetensors file with input_ids [batch, time], I32 or I64")
      ->required();
  sub->add_option(
         "--out", flags->out,
         "Safetensors file to write: logits [batch, time, vocab], conv_states [layers, batch, "
         "d_inner, d_conv-1], ssm_states [layers, batch, d_inner, d_state], all F32")
      ->required();
  sub->add_option("--chunk", flags->chunk, "Tokens of each sequence per call (default: all)")
      ->check(whole_number<std::int64_t>(1));
  flags->model.add_placement(*sub);
  sub->callback([flags, &command] { command = [flags] { return logits(*flags); }; });
}
