// Three places, each a list in the order of use; what falls out of one goes to the next. The lock
// is held only while lists change: copies between devices and files are made without it, so a
// prefix that is on its way down is not found for that moment, which costs time and nothing else.
#include <mamba/state_cache.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include <mamba/check.hpp>

#include "host/generate/known_prefix.hpp"

namespace mamba {
namespace {

using Ids = Generator::Ids;

enum Place { on_device, on_host, on_disk, nowhere };

struct Entry {
  PrefixKey key;
  std::shared_ptr<const KnownPrefix> prefix;  // none on disk
  std::int64_t bytes = 0;
  bool proven = false;  // somebody has made use of it
  // The longest beginning that was known when this was kept.
  std::optional<PrefixKey> parent;
};

}  // namespace

struct StateCache::Impl {
  struct Known {
    Place place = nowhere;
    std::shared_ptr<const KnownPrefix> prefix;
  };
  using List = std::list<Entry>;

  const LanguageModel& model;
  CacheOptions options;
  std::array<std::int64_t, 3> limits{};
  std::optional<PrefixFiles> files;

  mutable std::mutex mutex;               // of everything below
  std::array<std::list<Entry>, 3> lists;  // last used first
  std::array<std::map<PrefixKey, std::list<Entry>::iterator>, 3> indices;
  std::array<std::int64_t, 3> bytes{}, proven_bytes{};
  CacheCounts counts;

  Impl(const LanguageModel& of, CacheOptions with) : model(of), options(std::move(with)) {
    constexpr const char* where = "StateCache";
    check::range(where, "device_bytes", options.device_bytes, 0, INT64_MAX);
    check::range(where, "host_bytes", options.host_bytes, 0, INT64_MAX);
    check::range(where, "disk_bytes", options.disk_bytes, 0, INT64_MAX);
    check::range(where, "keep_every", options.keep_every, 1, INT64_MAX);
    if ((options.disk_bytes > 0) == options.folder.empty()) {
      throw ArgumentError(where, "folder", "one where disk_bytes is above 0, and only there",
                          options.folder.empty() ? "none" : options.folder);
    }
    limits = {options.device_bytes, options.host_bytes, options.disk_bytes};
    if (!model.device().is_cuda()) {  // its memory is the host's
      limits[on_host] += std::min(limits[on_device], INT64_MAX - limits[on_host]);
      limits[on_device] = 0;
    }
    if (options.folder.empty()) return;
    files.emplace(model, options.folder);
    for (const PrefixFiles::Found& file : files->list()) {
      drop(put({file.key, nullptr, file.bytes, file.proven, std::nullopt}, on_disk));
    }
  }

  void report(const std::string& problem) const {
    if (options.on_problem) options.on_problem(problem);
  }

  // ---- lists ----

  void count(const Entry& entry, Place place, std::int64_t sign) {
    bytes[place] += sign * entry.bytes;
    if (entry.proven) proven_bytes[place] += sign * entry.bytes;
  }

  void forget_locked(const PrefixKey& key, Place place) {
    const auto found = indices[place].find(key);
    if (found == indices[place].end()) return;
    count(*found->second, place, -1);
    lists[place].erase(found->second);
    indices[place].erase(found);
  }

  void forget(const PrefixKey& key, Place place) {
    const std::lock_guard<std::mutex> lock(mutex);
    forget_locked(key, place);
  }

  // Who goes where there is no room: of those that nobody has made use of, the one that was not
  // used for longest, so that a long prompt, which is read once, does not push out the beginnings
  // that others share. What was made use of may take three quarters, so that there is room for the
  // new.
  List::iterator victim(Place place) {
    const bool of_proven = proven_bytes[place] > limits[place] / 4 * 3;
    List& list = lists[place];
    for (auto entry = list.end(); entry != list.begin();) {
      --entry;
      if (entry->proven == of_proven) return entry;
    }
    return std::prev(list.end());
  }

  // Puts an entry in front of a list, or behind its beginning: of one text, what is longer goes
  // first. Returns what there is no room for any more, perhaps the entry itself. Takes all memory
  // it needs before it changes a list.
  List put(const Entry& entry, Place place) {
    List in{entry};
    if (entry.bytes > limits[place]) return in;
    const std::lock_guard<std::mutex> lock(mutex);
    List& list = lists[place];
    const auto [indexed, is_new] = indices[place].try_emplace(entry.key);
    if (!is_new) {
      in.front().proven = entry.proven || indexed->second->proven;
      count(*indexed->second, place, -1);
      list.erase(indexed->second);
    }
    indexed->second = in.begin();
    auto before = list.begin();
    if (entry.parent) {
      const auto parent = indices[place].find(*entry.parent);
      if (parent != indices[place].end()) before = std::next(parent->second);
    }
    list.splice(before, in);
    count(*indexed->second, place, 1);
    List out;
    while (bytes[place] > limits[place]) {
      const auto gone = victim(place);
      count(*gone, place, -1);
      indices[place].erase(gone->key);
      out.splice(out.end(), list, gone);
    }
    return out;
  }

  // As last used, wherever they are, the first of them last of all; and the last as what has been
  // made use of. `keys`: beginnings of one text, which ascend.
  void refresh(const std::vector<PrefixKey>& keys) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
      for (const Place place : {on_device, on_host, on_disk}) {
        const auto found = indices[place].find(*key);
        if (found == indices[place].end()) continue;
        Entry& entry = *found->second;
        if (key == keys.rbegin() && !entry.proven) {
          entry.proven = true;
          proven_bytes[place] += entry.bytes;
        }
        lists[place].splice(lists[place].begin(), lists[place], found->second);
      }
    }
  }

  // As last used there; whether it is there at all.
  bool touch(const PrefixKey& key, Place place) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = indices[place].find(key);
    if (found == indices[place].end()) return false;
    lists[place].splice(lists[place].begin(), lists[place], found->second);
    return true;
  }

  // ---- places ----

  // Remembers an entry at `place` or, where it cannot be, further down; what it displaces likewise.
  void settle(const Entry& entry, Place place) {
    if (place == on_disk) {
      write(entry);
    } else {
      const bool moves = place == on_host && entry.prefix->logits.device().is_cuda();
      for (const Entry& out : put(moves ? at(entry, Device::cpu()) : entry, place)) {
        settle(out, static_cast<Place>(place + 1));
      }
    }
  }

  Entry at(const Entry& entry, Device device) const {
    auto moved = std::make_shared<KnownPrefix>();
    moved->salt = entry.prefix->salt;
    moved->proof = entry.prefix->proof;
    moved->state = entry.prefix->state.to(device, model.dtype());
    moved->logits = entry.prefix->logits.to(device);
    return {entry.key, moved, entry.bytes, entry.proven, entry.parent};
  }

  void write(const Entry& entry) {
    if (!files || entry.bytes > limits[on_disk] || touch(entry.key, on_disk)) return;
    try {
      const std::int64_t size =
          files->write(entry.key, *entry.prefix, entry.parent ? &*entry.parent : nullptr);
      if (entry.proven) files->mark_used({entry.key});
      drop(put({entry.key, nullptr, size, entry.proven, entry.parent}, on_disk));
    } catch (const Error& error) {
      report(error.what());
    }
  }

  void drop(const std::list<Entry>& entries) const {
    for (const Entry& entry : entries) files->remove(entry.key);
  }

  Place top() const { return limits[on_device] > 0 ? on_device : on_host; }

  // ---- finding ----

  // Those of `keys` that have files.
  std::vector<PrefixKey> on_files(const std::vector<PrefixKey>& keys) const {
    const std::lock_guard<std::mutex> lock(mutex);
    std::vector<PrefixKey> found;
    for (const PrefixKey& key : keys) {
      if (indices[on_disk].count(key) > 0) found.push_back(key);
    }
    return found;
  }

  // Of `keys`, those that are known anywhere.
  std::vector<PrefixKey> known(const std::vector<PrefixKey>& keys) const {
    const std::lock_guard<std::mutex> lock(mutex);
    std::vector<PrefixKey> found;
    for (const PrefixKey& key : keys) {
      const bool any = std::any_of(indices.begin(), indices.end(),
                                   [&](const auto& index) { return index.count(key) > 0; });
      if (any) found.push_back(key);
    }
    return found;
  }

  // What may be a known beginning of `ids`, in ascending order.
  std::vector<PrefixKey> candidates(const Ids& ids) const {
    std::set<std::int64_t> lengths;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      for (const auto& index : indices) {
        for (const auto& known : index) {
          if (known.first.length > static_cast<std::int64_t>(ids.size())) break;
          lengths.insert(known.first.length);
        }
      }
    }
    return known(keys_of(ids, {lengths.begin(), lengths.end()}));
  }

  // From wherever it is: nowhere if it is not known, not any more, or damaged.
  Known fetch(const PrefixKey& key) {
    for (const Place place : {on_device, on_host}) {
      if (!touch(key, place)) continue;
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = indices[place].find(key);
      if (found != indices[place].end()) return {place, found->second->prefix};
    }
    if (!touch(key, on_disk)) return {};
    try {
      if (auto prefix = files->read(key)) return {on_disk, std::move(prefix)};
    } catch (const Error& error) {
      report(error.what());
    }
    forget(key, on_disk);  // damaged, or removed by another process
    return {};
  }

  // The last used of what is in memory alone, as much as the folder has room for, is written; the
  // last used comes last, so that the files have that order too.
  void flush() {
    if (!files) return;
    std::vector<Entry> entries;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      std::int64_t sum = 0;
      for (const Place place : {on_device, on_host}) {
        for (const Entry& entry : lists[place]) {
          sum += entry.bytes;
          if (sum > limits[on_disk]) break;
          if (indices[on_disk].count(entry.key) == 0) entries.push_back(entry);
        }
      }
    }
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
      write(entry->prefix->logits.device().is_cuda() ? at(*entry, Device::cpu()) : *entry);
    }
  }

  bool knows(const PrefixKey& key) { return touch(key, on_device) || touch(key, on_host); }
};

StateCache::StateCache(const LanguageModel& model, CacheOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}

StateCache::~StateCache() {
  try {
    impl_->flush();
  } catch (...) {  // no memory, or a callback that throws: what is not written is read again
  }
}

void StateCache::flush() { impl_->flush(); }

std::int64_t StateCache::find(Generator& generator, const Ids& prompt) {
  Impl& cache = *impl_;
  if (&generator.model() != &cache.model) {
    throw ArgumentError("StateCache::find", "generator", "one of the cache's model",
                        "one of another");
  }
  if (generator.tokens_seen() != 0) {
    throw ArgumentError("StateCache::find", "generator", "one that has read nothing",
                        fmt::format("{} tokens", generator.tokens_seen()));
  }
  std::vector<PrefixKey> candidates = cache.candidates(prompt);
  while (!candidates.empty()) {
    const PrefixKey key = candidates.back();
    const auto [place, prefix] = cache.fetch(key);
    if (!prefix || !prefix->begins(prompt, key.length)) {
      candidates.pop_back();
      continue;
    }
    const Entry entry{key, prefix, prefix->bytes(), true, std::nullopt};
    const Entry near = prefix->logits.device() == cache.model.device()
                           ? entry
                           : cache.at(entry, cache.model.device());
    if (place != cache.top()) cache.settle(near, cache.top());
    if (place == on_host && cache.top() == on_device) cache.forget(key, on_host);
    cache.refresh(candidates);
    if (cache.files) cache.files->mark_used(cache.on_files(candidates));
    const Ids known(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(key.length));
    generator.assume(known, near.prefix->state, near.prefix->logits);
    const std::lock_guard<std::mutex> lock(cache.mutex);
    ++cache.counts.hits;
    cache.counts.tokens += key.length;
    return key.length;
  }
  const std::lock_guard<std::mutex> lock(cache.mutex);
  ++cache.counts.misses;
  return 0;
}

void StateCache::keep(Generator& generator, const Ids& ids) {
  Impl& cache = *impl_;
  const auto length = static_cast<std::int64_t>(ids.size());
  if (&generator.model() != &cache.model) {
    throw ArgumentError("StateCache::keep", "generator", "one of the cache's model",
                        "one of another");
  }
  if (length == 0) return;
  const ConstTensorView logits = generator.logits();  // the last token goes through the model
  if (generator.tokens_seen() != length) {
    throw ArgumentError("StateCache::keep", "ids",
                        fmt::format("the {} that the generator has seen", generator.tokens_seen()),
                        fmt::format("{}", length));
  }
  const PrefixKey key = keys_of(ids, {length}).front();
  if (cache.knows(key)) return;
  std::vector<PrefixKey> beginnings = cache.candidates(ids);
  if (!beginnings.empty() && beginnings.back().length == length) beginnings.pop_back();
  auto prefix = std::make_shared<KnownPrefix>();
  prefix->prove(ids.data(), length);
  prefix->state = generator.state();
  prefix->logits = Tensor(logits.shape(), DType::f32, logits.device());
  copy(logits, prefix->logits, generator.stream());
  generator.stream().synchronize();
  Entry entry{key, prefix, prefix->bytes(), false, std::nullopt};
  if (!beginnings.empty()) entry.parent = beginnings.back();
  cache.settle(entry, cache.top());
}

std::int64_t StateCache::read(Generator& generator, const Ids& prompt) {
  for (const std::int32_t id : prompt) {  // all of them before the first piece is read
    check::range("StateCache::read", "prompt", id, 0, impl_->model.config().vocab_size - 1);
  }
  const std::int64_t known = find(generator, prompt);
  const auto length = static_cast<std::int64_t>(prompt.size());
  for (std::int64_t done = known; done < length;) {
    const std::int64_t every = impl_->options.keep_every;
    const std::int64_t end = std::min(length, (done / every + 1) * every);
    generator.read(Ids(prompt.begin() + done, prompt.begin() + end));
    keep(generator, Ids(prompt.begin(), prompt.begin() + end));
    done = end;
  }
  return known;
}

CacheCounts StateCache::counts() const {
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  CacheCounts counts = impl_->counts;
  counts.device_bytes = impl_->bytes[on_device];
  counts.host_bytes = impl_->bytes[on_host];
  counts.disk_bytes = impl_->bytes[on_disk];
  return counts;
}

}  // namespace mamba
