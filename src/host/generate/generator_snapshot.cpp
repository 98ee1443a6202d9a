// A generation taken out of its place in a pool, and put into another.
#include <mamba/generator_snapshot.hpp>

#include <fmt/format.h>

#include <optional>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/generator.hpp>

#include "host/core/finished.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/generate/snapshot_content.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

// ---- the value --------------------------------------------------------------------------------

GeneratorSnapshot::GeneratorSnapshot(std::shared_ptr<const Content> content)
    : content_(std::move(content)) {}
GeneratorSnapshot::~GeneratorSnapshot() = default;
GeneratorSnapshot::GeneratorSnapshot(GeneratorSnapshot&&) noexcept = default;
GeneratorSnapshot& GeneratorSnapshot::operator=(GeneratorSnapshot&&) noexcept = default;

const GeneratorSnapshot::Content& GeneratorSnapshot::content() const {
  if (!content_) {
    throw ArgumentError("GeneratorSnapshot", "snapshot", "a snapshot", "one that was moved from");
  }
  return *content_;
}

GeneratorSnapshot GeneratorSnapshot::clone() const {
  content();
  return GeneratorSnapshot(content_);
}

GeneratorSnapshot GeneratorSnapshot::to(Device target) const {
  if (device() == target) return clone();
  const Content& from = content();
  auto moved = std::make_shared<Content>();
  moved->fingerprint = from.fingerprint;
  moved->state = from.state.to(target);
  moved->logits = from.logits.to(target);
  moved->options = from.options;
  moved->draws = from.draws;
  moved->seen = from.seen;
  moved->recent = from.recent;
  moved->held = from.held;
  moved->after_stop = from.after_stop;
  moved->tokens_seen = from.tokens_seen;
  return GeneratorSnapshot(std::move(moved));
}

const SamplingOptions& GeneratorSnapshot::options() const { return content().options; }
std::int64_t GeneratorSnapshot::tokens_seen() const { return content().tokens_seen; }
const StackState& GeneratorSnapshot::state() const { return content().state; }
const Tensor& GeneratorSnapshot::logits() const { return content().logits; }
const std::string& GeneratorSnapshot::fingerprint() const { return content().fingerprint; }
Device GeneratorSnapshot::device() const { return content().logits.device(); }

std::int64_t GeneratorSnapshot::bytes() const {
  const Content& own = content();
  const std::size_t ids = own.seen.size() + own.recent.size() + own.options.allowed.size();
  const std::size_t texts = own.held.size() + own.after_stop.size() + own.fingerprint.size();
  constexpr std::size_t bias = 4 * sizeof(void*) + sizeof(std::pair<std::int32_t, float>);
  return own.state.bytes() + own.logits.bytes() +
         static_cast<std::int64_t>(ids * sizeof(std::int32_t) + texts +
                                   own.options.logit_bias.size() * bias + sizeof own);
}

// ---- out of a generator and into one ----------------------------------------------------------

GeneratorSnapshot Generator::snapshot() { return snapshot(model().device()); }

GeneratorSnapshot Generator::snapshot(Device device) {
  feed_pending();
  auto content = std::make_shared<GeneratorSnapshot::Content>();
  content->fingerprint = model().fingerprint();
  content->logits = Tensor(slot().logits().shape(), DType::f32, device);
  copy(slot().logits(), content->logits, stream());
  content->state = slot().copy_state(device);
  content->options = options_;
  content->draws = *on_host(slot().draws(), stream()).data<std::int32_t>();
  const Tensor seen = on_host(slot().seen(), stream());
  const auto* counts = seen.data<std::int32_t>();
  for (std::int32_t id = 0; id < model().config().vocab_size; ++id) {
    if (counts[id] != 0) content->seen.push_back(id);
  }
  content->recent = recent_;
  content->held = text_.held();
  content->after_stop = after_stop_;
  content->tokens_seen = tokens_seen_;
  return GeneratorSnapshot(std::move(content));
}

Generator::Generator(const LanguageModel& model, const GeneratorSnapshot& snapshot)
    : Generator(model, SamplingOptions()) {
  put_back("Generator", snapshot);
}

Generator::Generator(const LanguageModel& model, const GeneratorSnapshot& snapshot, Stream& stream)
    : Generator(model, SamplingOptions(), stream) {
  put_back("Generator", snapshot);
}

Generator GeneratorPool::make(const GeneratorSnapshot& snapshot) {
  Generator generator = make(SamplingOptions());  // the snapshot's own once it is known to fit
  generator.put_back("GeneratorPool::make", snapshot);
  return generator;
}

void Generator::copy_from(const GeneratorSnapshot& snapshot) {
  put_back("Generator::copy_from", snapshot);
}

std::optional<Misfit> misfit_of(const std::string& fingerprint, const LanguageModel& model) {
  const std::string own = model.fingerprint();
  if (fingerprint == own) return std::nullopt;
  return Misfit{
      "a state of this model (" + own + ")",
      fingerprint.empty() ? "a state of no stated model" : "one of another (" + fingerprint + ")"};
}

std::optional<Misfit> GeneratorSnapshot::Content::misfit(const char* where,
                                                         const LanguageModel& model) const {
  try {
    check_state(where, model.stack(), state, 1, logits.device());
  } catch (const ArgumentError& error) {
    return Misfit{fmt::format("a state of this model in {}", name_of(model.dtype())), error.what()};
  }
  const std::int64_t vocab = model.config().vocab_size;
  if (logits.shape() != Shape{1, vocab}) {
    return Misfit{fmt::format("generator.logits [1, {}]", vocab), logits.shape().to_string()};
  }
  std::vector<std::int32_t> ids(recent);
  ids.insert(ids.end(), seen.begin(), seen.end());
  ids.insert(ids.end(), options.allowed.begin(), options.allowed.end());
  for (const auto& [id, value] : options.logit_bias) ids.push_back(id);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      return Misfit{fmt::format("token ids 0 to {}", vocab - 1), fmt::format("{}", id)};
    }
  }
  return std::nullopt;
}

void GeneratorSnapshot::Content::check(const char* where, const LanguageModel& model) const {
  const auto refuse = [&](const std::optional<Misfit>& one) {
    if (one) throw ArgumentError(where, "snapshot", one->expected, one->got);
  };
  refuse(misfit_of(fingerprint, model));
  refuse(misfit(where, model));
}

void GeneratorSnapshot::check(const LanguageModel& model) const {
  content().check("GeneratorSnapshot::check", model);
}

void Generator::put_back(const char* where, const GeneratorSnapshot& snapshot) {
  snapshot.content().check(where, model());
  set_snapshot(snapshot);
}

// `snapshot` fits. It may be on another device: 48 tensors more there for the length of a call
// would take the model of 130m's shape on a GPU a millisecond.
void Generator::set_snapshot(const GeneratorSnapshot& snapshot) {
  const GeneratorSnapshot::Content& content = snapshot.content();
  Ids recent = content.recent;  // what may run out of memory comes first
  SamplingOptions options = content.options;
  TextStream text(content.held);
  std::string after_stop = content.after_stop;
  const Tensor draws = Tensor::from<std::int32_t>({content.draws}, {1});
  Tensor seen = Tensor::zeros(slot().seen().shape(), DType::i32);
  for (const std::int32_t id : content.seen) seen.data<std::int32_t>()[id] = 1;

  slot().set_options(content.options);
  set_state(content.state, content.logits);
  copy(draws, slot().draws(), stream());
  copy(seen, slot().seen(), stream());
  stream().synchronize();
  options_ = std::move(options);
  recent_ = std::move(recent);
  text_ = std::move(text);
  after_stop_ = std::move(after_stop);
  tokens_seen_ = content.tokens_seen;
  pending_ = false;
  lent_ = false;
}

}  // namespace mamba
