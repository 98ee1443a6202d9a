// Three places, each a list in the order of use; what falls out of one goes to the next. Copies
// between devices and files are made without the lock of the lists, so a prefix that is on its way
// down is not found for that moment, which costs time and nothing else.
#include <mamba/state_cache.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

#include <mamba/check.hpp>

#include "host/generate/cache_lists.hpp"
#include "host/generate/known_prefix.hpp"

namespace mamba {
namespace {

using Ids = Generator::Ids;

// The most bytes of each place.
std::array<std::int64_t, 3> limits_of(const LanguageModel& model, const CacheOptions& options) {
  constexpr const char* where = "StateCache";
  check::range(where, "device_bytes", options.device_bytes, 0, INT64_MAX);
  check::range(where, "host_bytes", options.host_bytes, 0, INT64_MAX);
  check::range(where, "disk_bytes", options.disk_bytes, 0, INT64_MAX);
  check::range(where, "keep_every", options.keep_every, 1, INT64_MAX);
  if ((options.disk_bytes > 0) == options.folder.empty()) {
    throw ArgumentError(where, "folder", "one where disk_bytes is above 0, and only there",
                        options.folder.empty() ? "none" : options.folder);
  }
  std::array<std::int64_t, 3> limits{options.device_bytes, options.host_bytes, options.disk_bytes};
  if (!model.device().is_cuda()) {  // its memory is the host's
    limits[on_host] += std::min(limits[on_device], INT64_MAX - limits[on_host]);
    limits[on_device] = 0;
  }
  return limits;
}

}  // namespace

struct StateCache::Impl {
  struct Known {
    CachePlace place = nowhere;
    std::shared_ptr<const KnownPrefix> prefix;
  };

  const LanguageModel& model;
  CacheOptions options;
  CacheLists lists;
  std::optional<PrefixFiles> files;

  mutable std::mutex mutex;  // of the counts
  CacheCounts counts;

  Impl(const LanguageModel& of, CacheOptions with)
      : model(of), options(std::move(with)), lists(limits_of(model, options)) {
    if (options.folder.empty()) return;
    files.emplace(model, options.folder);
    for (const PrefixFiles::Found& file : files->list()) {
      drop(lists.insert({file.key, nullptr, file.bytes, file.proven, std::nullopt}, on_disk));
    }
  }

  void report(const std::string& problem) const {
    if (options.on_problem) options.on_problem(problem);
  }

  // ---- places ----

  // Remembers an entry at `place` or, where it cannot be, further down; what it displaces likewise.
  void move_into(const CacheEntry& entry, CachePlace place) {
    if (place == on_disk) {
      write(entry);
    } else {
      const bool moves = place == on_host && entry.prefix->logits.device().is_cuda();
      for (const CacheEntry& out : lists.insert(moves ? at(entry, Device::cpu()) : entry, place)) {
        move_into(out, static_cast<CachePlace>(place + 1));
      }
    }
  }

  CacheEntry at(const CacheEntry& entry, Device device) const {
    auto moved = std::make_shared<KnownPrefix>();
    moved->salt = entry.prefix->salt;
    moved->proof = entry.prefix->proof;
    moved->state = entry.prefix->state.to(device);
    moved->logits = entry.prefix->logits.to(device);
    return {entry.key, moved, entry.bytes, entry.proven, entry.parent};
  }

  void write(const CacheEntry& entry) {
    if (!files || entry.bytes > lists.limit(on_disk) || lists.touch(entry.key, on_disk)) return;
    try {
      const std::int64_t size =
          files->write(entry.key, *entry.prefix, entry.parent ? &*entry.parent : nullptr);
      if (entry.proven) files->mark_used({entry.key});
      drop(lists.insert({entry.key, nullptr, size, entry.proven, entry.parent}, on_disk));
    } catch (const Error& error) {
      report(error.what());
    }
  }

  void drop(const CacheLists::List& entries) const {
    for (const CacheEntry& entry : entries) files->remove(entry.key);
  }

  CachePlace top() const { return lists.limit(on_device) > 0 ? on_device : on_host; }

  // ---- finding ----

  // What may be a known beginning of `ids`, in ascending order.
  std::vector<PrefixKey> candidates(const Ids& ids) const {
    return lists.known(keys_of(ids, lists.lengths(static_cast<std::int64_t>(ids.size()))));
  }

  // From wherever it is: nowhere if it is not known, not any more, or damaged.
  Known fetch(const PrefixKey& key) {
    for (const CachePlace place : {on_device, on_host}) {
      if (auto prefix = lists.get(key, place)) return {place, std::move(prefix)};
    }
    if (!lists.touch(key, on_disk)) return {};
    try {
      if (auto prefix = files->read(key)) return {on_disk, std::move(prefix)};
    } catch (const Error& error) {
      report(error.what());
    }
    lists.forget(key, on_disk);  // damaged, or removed by another process
    return {};
  }

  // The last used of what is in memory alone, as much as the folder has room for, is written; the
  // last used comes last, so that the files have that order too.
  void flush() {
    if (!files) return;
    const std::vector<CacheEntry> entries = lists.not_on_disk();
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
      write(entry->prefix->logits.device().is_cuda() ? at(*entry, Device::cpu()) : *entry);
    }
  }

  bool knows(const PrefixKey& key) {
    return lists.touch(key, on_device) || lists.touch(key, on_host);
  }
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
    const CacheEntry entry{key, prefix, prefix->bytes(), true, std::nullopt};
    if (place != cache.top()) {
      const bool moves = cache.top() == on_device && !prefix->logits.device().is_cuda();
      cache.move_into(moves ? cache.at(entry, cache.model.device()) : entry, cache.top());
    }
    if (place == on_host && cache.top() == on_device) cache.lists.forget(key, on_host);
    cache.lists.refresh(candidates);
    if (cache.files) cache.files->mark_used(cache.lists.known_at(candidates, on_disk));
    const Ids known(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(key.length));
    generator.continue_from(known, prefix->state, prefix->logits);
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
  CacheEntry entry{key, prefix, prefix->bytes(), false, std::nullopt};
  if (!beginnings.empty()) entry.parent = beginnings.back();
  cache.move_into(entry, cache.top());
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
  const auto bytes = impl_->lists.bytes();
  counts.device_bytes = bytes[on_device];
  counts.host_bytes = bytes[on_host];
  counts.disk_bytes = bytes[on_disk];
  return counts;
}

}  // namespace mamba
