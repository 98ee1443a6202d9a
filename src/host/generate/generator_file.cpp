// Generator::save and restore: a generation on disk, and on again.
#include <mamba/generator.hpp>

#include <fmt/format.h>

#include <limits>

#include <mamba/check.hpp>
#include <mamba/state_file.hpp>

#include "host/core/finished.hpp"
#include "host/core/json.hpp"
#include "host/files/content_hash.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

namespace {

constexpr const char* where = "Generator::restore";
constexpr const char* note = "generator";
constexpr const char* logits_name = "generator.logits";
constexpr const char* seen_name = "generator.seen";
constexpr const char* recent_name = "generator.recent";

Tensor id_list(const std::vector<std::int32_t>& ids) {
  return Tensor::from(ids, {static_cast<std::int64_t>(ids.size())});
}

Json::Array byte_list(const std::string& text) {
  Json::Array bytes;
  for (const char byte : text) bytes.push_back(static_cast<unsigned char>(byte));
  return bytes;
}

// What is not a tensor. `held`: the bytes of a character that has only begun. `after_stop`: what
// the last token holds after a stop string; only where there is any, so that a file without it is
// as before there was such a thing.
std::string to_note(const SamplingOptions& options, std::int32_t draws, const std::string& held,
                    const std::string& after_stop) {
  Json json = Json::object();
  if (!after_stop.empty()) json.set("after_stop", byte_list(after_stop));
  json.set("draws", draws);
  json.set("held", byte_list(held));
  json.set("min_p", options.min_p);
  json.set("repetition_penalty", options.repetition_penalty);
  json.set("seed", options.seed);
  json.set("temperature", options.temperature);
  json.set("top_k", options.top_k);
  json.set("top_p", options.top_p);
  return json.dump();
}

struct Sampling {
  SamplingOptions options;
  std::int32_t draws = 0;
  std::string held;
  std::string after_stop;
};

class Note {
 public:
  Note(const std::string& path, const std::string& text)
      : path_(path), json_(parse_json(text, path, note)) {}

  Sampling read() const {
    Sampling sampling;
    SamplingOptions& options = sampling.options;
    options.temperature = number("temperature");
    options.top_k = count<std::int64_t>("top_k");
    options.top_p = number("top_p");
    options.min_p = number("min_p");
    options.repetition_penalty = number("repetition_penalty");
    options.seed = count<std::uint64_t>("seed");
    sampling.draws = count<std::int32_t>("draws");
    sampling.held = held();
    if (json_.find("after_stop") != nullptr) sampling.after_stop = bytes("after_stop");
    try {
      options.check();
    } catch (const ArgumentError& error) {
      refuse(error.what());
    }
    return sampling;
  }

 private:
  [[noreturn]] void refuse(const std::string& got) const {
    throw FormatError(where, path_, "sampling options as saved", got);
  }

  const Json& field(const char* name) const {
    const Json* found = json_.find(name);
    if (found == nullptr) refuse(std::string("none called ") + name);
    return *found;
  }

  float number(const char* name) const {
    const Json& value = field(name);
    if (!value.is_number()) refuse(describe(value) + " for " + name);
    return static_cast<float>(value.number());
  }

  template <class Integer>
  Integer count(const char* name) const {
    constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<Integer>::max());
    const Json& value = field(name);
    if (!value.is_count() || value.count() > largest) refuse(describe(value) + " for " + name);
    return static_cast<Integer>(value.count());
  }

  std::string bytes(const char* name) const {
    const Json& list = field(name);
    std::string result;
    if (!list.is_array()) refuse(describe(list) + " for " + name);
    for (const Json& byte : list.elements()) {
      if (!byte.is_count() || byte.count() > 0xFF) refuse(describe(byte) + " in " + name);
      result.push_back(static_cast<char>(byte.count()));
    }
    return result;
  }

  // The beginning of a character.
  std::string held() const {
    const std::string result = bytes("held");
    if (result.size() > 3 || !TextStream().push(result).empty()) {
      refuse("held bytes that begin no character");
    }
    return result;
  }

  const std::string& path_;
  Json json_;
};

// The file is a generation of one sequence, by this model, loaded in the dtype it was saved from.
void check_saved(const std::string& path, const StateMetadata& metadata, const StackState& state,
                 const LanguageModel& model) {
  const std::string fingerprint = model.fingerprint();
  if (metadata.fingerprint != fingerprint) {
    throw FormatError(where, path, "a state of this model (" + fingerprint + ")",
                      metadata.fingerprint.empty()
                          ? "a state of no stated model"
                          : "one of another (" + metadata.fingerprint + ")");
  }
  if (metadata.notes.count(note) == 0 || metadata.tokens_seen.size() != 1) {
    throw FormatError(where, path, "a saved generation of one sequence", "a bare state");
  }
  try {
    check_state(where, model.stack(), state, 1);
  } catch (const ArgumentError& error) {
    throw FormatError(where, path,
                      fmt::format("a state of this model in {}", name_of(model.dtype())),
                      error.what());
  }
}

const Tensor& extra(const std::string& path, const SavedState& saved, const char* name,
                    DType dtype) {
  const auto found = saved.extras.find(name);
  if (found == saved.extras.end() || found->second.dtype() != dtype) {
    throw FormatError(where, path, std::string("a saved generation with ") + name, "none");
  }
  return found->second;
}

std::vector<std::int32_t> ids(const std::string& path, const SavedState& saved, const char* name,
                              std::int64_t vocab) {
  const Tensor& list = extra(path, saved, name, DType::i32);
  std::vector<std::int32_t> result;
  for (std::int64_t i = 0; i < list.count(); ++i) {
    result.push_back(list.data<std::int32_t>()[i]);
    if (result.back() < 0 || result.back() >= vocab) {
      throw FormatError(where, path, fmt::format("token ids 0 to {}", vocab - 1),
                        fmt::format("{}", result.back()));
    }
  }
  return result;
}

}  // namespace

void Generator::save(const std::string& path) {
  const StackState state = this->state().to(Device::cpu(), model().dtype(), stream());
  std::vector<std::int32_t> seen;
  const Tensor host_seen = on_host(slot().seen(), stream());
  const auto* flags = host_seen.data<std::int32_t>();
  for (std::int32_t id = 0; id < model().config().vocab_size; ++id) {
    if (flags[id] != 0) seen.push_back(id);
  }
  const Tensor seen_list = id_list(seen);
  const Tensor recent_list = id_list(recent_);
  const Tensor host_logits = on_host(slot().logits(), stream());
  StateMetadata metadata;
  metadata.fingerprint = model().fingerprint();
  metadata.tokens_seen = {tokens_seen_};
  metadata.notes[note] = to_note(options_, *on_host(slot().draws(), stream()).data<std::int32_t>(),
                                 text_.held(), after_stop_);
  const StateExtras extras{
      {logits_name, host_logits}, {seen_name, seen_list}, {recent_name, recent_list}};
  seal(state, metadata, extras);
  mamba::save(path, state, metadata, extras);
}

Generator Generator::restore(const std::string& path, std::unique_ptr<GeneratorSlot> slot) {
  const LanguageModel& model = *slot->slots->model;
  const SavedState saved = load_state(path);
  const StackState state = saved.state.to(model.device(), saved.state.layers.front().conv.dtype());
  check_saved(path, saved.metadata, state, model);
  const Sampling sampling = Note(path, saved.metadata.notes.at(note)).read();
  const std::int64_t vocab = model.config().vocab_size;
  const Tensor& logits = extra(path, saved, logits_name, DType::f32);
  if (logits.shape() != Shape{1, vocab}) {
    throw FormatError(where, path, fmt::format("{} [1, {}]", logits_name, vocab),
                      logits.shape().to_string());
  }
  const std::vector<std::int32_t> recent = ids(path, saved, recent_name, vocab);
  const std::vector<std::int32_t> seen = ids(path, saved, seen_name, vocab);
  check_seal(where, path, saved);

  Generator generator(std::move(slot), sampling.options);
  generator.recent_ = recent;
  const Tensor device_logits = logits.to(model.device());
  generator.put(state, device_logits);
  generator.mark_seen(seen);
  const Tensor draws = Tensor::from<std::int32_t>({sampling.draws}, {1});
  copy(draws, generator.slot().draws(), generator.stream());
  generator.stream().synchronize();
  generator.text_ = TextStream(sampling.held);
  generator.after_stop_ = sampling.after_stop;
  generator.tokens_seen_ = saved.metadata.tokens_seen.front();
  return generator;
}

Generator Generator::restore(const std::string& path, const LanguageModel& model, Stream& stream) {
  return GeneratorPool(model, 1, stream).restore(path);
}

Generator Generator::restore(const std::string& path, const LanguageModel& model) {
  return GeneratorPool(model, 1).restore(path);
}

}  // namespace mamba
