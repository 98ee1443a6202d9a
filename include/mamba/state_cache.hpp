// What a model remembers after known beginnings of prompts: the part of a prompt that any generator
// has read before is not read again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <mamba/generator.hpp>

namespace MAMBA_EXPORT mamba {

struct CacheOptions {
  // Bytes that may be taken in the model's device memory, in host memory, and in files. The entry
  // that was least recently used moves to the next of the three, and is dropped from the last.
  // Entries that nobody has made use of go first, and of one text the longest, so that a long
  // prompt pushes out neither its own beginning nor those that others share. 0 turns a place off.
  // The memory of a model on the CPU is the host's: device_bytes is then added to host_bytes.
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = std::int64_t{1} << 30;
  std::int64_t disk_bytes = 0;
  // The folder of the files; it is made if it does not exist. A prefix goes into a file when memory
  // has no more room for it, in flush(), and when the cache ends. Several processes may share a
  // folder: each finds what the others had left there when its cache was made, but not what they
  // write later. Each counts only the files that it knows of, so n processes may use n times
  // disk_bytes. Files of other models are not touched and do not count. Temporary files of a
  // process that was killed are removed when a cache is made. Each kept piece of a prompt takes the
  // room of a state and of logits, however long the prompt is.
  std::string folder;
  // read() keeps a state after each multiple of this many tokens, and at the end of the prompt.
  std::int64_t keep_every = 256;
  // Told what went wrong with a file, in one line: it could not be written (disk full, folder
  // read-only), or it was damaged, and then it was not used and is gone. From any thread that uses
  // the cache. Whatever happens to files, the cache goes on without them.
  std::function<void(const std::string& problem)> on_problem;
};

struct CacheCounts {
  std::int64_t hits = 0;    // prompts whose beginning was known,
  std::int64_t misses = 0;  // or not
  std::int64_t tokens = 0;  // that did not have to be read
  std::int64_t device_bytes = 0;
  std::int64_t host_bytes = 0;
  std::int64_t disk_bytes = 0;
};

// For one model, which must outlive it. Any number of threads may use it at once, each with its own
// generators.
class StateCache {
 public:
  explicit StateCache(const LanguageModel& model, CacheOptions options = {});
  explicit StateCache(LanguageModel&& model, CacheOptions options = {}) = delete;
  ~StateCache();  // after a flush()

  // Reads a prompt into a generator that has read nothing: the longest known beginning is taken
  // over, the rest is read and kept. Returns how many tokens were known. The results are those of
  // generator.read(prompt) up to the rounding of products with another number of rows.
  std::int64_t read(Generator& generator, const Generator::Ids& prompt);

  // The two halves of it. find() takes over the longest known beginning of `prompt`, 0 if none;
  // then generator.read() must go on behind it. keep() remembers `ids`, which are all that the
  // generator has read and generated.
  std::int64_t find(Generator& generator, const Generator::Ids& prompt);
  void keep(Generator& generator, const Generator::Ids& ids);

  // Writes what is in memory alone into the folder, the last used first in the room of disk_bytes;
  // what was written stays in memory too. For those who fear that the process is killed.
  void flush();

  CacheCounts counts() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mamba
