#include "host/generate/known_prefix.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <random>
#include <sstream>

#include <mamba/error.hpp>
#include <mamba/state_file.hpp>

#include "host/files/atomic_file.hpp"
#include "host/files/content_hash.hpp"
#include "host/files/folder.hpp"

namespace mamba {

namespace fs = std::filesystem;

namespace {

constexpr const char* suffix = ".prefix";
constexpr const char* note = "prefix";
constexpr const char* ids_name = "prefix.ids";  // files of before, which have no such note
constexpr const char* logits_name = "prefix.logits";

bool same_form(const StackState& a, const StackState& b) {
  const auto same = [](const MambaState& x, const MambaState& y) {
    return std::all_of(std::begin(state_tensors), std::end(state_tensors), [&](const auto& one) {
      const Tensor& mine = x.*one.tensor;
      const Tensor& its = y.*one.tensor;
      return mine.shape() == its.shape() && mine.dtype() == its.dtype();
    });
  };
  return std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(), same);
}

XXH128_hash_t proof_of(const std::int32_t* ids, std::int64_t length, std::uint64_t salt) {
  return XXH3_128bits_withSeed(ids, static_cast<std::size_t>(length) * sizeof(*ids), salt);
}

// Which file has a name: the numbers of its file system and of itself there; none if there is none.
std::optional<std::pair<dev_t, ino_t>> identity(const std::string& path) {
  struct stat found;
  if (stat(path.c_str(), &found) != 0) return std::nullopt;
  return std::pair(found.st_dev, found.st_ino);
}

// Removes a file that was found damaged, but not a good one that another process has put in its
// place since.
void discard(const std::string& path, const std::pair<dev_t, ino_t>& damaged) {
  const std::string aside = path + ".damaged";
  if (std::rename(path.c_str(), aside.c_str()) != 0) return;
  if (identity(aside) != damaged) static_cast<void>(link(aside.c_str(), path.c_str()) == 0);
  unlink(aside.c_str());
}

std::string key_text(const PrefixKey& key) {
  return fmt::format("{}-{}", key.length, text_of(key.hash));
}

// Between the times of a beginning and of what is longer.
constexpr auto step = std::chrono::microseconds(10);
// A file of which somebody made use. It says so in its mode, since to write it again would take the
// time of all its bytes.
constexpr auto used_mark = fs::perms::owner_exec;

// "<length>-<hash>", as path() writes it; false for anything else.
bool parse(const std::string& text, PrefixKey& key) {
  const std::size_t dash = text.find('-');
  if (dash == std::string::npos || text.size() != dash + 1 + 32) return false;
  const auto number = [&](std::size_t from, std::size_t to, int base, auto& value) {
    const auto parsed = std::from_chars(text.data() + from, text.data() + to, value, base);
    return parsed.ec == std::errc() && parsed.ptr == text.data() + to;
  };
  return number(0, dash, 10, key.length) && key.length > 0 &&
         number(dash + 1, dash + 17, 16, key.hash.high64) &&
         number(dash + 17, dash + 33, 16, key.hash.low64);
}

// "<length>-<hash> <salt> <proof>"
bool parse_note(const std::string& text, PrefixKey& key, KnownPrefix& prefix) {
  std::istringstream words(text);
  std::string name, salt, proof;
  if (!(words >> name >> salt >> proof) || !parse(name, key)) return false;
  PrefixKey parsed;
  if (salt.size() != 16 || !parse("1-" + salt + salt, parsed)) return false;
  prefix.salt = parsed.hash.low64;
  if (!parse("1-" + proof, parsed)) return false;
  prefix.proof = parsed.hash;
  return true;
}

}  // namespace

std::vector<PrefixKey> keys_of(const std::vector<std::int32_t>& ids,
                               const std::vector<std::int64_t>& lengths) {
  std::vector<PrefixKey> keys;
  Hash hash;
  std::int64_t done = 0;
  for (const std::int64_t length : lengths) {
    hash.add(ids.data() + done, (length - done) * static_cast<std::int64_t>(sizeof(ids[0])));
    done = length;
    keys.push_back({length, hash.get()});
  }
  return keys;
}

void KnownPrefix::prove(const std::int32_t* ids, std::int64_t length) {
  std::random_device random;
  salt = std::uint64_t{random()} << 32 | random();
  proof = proof_of(ids, length, salt);
}

bool KnownPrefix::begins(const std::vector<std::int32_t>& ids, std::int64_t length) const {
  return length <= static_cast<std::int64_t>(ids.size()) &&
         XXH128_isEqual(proof, proof_of(ids.data(), length, salt)) != 0;
}

std::int64_t KnownPrefix::bytes() const {
  return state.bytes() + logits.bytes() + static_cast<std::int64_t>(sizeof salt + sizeof proof);
}

PrefixFiles::PrefixFiles(const LanguageModel& model, std::string folder)
    : model_(model), folder_(std::move(folder)), fingerprint_(model.fingerprint()) {
  make_folder("StateCache", folder_);
  remove_stale_temporaries(folder_);
}

std::string PrefixFiles::path(const PrefixKey& key) const {
  const std::string name =
      fmt::format("{}-{}-{}{}", fingerprint_, name_of(model_.dtype()), key_text(key), suffix);
  return (fs::path(folder_) / name).string();
}

std::vector<PrefixFiles::Found> PrefixFiles::list() const {
  const std::string prefix = fmt::format("{}-{}-", fingerprint_, name_of(model_.dtype()));
  std::vector<std::pair<fs::file_time_type, Found>> found;
  each_entry(folder_, [&](const fs::directory_entry& entry) {
    const std::string name = entry.path().filename().string();
    const std::size_t middle = prefix.size() + std::string(suffix).size();
    Found file{};
    if (name.size() <= middle || name.compare(0, prefix.size(), prefix) != 0 ||
        name.compare(name.size() - std::string(suffix).size(), std::string::npos, suffix) != 0 ||
        !parse(name.substr(prefix.size(), name.size() - middle), file.key)) {
      return;
    }
    std::error_code error;  // another process may have removed it
    const auto size = entry.file_size(error);
    if (error) return;
    const auto time = entry.last_write_time(error);
    if (error) return;
    file.proven = (entry.status(error).permissions() & used_mark) != fs::perms::none;
    file.bytes = static_cast<std::int64_t>(size);
    found.emplace_back(time, file);
  });
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    if (a.first != b.first) return a.first < b.first;
    return a.second.key.length > b.second.key.length;  // times of a file system may be coarse
  });
  std::vector<Found> files;
  files.reserve(found.size());
  for (const auto& [time, file] : found) files.push_back(file);
  return files;
}

std::int64_t PrefixFiles::write(const PrefixKey& key, const KnownPrefix& prefix,
                                const PrefixKey* parent) const {
  StateMetadata metadata;
  metadata.fingerprint = fingerprint_;
  metadata.tokens_seen = {key.length};
  metadata.notes[note] =
      fmt::format("{} {:016x} {}", key_text(key), prefix.salt, text_of(prefix.proof));
  const StateExtras extras{{logits_name, prefix.logits}};
  seal(prefix.state, metadata, extras);
  save(path(key), prefix.state, metadata, extras);
  std::error_code gone;  // by another thread or process that had no room for it
  if (parent != nullptr) {
    const auto used = fs::last_write_time(path(*parent), gone);
    if (!gone) fs::last_write_time(path(key), used - step, gone);
  }
  const auto size = fs::file_size(path(key), gone);
  return gone ? prefix.bytes() : static_cast<std::int64_t>(size);
}

std::shared_ptr<const KnownPrefix> PrefixFiles::read(const PrefixKey& key) const {
  const std::string file = path(key);
  constexpr int attempts = 10;
  for (int attempt = 1;; ++attempt) {
    const auto before = identity(file);
    if (!before) return nullptr;
    try {
      return read_whole(file, key);
    } catch (const FormatError&) {
      if (identity(file) == before) {
        discard(file, *before);
        throw;
      }
    } catch (const Error&) {
      if (identity(file) == before) throw;
    }
    // Another process has removed or replaced it while it was read.
    if (attempt == attempts) return nullptr;
  }
}

std::shared_ptr<const KnownPrefix> PrefixFiles::read_whole(const std::string& file,
                                                           const PrefixKey& key) const {
  SavedState saved = load_state(file);
  check_seal("StateCache", file, saved);
  const auto ids = saved.extras.find(ids_name);
  const auto logits = saved.extras.find(logits_name);
  const auto noted = saved.metadata.notes.find(note);
  const bool older = noted == saved.metadata.notes.end();
  if (logits == saved.extras.end() || logits->second.dtype() != DType::f32 ||
      logits->second.shape() != Shape{1, model_.config().vocab_size} ||
      (older && (ids == saved.extras.end() || ids->second.dtype() != DType::i32))) {
    throw FormatError("StateCache", file, "a known prefix", "a state without one");
  }
  auto prefix = std::make_shared<KnownPrefix>();
  PrefixKey named;
  if (older) {
    const auto* first = ids->second.data<std::int32_t>();
    const std::vector<std::int32_t> list(first, first + ids->second.count());
    named = keys_of(list, {static_cast<std::int64_t>(list.size())}).front();
    prefix->prove(first, named.length);
  } else if (!parse_note(noted->second, named, *prefix)) {
    throw FormatError("StateCache", file, "a known prefix", "\"" + noted->second + "\"");
  }
  prefix->logits = std::move(logits->second);
  prefix->state = std::move(saved.state);
  if (!same_form(prefix->state,
                 StackState(model_.config().layer, model_.config().n_layer, 1, model_.dtype()))) {
    throw FormatError("StateCache", file, "a state of this model", "one of other shapes");
  }
  if (key_text(named) != key_text(key) || saved.metadata.fingerprint != fingerprint_) {
    throw FormatError("StateCache", file, "the prefix that its name says", "another");
  }
  return prefix;
}

void PrefixFiles::mark_used(const std::vector<PrefixKey>& keys) const {
  auto time = fs::file_time_type::clock::now();
  for (const PrefixKey& key : keys) {
    std::error_code ignored;  // another process has removed it
    fs::last_write_time(path(key), time, ignored);
    time -= step;
  }
  std::error_code ignored;
  if (!keys.empty()) {
    fs::permissions(path(keys.back()), used_mark, fs::perm_options::add, ignored);
  }
}

void PrefixFiles::remove(const PrefixKey& key) const {
  std::error_code ignored;
  fs::remove(path(key), ignored);
}

}  // namespace mamba
