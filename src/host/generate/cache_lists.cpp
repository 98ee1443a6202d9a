#include "host/generate/cache_lists.hpp"

#include <algorithm>
#include <iterator>
#include <set>

namespace mamba {

void CacheLists::count(const CacheEntry& entry, CachePlace place, std::int64_t sign) {
  bytes_[place] += sign * entry.bytes;
  if (entry.proven) proven_bytes_[place] += sign * entry.bytes;
}

void CacheLists::forget(const PrefixKey& key, CachePlace place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = indices_[place].find(key);
  if (found == indices_[place].end()) return;
  count(*found->second, place, -1);
  lists_[place].erase(found->second);
  indices_[place].erase(found);
}

// Who goes where there is no room: of those that nobody has made use of, the one that was not used
// for longest, so that a long prompt, which is read once, does not push out the beginnings that
// others share. What was made use of may take three quarters, so that there is room for the new.
CacheLists::List::iterator CacheLists::victim(CachePlace place) {
  const bool of_proven = proven_bytes_[place] > limits_[place] / 4 * 3;
  List& list = lists_[place];
  for (auto entry = list.end(); entry != list.begin();) {
    --entry;
    if (entry->proven == of_proven) return entry;
  }
  return std::prev(list.end());
}

CacheLists::List CacheLists::insert(const CacheEntry& entry, CachePlace place) {
  List in{entry};
  if (entry.bytes > limits_[place]) return in;
  const std::lock_guard<std::mutex> lock(mutex_);
  List& list = lists_[place];
  const auto [indexed, is_new] = indices_[place].try_emplace(entry.key);
  if (!is_new) {
    in.front().proven = entry.proven || indexed->second->proven;
    count(*indexed->second, place, -1);
    list.erase(indexed->second);
  }
  indexed->second = in.begin();
  auto before = list.begin();
  if (entry.parent) {
    const auto parent = indices_[place].find(*entry.parent);
    if (parent != indices_[place].end()) before = std::next(parent->second);
  }
  list.splice(before, in);
  count(*indexed->second, place, 1);
  List out;
  while (bytes_[place] > limits_[place]) {
    const auto gone = victim(place);
    count(*gone, place, -1);
    indices_[place].erase(gone->key);
    out.splice(out.end(), list, gone);
  }
  return out;
}

void CacheLists::refresh(const Keys& keys) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    for (const CachePlace place : {on_device, on_host, on_disk}) {
      const auto found = indices_[place].find(*key);
      if (found == indices_[place].end()) continue;
      CacheEntry& entry = *found->second;
      if (key == keys.rbegin() && !entry.proven) {
        entry.proven = true;
        proven_bytes_[place] += entry.bytes;
      }
      lists_[place].splice(lists_[place].begin(), lists_[place], found->second);
    }
  }
}

bool CacheLists::touch(const PrefixKey& key, CachePlace place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = indices_[place].find(key);
  if (found == indices_[place].end()) return false;
  lists_[place].splice(lists_[place].begin(), lists_[place], found->second);
  return true;
}

std::shared_ptr<const KnownPrefix> CacheLists::get(const PrefixKey& key, CachePlace place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = indices_[place].find(key);
  if (found == indices_[place].end()) return nullptr;
  lists_[place].splice(lists_[place].begin(), lists_[place], found->second);
  return found->second->prefix;
}

CacheLists::Keys CacheLists::known_at(const Keys& keys, CachePlace place) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Keys found;
  for (const PrefixKey& key : keys) {
    if (indices_[place].count(key) > 0) found.push_back(key);
  }
  return found;
}

CacheLists::Keys CacheLists::known(const Keys& keys) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Keys found;
  for (const PrefixKey& key : keys) {
    const bool any = std::any_of(indices_.begin(), indices_.end(),
                                 [&](const auto& index) { return index.count(key) > 0; });
    if (any) found.push_back(key);
  }
  return found;
}

std::vector<std::int64_t> CacheLists::lengths(std::int64_t most) const {
  std::set<std::int64_t> found;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& index : indices_) {
    for (const auto& known : index) {
      if (known.first.length > most) break;
      found.insert(known.first.length);
    }
  }
  return {found.begin(), found.end()};
}

std::vector<CacheEntry> CacheLists::not_on_disk() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<CacheEntry> entries;
  std::int64_t sum = 0;
  for (const CachePlace place : {on_device, on_host}) {
    for (const CacheEntry& entry : lists_[place]) {
      sum += entry.bytes;
      if (sum > limits_[on_disk]) break;
      if (indices_[on_disk].count(entry.key) == 0) entries.push_back(entry);
    }
  }
  return entries;
}

std::array<std::int64_t, 3> CacheLists::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

}  // namespace mamba
