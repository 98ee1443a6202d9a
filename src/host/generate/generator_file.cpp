// A generation as a state file, or as its bytes, and on again.
#include <mamba/generator.hpp>

#include <fmt/format.h>

#include <limits>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/state_file.hpp>

#include "host/core/json.hpp"
#include "host/files/content_hash.hpp"
#include "host/generate/generator_slots.hpp"
#include "host/generate/snapshot_content.hpp"

namespace mamba {

namespace {

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
// the last token holds after a stop string. It is written only where there is any, and so are a
// bias and what is allowed, so that a file without them is as before there were such things.
std::string to_note(const SamplingOptions& options, std::int32_t draws, const std::string& held,
                    const std::string& after_stop) {
  Json json = Json::object();
  if (!after_stop.empty()) json.set("after_stop", byte_list(after_stop));
  if (!options.allowed.empty()) {
    json.set("allowed", Json::Array(options.allowed.begin(), options.allowed.end()));
  }
  json.set("draws", draws);
  json.set("held", byte_list(held));
  if (!options.logit_bias.empty()) {
    Json::Array pairs;
    for (const auto& [id, value] : options.logit_bias) pairs.push_back(Json::Array{id, value});
    json.set("logit_bias", std::move(pairs));
  }
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
  Note(const char* where, const std::string& path, const std::string& text)
      : where_(where), path_(path), json_(parse_json(text, path, note)) {}

  Sampling read() const {
    Sampling sampling;
    SamplingOptions& options = sampling.options;
    options.temperature = number("temperature");
    options.top_k = count<std::int64_t>("top_k");
    options.top_p = number("top_p");
    options.min_p = number("min_p");
    options.repetition_penalty = number("repetition_penalty");
    options.seed = count<std::uint64_t>("seed");
    if (json_.find("allowed") != nullptr) options.allowed = allowed();
    if (json_.find("logit_bias") != nullptr) options.logit_bias = logit_bias();
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
    throw FormatError(where_, path_, "sampling options as saved", got);
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

  std::int32_t id(const Json& value, const char* name) const {
    if (!value.is_count() || value.count() > INT32_MAX) refuse(describe(value) + " in " + name);
    return static_cast<std::int32_t>(value.count());
  }

  const Json::Array& list(const char* name) const {
    const Json& value = field(name);
    if (!value.is_array()) refuse(describe(value) + " for " + name);
    return value.elements();
  }

  std::vector<std::int32_t> allowed() const {
    std::vector<std::int32_t> ids;
    for (const Json& value : list("allowed")) ids.push_back(id(value, "allowed"));
    return ids;
  }

  std::map<std::int32_t, float> logit_bias() const {
    std::map<std::int32_t, float> bias;
    for (const Json& pair : list("logit_bias")) {
      if (!pair.is_array() || pair.elements().size() != 2 || !pair.elements()[1].is_number()) {
        refuse(describe(pair) + " in logit_bias");
      }
      const auto value = static_cast<float>(pair.elements()[1].number());
      bias[id(pair.elements()[0], "logit_bias")] = value;
    }
    return bias;
  }

  std::string bytes(const char* name) const {
    std::string result;
    for (const Json& byte : list(name)) {
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

  const char* where_;
  const std::string& path_;
  Json json_;
};

const Tensor& extra(const char* where, const std::string& path, const SavedState& saved,
                    const char* name, DType dtype) {
  const auto found = saved.extras.find(name);
  if (found == saved.extras.end() || found->second.dtype() != dtype) {
    throw FormatError(where, path, std::string("a saved generation with ") + name, "none");
  }
  return found->second;
}

// What is written, in host memory. `extras` are views of the tensors here.
struct Saved {
  Tensor seen, recent;
  StateMetadata metadata;
  StateExtras extras;

  template <class Content>
  Saved(const Content& content, const StateExtras& more)
      : seen(id_list(content.seen)), recent(id_list(content.recent)), extras(more) {
    for (const auto& [name, view] : more) {
      const bool reserved = name.rfind("layers.", 0) == 0 || name.rfind("generator.", 0) == 0;
      if (reserved || view.device().is_cuda()) {
        throw ArgumentError("GeneratorSnapshot::save", name,
                            reserved ? "names of the caller's own" : "a tensor on the CPU",
                            reserved ? "one of a state's tensors" : view.device().name());
      }
    }
    metadata.fingerprint = content.fingerprint;
    metadata.tokens_seen = {content.tokens_seen};
    metadata.notes[note] =
        to_note(content.options, content.draws, content.held, content.after_stop);
    extras[logits_name] = content.logits;
    extras[seen_name] = seen;
    extras[recent_name] = recent;
    seal(content.state, metadata, extras);
  }
};

}  // namespace

void GeneratorSnapshot::save(const std::string& path, const StateExtras& extras) const {
  const GeneratorSnapshot host = to(Device::cpu());
  const Saved saved(host.content(), extras);
  mamba::save(path, host.state(), saved.metadata, saved.extras);
}

Bytes GeneratorSnapshot::save(const StateExtras& extras) const {
  const GeneratorSnapshot host = to(Device::cpu());
  const Saved saved(host.content(), extras);
  return mamba::save(host.state(), saved.metadata, saved.extras);
}

void Generator::save(const std::string& path) { snapshot().save(path); }

// ---- loading ----------------------------------------------------------------------------------

GeneratorSnapshot::Content GeneratorSnapshot::Content::read(const char* where,
                                                            const std::string& path,
                                                            SavedState saved) {
  if (saved.metadata.notes.count(note) == 0 || saved.metadata.tokens_seen.size() != 1) {
    throw FormatError(where, path, "a saved generation of one sequence", "a bare state");
  }
  Sampling sampling = Note(where, path, saved.metadata.notes.at(note)).read();
  extra(where, path, saved, logits_name, DType::f32);
  Content content;
  content.recent = extra(where, path, saved, recent_name, DType::i32).to_vector<std::int32_t>();
  content.seen = extra(where, path, saved, seen_name, DType::i32).to_vector<std::int32_t>();
  if (content.recent.size() > Generator::longest_stop) {
    throw FormatError(where, path, fmt::format("at most {} recent tokens", Generator::longest_stop),
                      fmt::format("{}", content.recent.size()));
  }
  check_seal(where, path, saved);

  content.fingerprint = saved.metadata.fingerprint;
  content.state = std::move(saved.state);
  content.logits = std::move(saved.extras.at(logits_name));
  content.options = sampling.options;
  content.draws = sampling.draws;
  content.held = std::move(sampling.held);
  content.after_stop = std::move(sampling.after_stop);
  content.tokens_seen = saved.metadata.tokens_seen.front();
  return content;
}

GeneratorSnapshot GeneratorSnapshot::load(const std::string& path) {
  return GeneratorSnapshot(
      std::make_shared<Content>(Content::read("GeneratorSnapshot::load", path, load_state(path))));
}

GeneratorSnapshot GeneratorSnapshot::load(ByteView bytes, const std::string& name) {
  return GeneratorSnapshot(std::make_shared<Content>(
      Content::read("GeneratorSnapshot::load", name, load_state(bytes, Device::cpu(), name))));
}

Generator Generator::restore(const std::string& path, std::unique_ptr<GeneratorSlot> slot) {
  constexpr const char* where = "Generator::restore";
  const auto refuse = [&](const std::optional<Misfit>& misfit) {
    if (misfit) throw FormatError(where, path, misfit->expected, misfit->got);
  };
  const LanguageModel& model = *slot->slots->model;
  SavedState saved = load_state(path);
  refuse(misfit_of(saved.metadata.fingerprint, model));
  const GeneratorSnapshot snapshot(std::make_shared<GeneratorSnapshot::Content>(
      GeneratorSnapshot::Content::read(where, path, std::move(saved))));
  refuse(snapshot.content().misfit(where, model));
  Generator generator(std::move(slot), snapshot.options());
  generator.set_snapshot(snapshot);
  return generator;
}

Generator Generator::restore(const std::string& path, const LanguageModel& model, Stream& stream) {
  return GeneratorPool(model, 1, stream).restore(path);
}

Generator Generator::restore(const std::string& path, const LanguageModel& model) {
  return GeneratorPool(model, 1).restore(path);
}

}  // namespace mamba
