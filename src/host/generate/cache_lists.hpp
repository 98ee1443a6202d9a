// Which prefixes a cache has, in which of its places, in the order of their use.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "host/generate/known_prefix.hpp"

namespace mamba {

enum CachePlace { on_device, on_host, on_disk, nowhere };

struct CacheEntry {
  PrefixKey key;
  std::shared_ptr<const KnownPrefix> prefix;  // none on disk
  std::int64_t bytes = 0;
  bool proven = false;  // somebody has made use of it
  // The longest beginning that was known when this was kept.
  std::optional<PrefixKey> parent;
};

// A list for each place, in the order of use. Every verb holds the lock for its own length, and no
// copy of a prefix is made under it.
class CacheLists {
 public:
  using List = std::list<CacheEntry>;
  using Keys = std::vector<PrefixKey>;

  explicit CacheLists(const std::array<std::int64_t, 3>& limits) : limits_(limits) {}
  std::int64_t limit(CachePlace place) const { return limits_[place]; }

  // Puts an entry in front of a list, or behind its beginning: of one text, what is longer goes
  // first. Returns what there is no room for any more, perhaps the entry itself. Takes all memory
  // it needs before it changes a list.
  List insert(const CacheEntry& entry, CachePlace place);
  void forget(const PrefixKey& key, CachePlace place);
  // As last used, wherever they are, the first of them last of all; and the last as what has been
  // made use of. `keys`: beginnings of one text, which ascend.
  void refresh(const Keys& keys);
  // As last used there; whether it is there at all.
  bool touch(const PrefixKey& key, CachePlace place);
  // What is kept of it there, as last used; nullptr if it is not there, or on disk.
  std::shared_ptr<const KnownPrefix> get(const PrefixKey& key, CachePlace place);

  Keys known(const Keys& keys) const;                       // those of `keys` that are anywhere
  Keys known_at(const Keys& keys, CachePlace place) const;  // and that are there
  // How long the prefixes are that `most` tokens may begin with, in ascending order.
  std::vector<std::int64_t> lengths(std::int64_t most) const;
  // What is in memory alone, as much as the disk's limit has room for, the last used first.
  std::vector<CacheEntry> not_on_disk() const;
  std::array<std::int64_t, 3> bytes() const;  // that each place takes now

 private:
  void count(const CacheEntry& entry, CachePlace place, std::int64_t sign);
  List::iterator victim(CachePlace place);

  const std::array<std::int64_t, 3> limits_;
  mutable std::mutex mutex_;   // of everything below
  std::array<List, 3> lists_;  // last used first
  std::array<std::map<PrefixKey, List::iterator>, 3> indices_;
  std::array<std::int64_t, 3> bytes_{}, proven_bytes_{};
};

}  // namespace mamba
