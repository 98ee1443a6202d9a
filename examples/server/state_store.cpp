#include "state_store.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <utility>

#include <mamba/safetensors.hpp>

namespace server {

namespace {

namespace fs = std::filesystem;

constexpr const char* path_name = "path.ids";
constexpr const char* suffix = ".safetensors";
constexpr const char* of =
    "-of-";  // between the ids of a state and of its parent, in a file's name

// Nobody guesses one: 96 random bits.
std::string new_id() {
  std::random_device random;
  std::string id;
  for (int word = 0; word < 3; ++word) {
    std::uint32_t bits = random();
    for (int digit = 0; digit < 8; ++digit, bits >>= 4) id += "0123456789abcdef"[bits & 15];
  }
  return id;
}

bool is_id(const std::string& text) {
  return text.size() == 24 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Ids path_in(const mamba::SafetensorsFile& file) {
  const mamba::SafetensorsEntry& entry = file.entry(path_name);
  if (entry.dtype != "I32" || entry.shape.size() != 1) {
    throw mamba::FormatError("state", file.path(), "path.ids as a list of I32",
                             entry.dtype + " " + entry.shape_text());
  }
  return file.read(entry).to_vector<std::int32_t>();
}

// `snapshot` is what was written; the ids that lie beside it are under the same hash.
KeptText with_path(mamba::GeneratorSnapshot snapshot, const mamba::SafetensorsFile& file) {
  Ids path = path_in(file);
  const auto count = static_cast<std::int64_t>(path.size());
  if (count != snapshot.tokens_seen() || count == 0) {
    throw mamba::FormatError("state", file.path(),
                             "a path of " + std::to_string(snapshot.tokens_seen()) + " tokens",
                             std::to_string(count));
  }
  const std::int64_t vocab = snapshot.logits().dim(1);
  for (const std::int32_t id : path) {
    if (id >= 0 && id < vocab) continue;
    throw mamba::FormatError("state", file.path(), "ids from 0 to " + std::to_string(vocab - 1),
                             std::to_string(id));
  }
  return {std::move(path), std::move(snapshot)};
}

mamba::Tensor path_tensor(const KeptText& text) { return mamba::Tensor::from(text.path); }

KeptText from_file(const std::string& path) {
  mamba::GeneratorSnapshot snapshot = mamba::GeneratorSnapshot::load(path);
  return with_path(std::move(snapshot), mamba::SafetensorsFile(path));
}

}  // namespace

mamba::Bytes to_bytes(const KeptText& text) {
  const mamba::Tensor path = path_tensor(text);
  return text.snapshot.save({{path_name, path}});
}

KeptText from_bytes(mamba::ByteView bytes, const std::string& name) {
  mamba::GeneratorSnapshot snapshot = mamba::GeneratorSnapshot::load(bytes, name);
  return with_path(std::move(snapshot), mamba::SafetensorsFile(bytes, name));
}

std::string hash_in(const mamba::Bytes& bytes) {
  return mamba::SafetensorsFile(mamba::ByteView(bytes)).metadata().at("note.hash");
}

StateStore::StateStore(const mamba::LanguageModel& model, StoreOptions options)
    : model_(model), options_(std::move(options)) {
  if (!options_.folder.empty()) open_folder();
}

// The headers alone are read; what a file holds is checked when it is used.
void StateStore::open_folder() {
  std::error_code error;
  fs::create_directories(options_.folder, error);
  if (!fs::is_directory(options_.folder, error)) {
    throw mamba::Error("states", options_.folder, "a folder", "none, and none can be made");
  }
  std::vector<std::pair<fs::file_time_type, StateEntry>> found;
  for (const auto& file : fs::directory_iterator(options_.folder)) {
    const std::string name = file.path().filename().string();
    const std::size_t end = name.rfind(suffix);
    if (end == std::string::npos || end + std::string(suffix).size() != name.size()) continue;
    StateEntry entry;
    entry.id = name.substr(0, std::min(name.find(of), end));
    if (entry.id.size() < end)
      entry.parent = name.substr(entry.id.size() + 4, end - entry.id.size() - 4);
    if (!is_id(entry.id) || (!entry.parent.empty() && !is_id(entry.parent))) continue;
    try {
      const mamba::SafetensorsFile header(file.path().string());
      const auto fingerprint = header.metadata().find("fingerprint");
      if (fingerprint == header.metadata().end()) continue;
      if (fingerprint->second != model_.fingerprint()) continue;
      const mamba::SafetensorsEntry& path = header.entry(path_name);
      entry.tokens = path.shape.empty() ? 0 : path.shape.front();
    } catch (const mamba::Error& problem) {
      options_.on_problem(problem.what());
      continue;
    }
    entry.bytes = static_cast<std::int64_t>(file.file_size());
    struct stat status = {};
    if (stat(file.path().c_str(), &status) == 0) entry.created = status.st_mtime;
    found.emplace_back(file.last_write_time(), std::move(entry));
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& one : found) insert(std::move(one.second), nullptr);
  make_room();
}

std::string StateStore::path_of(const StateEntry& entry) const {
  const std::string parent = entry.parent.empty() ? "" : of + entry.parent;
  return (fs::path(options_.folder) / (entry.id + parent + suffix)).string();
}

StateEntry StateStore::add(std::shared_ptr<const KeptText> text, const std::string& parent) {
  StateEntry entry{new_id(), parent, static_cast<std::int64_t>(text->path.size()), text->bytes(),
                   now()};
  if (entry.bytes > options_.bytes) throw TooLarge(options_.bytes, entry.bytes);
  if (!options_.folder.empty()) {
    const mamba::Tensor path = path_tensor(*text);
    text->snapshot.save(path_of(entry), {{path_name, path}});
    entry.bytes = static_cast<std::int64_t>(fs::file_size(path_of(entry)));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  insert(entry, std::move(text));
  make_room();
  return entry;
}

void StateStore::insert(StateEntry entry, std::shared_ptr<const KeptText> text) {
  used_.push_front(entry.id);
  bytes_ += entry.bytes;
  const std::string id = entry.id;
  kept_.emplace(id, Kept{std::move(entry), ++numbers_, std::move(text), used_.begin()});
}

void StateStore::make_room() {
  while (bytes_ > options_.bytes && !used_.empty()) erase(kept_.find(used_.back()));
}

void StateStore::erase(std::map<std::string, Kept>::iterator kept) {
  if (!options_.folder.empty()) {
    std::error_code gone;
    fs::remove(path_of(kept->second.entry), gone);
  }
  bytes_ -= kept->second.entry.bytes;
  used_.erase(kept->second.used);
  kept_.erase(kept);
}

std::optional<StateEntry> StateStore::find(const std::string& id) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(id);
  return found == kept_.end() ? std::nullopt : std::optional(found->second.entry);
}

std::shared_ptr<const KeptText> StateStore::get(const std::string& id) {
  std::string path;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = kept_.find(id);
    if (found == kept_.end()) return nullptr;
    used_.splice(used_.begin(), used_, found->second.used);
    if (found->second.text) return found->second.text;
    path = path_of(found->second.entry);
  }
  std::shared_ptr<const KeptText> text;
  try {
    text = std::make_shared<KeptText>(from_file(path));
  } catch (const mamba::Error& error) {
    options_.on_problem(error.what());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(id);
  if (found == kept_.end()) return text;
  if (!text) {
    // The file stays for whoever looks into what happened to it.
    bytes_ -= found->second.entry.bytes;
    used_.erase(found->second.used);
    kept_.erase(found);
    return nullptr;
  }
  found->second.text = text;
  return text;
}

std::shared_ptr<const KeptText> StateStore::in_memory(const std::string& id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(id);
  if (found == kept_.end() || !found->second.text) return nullptr;
  used_.splice(used_.begin(), used_, found->second.used);
  return found->second.text;
}

bool StateStore::remove(const std::string& id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = kept_.find(id);
  if (found == kept_.end()) return false;
  erase(found);
  return true;
}

std::vector<StateEntry> StateStore::list() const {
  std::vector<std::pair<std::uint64_t, StateEntry>> numbered;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, kept] : kept_) numbered.emplace_back(kept.number, kept.entry);
  }
  std::sort(numbered.begin(), numbered.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<StateEntry> entries;
  entries.reserve(numbered.size());
  for (auto& one : numbered) entries.push_back(std::move(one.second));
  return entries;
}

std::int64_t StateStore::count() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<std::int64_t>(kept_.size());
}

std::int64_t StateStore::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

std::optional<StateEntry> StateStore::ancestor(const std::string& id, std::int64_t tokens) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = kept_.find(id);
  // Names of files may say that states are each other's parents.
  for (std::size_t steps = 0; found != kept_.end() && steps < kept_.size(); ++steps) {
    if (found->second.entry.tokens <= tokens) return found->second.entry;
    found = kept_.find(found->second.entry.parent);
  }
  return std::nullopt;
}

}  // namespace server
