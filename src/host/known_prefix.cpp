#include "host/known_prefix.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include <mamba/error.hpp>
#include <mamba/state_file.hpp>

#include "host/atomic_file.hpp"
#include "host/content_hash.hpp"
#include "host/folder.hpp"

namespace mamba {

namespace fs = std::filesystem;

namespace {

constexpr const char* suffix = ".prefix";
constexpr const char* ids_name = "prefix.ids";
constexpr const char* logits_name = "prefix.logits";

bool same_form(const StackState& a, const StackState& b) {
  return std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(),
                    [](const MambaState& x, const MambaState& y) {
                      return x.conv.shape() == y.conv.shape() && x.ssm.shape() == y.ssm.shape() &&
                             x.conv.dtype() == y.conv.dtype();
                    });
}

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

std::int64_t KnownPrefix::bytes() const {
  return state.bytes() + logits.bytes() + static_cast<std::int64_t>(ids.size() * sizeof(ids[0]));
}

PrefixFiles::PrefixFiles(const LanguageModel& model, std::string folder)
    : model_(model), folder_(std::move(folder)), fingerprint_(model.fingerprint()) {
  make_folder("StateCache", folder_);
  remove_stale_temporaries(folder_);
}

std::string PrefixFiles::path(const PrefixKey& key) const {
  const std::string name = fmt::format("{}-{}-{}-{}{}", fingerprint_, name_of(model_.dtype()),
                                       key.length, text_of(key.hash), suffix);
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
    file.bytes = static_cast<std::int64_t>(size);
    found.emplace_back(time, file);
  });
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Found> files;
  for (const auto& [time, file] : found) files.push_back(file);
  return files;
}

std::int64_t PrefixFiles::write(const PrefixKey& key, const KnownPrefix& prefix) const {
  StateMetadata metadata;
  metadata.fingerprint = fingerprint_;
  metadata.tokens_seen = {key.length};
  const Tensor ids = Tensor::from(prefix.ids, {key.length});
  const StateExtras extras{{ids_name, ids}, {logits_name, prefix.logits}};
  seal(prefix.state, metadata, extras);
  save(path(key), prefix.state, metadata, extras);
  std::error_code gone;  // by another thread or process that had no room for it
  const auto size = fs::file_size(path(key), gone);
  return gone ? prefix.bytes() : static_cast<std::int64_t>(size);
}

std::shared_ptr<const KnownPrefix> PrefixFiles::read(const PrefixKey& key) const {
  const std::string file = path(key);
  std::error_code ignored;
  SavedState saved;
  try {
    saved = load_state(file);
  } catch (const Error&) {
    if (!fs::exists(file, ignored)) return nullptr;
    throw;
  }
  check_seal("StateCache", file, saved);
  const auto ids = saved.extras.find(ids_name);
  const auto logits = saved.extras.find(logits_name);
  if (ids == saved.extras.end() || logits == saved.extras.end() ||
      ids->second.dtype() != DType::i32 || logits->second.dtype() != DType::f32 ||
      logits->second.shape() != Shape{1, model_.config().vocab_size}) {
    throw FormatError("StateCache", file, "a known prefix", "a state without one");
  }
  auto prefix = std::make_shared<KnownPrefix>();
  const auto* first = ids->second.data<std::int32_t>();
  prefix->ids.assign(first, first + ids->second.count());
  prefix->logits = std::move(logits->second);
  prefix->state = std::move(saved.state);
  if (!same_form(prefix->state,
                 StackState(model_.config().layer, model_.config().n_layer, 1, model_.dtype()))) {
    throw FormatError("StateCache", file, "a state of this model", "one of other shapes");
  }
  const bool named_so =
      ids->second.count() == key.length &&
      text_of(keys_of(prefix->ids, {key.length}).front().hash) == text_of(key.hash);
  if (!named_so || saved.metadata.fingerprint != fingerprint_) {
    throw FormatError("StateCache", file, "the prefix that its name says", "another");
  }
  fs::last_write_time(file, fs::file_time_type::clock::now(), ignored);  // used, for list()
  return prefix;
}

void PrefixFiles::remove(const PrefixKey& key) const {
  std::error_code ignored;
  fs::remove(path(key), ignored);
}

}  // namespace mamba
