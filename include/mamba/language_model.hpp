// A Mamba language model: embedding, stack, head; read from and written to folders as published.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <mamba/config.hpp>
#include <mamba/detail/constant_weights.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/logits.hpp>
#include <mamba/stack.hpp>
#include <mamba/state.hpp>
#include <mamba/weights.hpp>

namespace MAMBA_EXPORT mamba {

struct LanguageModelOptions : SequenceOptions {
  // Longer calls go through in pieces of about this many tokens (batch x time), so that memory does
  // not grow with the prompt; 0: 2048 on the CPU, 16384 on CUDA, which few tokens leave idle. A
  // call whose row map reads other rows than it writes goes through whole (rows.read and rows.write
  // are then not the same memory).
  std::int64_t piece_tokens = 0;
  // With one of these a call goes through whole.
  LanguageModelTape* tape = nullptr;  // receives what backward needs; not with a row map
  StackSteps* steps = nullptr;        // receives the states after every step
};

// How many bytes of a model's weights have been read, of how many in its files.
using LoadProgress = std::function<void(std::int64_t read, std::int64_t bytes)>;

// Constant once made, like Layer; what trains it owns it without const.
class LanguageModel {
 public:
  LanguageModel(const LanguageModelConfig& config, LanguageModelWeights weights);
  // Fresh weights by the published recipe.
  static LanguageModel random(const LanguageModelConfig& config, std::uint64_t seed,
                              DType dtype = DType::f32, Device device = Device::cpu());

  // A folder with config.json and model.safetensors, or shards and model.safetensors.index.json,
  // with the tensor names of Hugging Face or of mamba_ssm, also without "backbone." or after
  // "model.". The ids that end a text are those of generation_config.json, if that names any.
  // `dtype` is of matrices and activations; absent, as in the file. What config.json does not say
  // of biases and of the head follows from the tensors; a head beside a config that ties it must
  // hold the embedding's values. What is missing, surplus or of a wrong shape is a FormatError
  // naming it; a tensor of a dtype that no parameter has (8-bit floats, say) and of no parameter's
  // name is passed over. `on_progress` is called before the first tensor is read and after each;
  // what it throws ends the loading and comes out.
  static LanguageModel load(const std::string& folder, std::optional<DType> dtype = std::nullopt,
                            Device device = Device::cpu(), const LoadProgress& on_progress = {});
  // config.json (with the keys that were read and not understood) and model.safetensors, names of
  // Hugging Face, each tensor in the dtype it was read from. One change: after a crash at any
  // moment load() reads the old model or the new one. In between the new config is config.json.new.
  void save(const std::string& folder) const;

  const LanguageModelConfig& config() const { return config_; }  // resolved
  const Stack& stack() const { return stack_; }
  const Tensor& embedding() const { return embedding_; }
  const Tensor& head() const { return head_ ? head_ : embedding_; }
  DType dtype() const { return embedding_.dtype(); }
  Device device() const { return embedding_.device(); }
  // f(published name, tensor) for every weight, in the order of LanguageModelWeights::each.
  void each_weight(const std::function<void(const std::string&, const Tensor&)>& f) const;
  // The same for training, which may change values, never shapes, dtypes or places.
  void each_mutable_weight(const std::function<void(const std::string&, Tensor&)>& f);
  std::int64_t parameter_count() const;

  // Tells two models apart by configuration and weights: the same for every dtype and device one
  // folder is loaded with, and kept by saving in the file's dtype. 32 hexadecimal digits. It stays
  // that of the folder for as long as every weight has the bytes that were loaded: once somebody
  // could have changed them (each_mutable_weight, parameters) they are hashed to find out.
  std::string fingerprint() const;

  StackState make_state(std::int64_t batch) const { return stack_.make_state(batch); }

  // Reads ids [batch, time] i32, any time >= 0, continuing from `state`. `logits` says which are
  // computed: Logits::all(to), Logits::last(to) or Logits::none(). On the CPU an id out of range is
  // an ArgumentError before any work.
  void forward(ConstTensorView ids, StackState& state, const Logits& logits, Stream& stream,
               const LanguageModelOptions& options = {}) const;

  // The gradients of the run on `tape`: see Layer::backward. dlogits [batch, time, vocab_size] has
  // the model's dtype (CrossEntropy). A tied embedding gets the head's share too, padding zeros.
  void backward(LanguageModelTape& tape, ConstTensorView dlogits, StackState* dstate,
                LanguageModelWeights& gradients, Stream& stream,
                const BackwardOptions& options = {}) const;

 private:
  void check_call(const ConstTensorView& ids, const StackState& state, const Logits& logits,
                  Stream& stream, const LanguageModelOptions& options) const;
  void forward_piece(ConstTensorView ids, StackState& state, TensorView logits, Stream& stream,
                     const StackOptions& options, LanguageModelTape* tape) const;
  void check_backward(const LanguageModelTape& tape, const ConstTensorView& dlogits,
                      const LanguageModelWeights& gradients) const;
  std::string fingerprint_of_bytes() const;

  LanguageModelConfig config_;
  Stack stack_;
  Tensor embedding_;                // [vocab_rows, d_model]
  Tensor head_;                     // the same; absent when tied
  std::string loaded_fingerprint_;  // of the file; empty unless loaded
  std::string loaded_bytes_;  // fingerprint_of_bytes() as loaded; empty: nobody could change them
  std::map<std::string, std::string> file_dtypes_;  // tensor name -> dtype it was read from
};

inline void LanguageModel::forward(ConstTensorView ids, StackState& state, const Logits& logits,
                                   Stream& stream, const LanguageModelOptions& options) const {
  check_call(ids, state, logits, stream, options);
  const std::int64_t batch = ids.dim(0);
  const std::int64_t time = ids.dim(1);
  const bool moves = options.rows.read && options.rows.read.data() != options.rows.write.data();
  std::int64_t tokens = options.piece_tokens;
  if (tokens == 0) tokens = device().is_cuda() ? 16384 : 2048;
  const std::int64_t piece = moves || options.tape != nullptr || options.steps != nullptr
                                 ? time
                                 : tokens / std::max<std::int64_t>(1, batch);
  std::int64_t first = 0;
  do {  // once even for time 0: a row map may move states
    const std::int64_t count = std::min(std::max<std::int64_t>(1, piece), time - first);
    StackOptions piece_options;
    if (options.reset) piece_options.reset = options.reset.columns(first, count);
    piece_options.rows = options.rows;
    if (options.tape != nullptr) piece_options.tape = &options.tape->stack;
    piece_options.steps = options.steps;
    forward_piece(ids.columns(first, count), state, logits.of_steps(first, count, time), stream,
                  piece_options, options.tape);
    first += count;
  } while (first < time);
}

inline void LanguageModel::forward_piece(ConstTensorView ids, StackState& state, TensorView logits,
                                         Stream& stream, const StackOptions& options,
                                         LanguageModelTape* tape) const {
  const detail::ConstantWeights constant(stream);
  Scratch scratch(stream);
  Embedding embed;
  embed.ids = ids;
  embed.table = embedding_;
  embed.y = scratch.take({ids.dim(0), ids.dim(1), config_.layer.d_model}, dtype());
  run(embed, stream);

  TensorView hidden;
  if (tape != nullptr) {
    if (tape->hidden_.shape() != embed.y.shape() || tape->hidden_.dtype() != dtype()) {
      tape->hidden_ = Tensor(embed.y.shape(), dtype(), device());
    }
    hidden = tape->hidden_;
    if (tape->ids_.shape() != ids.shape()) tape->ids_ = Tensor(ids.shape(), DType::i32, device());
    copy(ids, tape->ids_, stream);
  } else {
    hidden = scratch.take(embed.y.shape(), dtype());
  }
  stack_.forward(embed.y, state, hidden, stream, options);
  if (!logits) return;

  Matmul head;  // the last positions, as many as are wanted, over the real vocabulary
  head.x = hidden.steps(hidden.dim(1) - logits.dim(1), logits.dim(1));
  head.weight = this->head().view().rows(0, config_.vocab_size);
  head.y = logits;
  run(head, stream);
}

inline void LanguageModel::backward(LanguageModelTape& tape, ConstTensorView dlogits,
                                    StackState* dstate, LanguageModelWeights& gradients,
                                    Stream& stream, const BackwardOptions& options) const {
  check_backward(tape, dlogits, gradients);
  Scratch scratch(stream);
  Tensor& dhead = config_.tie_embeddings ? gradients.embedding : gradients.head;
  const TensorView dhidden = scratch.take(tape.hidden_.shape(), dtype());
  // The stack refuses what does not fit it, so it goes before anything is written to `gradients`.
  LinearGrad head;
  head.x = tape.hidden_;
  head.weight = this->head().view().rows(0, config_.vocab_size);
  head.dy = dlogits;
  head.dx = dhidden;
  run(head, stream);
  stack_.backward(tape.stack, dhidden, dstate, dhidden, gradients.stack, stream, options);
  if (dhead) {
    const std::int64_t padding = config_.vocab_rows - config_.vocab_size;
    if (!options.accumulate) zero(dhead.view().rows(config_.vocab_size, padding), stream);
    head.dx = {};
    head.dweight = dhead.view().rows(0, config_.vocab_size);
    head.accumulate = options.accumulate;
    run(head, stream);
  }
  if (!gradients.embedding) return;
  EmbeddingGrad embed;
  embed.ids = tape.ids_;
  embed.dy = dhidden;
  embed.dtable = gradients.embedding;
  embed.accumulate = options.accumulate || config_.tie_embeddings;
  run(embed, stream);
}

}  // namespace mamba
