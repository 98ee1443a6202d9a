#include <mamba/checkpoint.hpp>

#include <fmt/format.h>

#include <set>

#include <mamba/safetensors.hpp>

#include "host/core/finished.hpp"
#include "host/core/hash.hpp"
#include "host/core/json.hpp"
#include "host/files/state_names.hpp"

namespace mamba {
namespace {

constexpr const char* format_name = "mamba.cpp training";
constexpr const char* version = "1";
constexpr const char* note_prefix = "note.";

void hash_tensor(Hash& hash, const std::string& name, const Tensor& host) {
  hash.add(name);
  hash.add(host.view().data(), host.bytes());
}

// A checkpoint that is open, with its metadata checked.
class TrainingFile {
 public:
  explicit TrainingFile(const std::string& path) : file_(path) {
    expect_text("format", format_name);
    expect_text("version", version);
    for (const auto& [key, value] : file_.metadata()) {
      static const std::set<std::string> known{"format", "version", "hash", "progress"};
      if (key.compare(0, 5, note_prefix) == 0) {
        progress_.notes[key.substr(5)] = value;
      } else if (known.count(key) == 0) {
        refuse(in_quotes(key), "metadata of this version", in_quotes(value));
      }
    }
    read_progress(parse_json(text("progress"), path, "progress"));
  }

  const TrainingProgress& progress() const { return progress_; }
  std::int64_t steps() const { return steps_; }
  std::string path() const { return file_.path(); }

  // The tensor that is to replace `like`.
  Tensor read(const std::string& name, const ConstTensorView& like) {
    const SafetensorsEntry& entry = file_.entry(name);
    const auto dtype = tensor_dtype(entry);
    if (!dtype || *dtype != like.dtype()) refuse(name, name_of(like.dtype()), entry.dtype);
    Tensor tensor = file_.read(entry, like.shape(), like.dtype());
    used_.insert(name);
    hash_tensor(hash_, name, tensor);
    return tensor;
  }

  // After the last read().
  void check_whole() const {
    for (const SafetensorsEntry& entry : file_.entries()) {
      if (used_.count(entry.name) == 0) {
        refuse(entry.name, "no tensor of this name", entry.shape_text());
      }
    }
    expect_text("hash", hash_.text());
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(file_.path(), name, expected, got);
  }

  const std::string& text(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    if (found == file_.metadata().end()) refuse(key, "metadata of this name", "nothing");
    return found->second;
  }
  void expect_text(const std::string& key, const std::string& expected) const {
    if (text(key) != expected) refuse(key, in_quotes(expected), in_quotes(text(key)));
  }

  void read_progress(const Json& json) {
    const auto count = [&](const Json& value, const char* name) {
      if (!value.is_count()) refuse(name, "a whole number", describe(value));
      return value.count();
    };
    const auto field = [&](const char* name) -> const Json& {
      const Json* value = json.find(name);
      if (value == nullptr) refuse(name, "a value", "nothing");
      return *value;
    };
    const auto signed_count = [&](const Json& value, const char* name) {
      const std::uint64_t number = count(value, name);
      if (number > std::uint64_t{1} << 40) refuse(name, "at most 2^40", describe(value));
      return static_cast<std::int64_t>(number);
    };
    steps_ = signed_count(field("steps"), "steps");
    progress_.seed = count(field("seed"), "seed");
    progress_.draws = count(field("draws"), "draws");
    const Json& scale = field("loss_scale");
    const double factor = scale.is_number() ? scale.number() : 0;
    if (!(factor >= LossScale::smallest && factor <= LossScale::largest)) {
      refuse("loss_scale", "1 to 2^24", describe(scale));
    }
    progress_.loss_scale.value = static_cast<float>(factor);
    progress_.loss_scale.good_steps = signed_count(field("good_steps"), "good_steps");
    const Json& positions = field("positions");
    if (!positions.is_array()) refuse("positions", "a list", describe(positions));
    for (const Json& value : positions.elements()) {
      progress_.positions.push_back(signed_count(value, "positions"));
    }
  }

  SafetensorsFile file_;
  TrainingProgress progress_;
  std::int64_t steps_ = 0;
  std::set<std::string> used_;
  Hash hash_;
};

}  // namespace

void save_training(const std::string& path, const AdamW& optimizer, const StackState* carried,
                   const TrainingProgress& progress) {
  for (const std::int64_t position : progress.positions) {
    if (position < 0 || position > std::int64_t{1} << 40) {
      throw ArgumentError("save_training", "positions", "0 to 2^40", fmt::format("{}", position));
    }
  }
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& name, ConstTensorView view) {
    tensors.emplace_back(name, on_host(view));
  };
  optimizer.each_tensor(add);
  if (carried != nullptr) each_in_file(*carried, add);

  Hash hash;
  std::vector<SafetensorsItem> items;
  for (const auto& [name, tensor] : tensors) {
    hash_tensor(hash, name, tensor);
    items.push_back({name, tensor});
  }
  Json json = Json::object();
  json.set("steps", optimizer.steps());
  json.set("seed", progress.seed);
  json.set("draws", progress.draws);
  json.set("loss_scale", progress.loss_scale.value);
  json.set("good_steps", progress.loss_scale.good_steps);
  json.set("positions", Json::Array(progress.positions.begin(), progress.positions.end()));
  std::map<std::string, std::string> metadata{{"format", format_name},
                                              {"version", version},
                                              {"hash", hash.text()},
                                              {"progress", json.dump()}};
  for (const auto& [key, value] : progress.notes) metadata[note_prefix + key] = value;
  save_safetensors(path, items, metadata);
}

TrainingProgress load_training(const std::string& path, AdamW& optimizer, StackState* carried) {
  TrainingFile file(path);
  std::vector<std::pair<TensorView, Tensor>> changes;
  const auto add = [&](const std::string& name, TensorView to) {
    changes.emplace_back(to, file.read(name, to));
  };
  optimizer.each_tensor(add);
  if (carried != nullptr) each_in_file(*carried, add);
  file.check_whole();
  TrainingProgress progress = file.progress();  // takes memory: before anything is changed
  for (const auto& [to, from] : changes) {
    finished(to.device(),
             [&, target = to, &source = from](Stream& stream) { copy(source, target, stream); });
  }
  optimizer.set_steps(file.steps());
  return progress;
}

}  // namespace mamba
