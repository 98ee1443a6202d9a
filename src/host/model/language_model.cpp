#include <mamba/language_model.hpp>

#include <fmt/format.h>

#include <type_traits>
#include <utility>

#include <mamba/check.hpp>

#include "host/core/elements.hpp"
#include "host/core/hash.hpp"
#include "host/core/row_map.hpp"
#include "host/model/fingerprint.hpp"
#include "host/model/mixers.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

LanguageModel::LanguageModel(const LanguageModelConfig& config, LanguageModelWeights weights)
    : config_(config.resolved()),
      stack_(config_, std::move(weights.stack)),
      embedding_(std::move(weights.embedding)),
      head_(std::move(weights.head)) {
  const Shape vocabulary{config_.vocab_rows, config_.layer.d_model};
  check::is("LanguageModel", "embeddings.weight", embedding_, vocabulary, stack_.dtype(),
            stack_.device());
  if (!config_.tie_embeddings) {
    check::is("LanguageModel", "lm_head.weight", head_, vocabulary, dtype(), device());
  } else if (head_) {
    throw ArgumentError("LanguageModel", "lm_head.weight", "none (the config ties it)",
                        head_.shape().to_string());
  }
}

LanguageModel LanguageModel::random(const LanguageModelConfig& config, std::uint64_t seed,
                                    DType dtype, Device device) {
  LanguageModelWeights weights = random_model_weights(config, dtype, seed);
  if (device.is_cuda()) {
    LanguageModelWeights::each(weights, config.resolved(), dtype,
                               [&](const std::string&, Tensor& tensor, const Shape&, DType) {
                                 tensor = tensor.to(device);
                               });
  }
  return LanguageModel(config, std::move(weights));
}

namespace {

// A model's weights, which its layers own, as LanguageModelWeights::each wants to see them; to be
// changed where S is Stack, to be read where it is const Stack.
template <class S>
struct OwnedWeights {
  using T = std::conditional_t<std::is_const_v<S>, const Tensor, Tensor>;
  struct Layers {
    S& of;
    std::size_t size() const { return of.size(); }
    auto& operator[](std::size_t i) const { return of.layer(i).weights(); }
  };
  struct Norms {
    S& of;
    std::size_t size() const { return of.size(); }
    T& operator[](std::size_t i) const { return of.norm(i); }
  };
  struct OwnedStack {
    Layers layers;
    Norms norms;
    T& norm_f;
  };
  T& embedding;
  OwnedStack stack;
  T& head;

  OwnedWeights(T& embedding_, S& stack_, T& head_)
      : embedding(embedding_), stack{{stack_}, {stack_}, stack_.norm(stack_.size())}, head(head_) {}

  template <class F>
  void each(const LanguageModelConfig& config, const F& f) const {
    LanguageModelWeights::each(
        *this, config, embedding.dtype(),
        [&](const std::string& name, T& tensor, const Shape&, DType) { f(name, tensor); });
  }
};

}  // namespace

void LanguageModel::each_weight(
    const std::function<void(const std::string&, const Tensor&)>& f) const {
  OwnedWeights<const Stack>(embedding_, stack_, head_).each(config_, f);
}

void LanguageModel::each_mutable_weight(const std::function<void(const std::string&, Tensor&)>& f) {
  if (!loaded_fingerprint_.empty() && loaded_bytes_.empty()) {
    loaded_bytes_ = fingerprint_of_bytes();  // the last moment at which they are what was loaded
  }
  OwnedWeights<Stack>(embedding_, stack_, head_).each(config_, f);
}

std::int64_t LanguageModel::parameter_count() const {
  std::int64_t sum = 0;
  each_weight([&](const std::string&, const Tensor& tensor) { sum += tensor.count(); });
  return sum;
}

std::string LanguageModel::fingerprint() const {
  if (!loaded_fingerprint_.empty() && loaded_bytes_.empty()) return loaded_fingerprint_;
  const std::string own = fingerprint_of_bytes();
  return !loaded_fingerprint_.empty() && own == loaded_bytes_ ? loaded_fingerprint_ : own;
}

std::string LanguageModel::fingerprint_of_bytes() const {
  Fingerprint fingerprint(config_);
  each_weight([&](const std::string& name, const Tensor& tensor) {
    const Tensor host = tensor.to(Device::cpu());
    fingerprint.add(name, elements::file_name_of(host.dtype()), host.view().data(), host.bytes());
  });
  return fingerprint.text();
}

namespace {

// All of them, before the first piece is read.
void check_ids(const ConstTensorView& ids, std::int64_t vocab_size) {
  for (std::int64_t b = 0; b < ids.dim(0); ++b) {
    const std::int32_t* row = ids.data<std::int32_t>() + b * ids.row_pitch();
    for (std::int64_t t = 0; t < ids.dim(1); ++t) {
      check::range("LanguageModel::forward", "ids", row[t], 0, vocab_size - 1);
    }
  }
}

}  // namespace

void Logits::check(const char* where, std::int64_t batch, std::int64_t time,
                   std::int64_t vocab_size, Device device) const {
  if (positions_ == Positions::none) return;
  const bool all = positions_ == Positions::all;
  const char* name = all ? "Logits::all" : "Logits::last";
  const Shape shape = all ? Shape{batch, time, vocab_size} : Shape{batch, vocab_size};
  check::is(where, name, to_, shape, DType::f32, device);
  if (!to_.is_dense()) throw ArgumentError(where, name, "a dense tensor", "a strided view");
  if (!all && time == 0) throw ArgumentError(where, name, "a time of at least 1", "0");
}

void LanguageModel::check_call(const ConstTensorView& ids, const StackState& state,
                               const Logits& logits, Stream& stream,
                               const LanguageModelOptions& options) const {
  constexpr const char* where = "LanguageModel::forward";
  check::rank(where, "ids", ids, 2);
  check::is(where, "ids", ids, ids.shape(), DType::i32, device());
  check::stream(where, stream, device());
  const std::int64_t batch = ids.dim(0);
  const std::int64_t time = ids.dim(1);
  check_state(where, stack_, state,
              options.rows.read || options.rows.write ? state.batch() : batch);
  check_rows(where, options.rows, batch, state.batch(), stream);
  logits.check(where, batch, time, config_.vocab_size, device());
  if (options.reset) {
    check::is(where, "reset", options.reset, {batch, time}, DType::i32, device());
  }
  if (options.tape != nullptr && options.rows.read) {
    throw ArgumentError(where, "rows", "none with a tape", "a row map");
  }
  check::range(where, "piece_tokens", options.piece_tokens, 0, INT64_MAX);
  if (device().is_cpu()) check_ids(ids, config_.vocab_size);
}

void LanguageModel::check_backward(const LanguageModelTape& tape, const ConstTensorView& dlogits,
                                   const LanguageModelWeights& gradients) const {
  constexpr const char* where = "LanguageModel::backward";
  if (!tape.stack.filled()) {
    throw ArgumentError(where, "tape", "a forward run that no backward has used", "none");
  }
  check::rank(where, "tape", tape.hidden_, 3);
  check::is(where, "dlogits", dlogits, tape.hidden_.shape().with(2, config_.vocab_size), dtype(),
            device());
  check_gradients(where, *this, gradients);
}

// ---- fingerprint --------------------------------------------------------------------------------

struct Fingerprint::Impl {
  Hash hash;
};

Fingerprint::Fingerprint(const LanguageModelConfig& c) : impl_(std::make_unique<Impl>()) {
  std::string model = fmt::format("{} {} {} {} {} ", c.n_layer, c.vocab_size, c.vocab_rows,
                                  c.tie_embeddings, c.norm_epsilon);
  for (const std::string& layer : host_mixer(c.layer).identity(c.layer)) {
    text(std::exchange(model, "") + layer);
  }
}

Fingerprint::~Fingerprint() = default;

void Fingerprint::text(const std::string& value) { impl_->hash.add(value); }

void Fingerprint::add(const std::string& name, const std::string& dtype, const void* data,
                      std::int64_t bytes) {
  text(name + " " + dtype);
  impl_->hash.add(data, bytes);
}

std::string Fingerprint::text() const { return impl_->hash.text(); }

}  // namespace mamba
