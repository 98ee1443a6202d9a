// The states that are kept, by their ids: in memory, and where a folder is given in files too.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"

namespace server {

struct StoreOptions {
  std::int64_t bytes = std::int64_t{1} << 30;  // of all states; the least recently used go first
  // A state is a file here before add() returns, and is found again by the next store of the same
  // model. Files of other models are not touched. Empty: none.
  std::string folder = {};
  // Told what is wrong with a file, in one line. That state is not there then.
  std::function<void(const std::string&)> on_problem = [](const std::string&) {};
};

struct StateEntry {
  std::string id, parent;  // no parent: empty
  std::int64_t tokens = 0;
  std::int64_t bytes = 0;    // of its file or, where there is none, of memory
  std::int64_t created = 0;  // seconds since 1970
};

// One state alone is more than all may take.
class TooLarge : public std::runtime_error {
 public:
  TooLarge(std::int64_t limit, std::int64_t bytes)
      : std::runtime_error("expected a state of at most " + std::to_string(limit) +
                           " bytes, got one of " + std::to_string(bytes)) {}
};

// What a state is as a file: safetensors with the ids of its path, under one hash.
mamba::Bytes to_bytes(const KeptText& text);
// FormatError where it is not what was written, or has no path. `name` stands for it in errors.
KeptText from_bytes(mamba::ByteView bytes, const std::string& name);
// The hash that such a file holds: other bytes have another.
std::string hash_in(const mamba::Bytes& bytes);

// Any number of threads may use it at once.
class StateStore {
 public:
  StateStore(const mamba::LanguageModel& model, StoreOptions options);

  // Under a new id. TooLarge; mamba::Error where its file cannot be written.
  StateEntry add(std::shared_ptr<const KeptText> text, const std::string& parent);
  // Absent where there is none of that id.
  std::optional<StateEntry> find(const std::string& id) const;
  // The same as a use of it; nullptr where there is none. Reads a file where it was not used yet.
  std::shared_ptr<const KeptText> get(const std::string& id);
  // The same where nothing has to be read for it.
  std::shared_ptr<const KeptText> in_memory(const std::string& id);
  bool remove(const std::string& id);
  std::vector<StateEntry> list() const;  // in the order in which they were made
  std::int64_t count() const;
  std::int64_t bytes() const;
  std::int64_t limit() const { return options_.bytes; }

  // The nearest of the ancestors of `id`, itself included, with at most so many tokens.
  std::optional<StateEntry> ancestor(const std::string& id, std::int64_t tokens) const;

 private:
  struct Kept {
    StateEntry entry;
    std::uint64_t number = 0;               // in the order in which they were made
    std::shared_ptr<const KeptText> text;   // nullptr: in its file alone
    std::list<std::string>::iterator used;  // its place in used_
  };

  void open_folder();
  std::string path_of(const StateEntry& entry) const;
  void insert(StateEntry entry, std::shared_ptr<const KeptText> text);
  void make_room();
  void erase(std::map<std::string, Kept>::iterator kept);

  const mamba::LanguageModel& model_;
  StoreOptions options_;
  mutable std::mutex mutex_;
  std::map<std::string, Kept> kept_;
  std::list<std::string> used_;  // the last used first
  std::int64_t bytes_ = 0;
  std::uint64_t numbers_ = 0;
};

}  // namespace server
