#include "corpus.hpp"

#include <algorithm>
#include <filesystem>

#include <mamba/error.hpp>

#include "../programs/report.hpp"
#include "../programs/whole_file.hpp"

namespace {

namespace fs = std::filesystem;

constexpr const char* where = "train-lm";

bool same(const fs::path& a, const fs::path& b) {
  std::error_code none;  // one of them is not there
  return fs::equivalent(a, b, none);
}

bool is_run(const fs::path& folder) {
  std::error_code none;
  return fs::exists(folder / "checkpoint", none) && fs::exists(folder / "metrics.jsonl", none);
}

std::vector<fs::path> files_of(const std::string& path, const std::string& out,
                               std::vector<std::string>& left_out) {
  std::error_code error;
  if (!fs::exists(path, error)) throw mamba::Error(where, path, "a file or folder", "nothing");
  if (!fs::is_directory(path)) return {path};
  if (same(path, out) || is_run(path)) {
    throw mamba::Error(where, path, "a folder of text", "one that this program writes to");
  }
  std::vector<fs::path> files;
  for (auto entry = fs::recursive_directory_iterator(path); entry != fs::end(entry); ++entry) {
    if (entry->is_directory() && (same(entry->path(), out) || is_run(entry->path()))) {
      left_out.push_back(entry->path().string());
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file()) {
      files.push_back(entry->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> split(const std::string& text, const std::string& separator) {
  if (separator.empty()) return {text};
  std::vector<std::string> parts;
  std::size_t first = 0;
  for (;;) {
    const std::size_t end = text.find(separator, first);
    parts.push_back(text.substr(first, end - first));
    if (end == std::string::npos) return parts;
    first = end + separator.size();
  }
}

}  // namespace

void Text::add(const std::string& document) {
  if (document.empty()) return;
  begins_.resize(bytes_.size() + document.size(), false);
  begins_[bytes_.size()] = true;
  bytes_ += document;
  ++documents_;
  constexpr std::uint64_t prime = 0x100000001B3u;
  for (const char byte : document) {
    hash_ = (hash_ ^ static_cast<unsigned char>(byte)) * prime;
  }
  hash_ = (hash_ ^ 0x100u) * prime;  // no byte: the document ends
}

std::string Text::name() const {
  return format("%lld bytes, hash %016llx", static_cast<long long>(size()),
                static_cast<unsigned long long>(hash_));
}

bool holds_a_run(const std::string& folder, std::string& what) {
  for (const char* name : {"checkpoint", "metrics.jsonl", "model.safetensors"}) {
    std::error_code none;
    what = (fs::path(folder) / name).string();
    if (fs::exists(what, none) && fs::file_size(what, none) > 0) return true;
  }
  return false;
}

Corpus Corpus::load(const std::string& path, const std::string& separator, double share,
                    const std::string& out) {
  Corpus corpus;
  std::vector<std::string> documents;
  std::size_t total = 0;
  for (const fs::path& file : files_of(path, out, corpus.left_out)) {
    for (std::string& document : split(whole_file(where, file.string()), separator)) {
      total += document.size();
      documents.push_back(std::move(document));
    }
  }
  const auto kept = static_cast<std::size_t>(static_cast<double>(total) * (1 - share));
  std::size_t seen = 0;
  for (const std::string& document : documents) {  // the one that the cut falls into is cut
    const std::size_t count = std::min(document.size(), kept > seen ? kept - seen : 0);
    corpus.train.add(document.substr(0, count));
    corpus.valid.add(document.substr(count));
    seen += document.size();
  }
  if (corpus.train.size() < 2 || corpus.valid.size() < 2) {
    throw mamba::Error(where, path, "text to train on and to validate with",
                       std::to_string(total) + " bytes");
  }
  return corpus;
}

std::vector<std::int64_t> spread(const Text& text, std::int64_t rows) {
  std::vector<std::int64_t> positions;
  for (std::int64_t b = 0; b < rows; ++b) positions.push_back(text.size() * b / rows);
  return positions;
}

Batch next_batch(const Text& text, std::int64_t time, std::vector<std::int64_t>& positions) {
  std::vector<std::int32_t> ids, targets, resets;
  Batch batch;
  for (std::int64_t& position : positions) {
    for (std::int64_t t = 0; t < time; ++t) {
      const std::int64_t next = (position + 1) % text.size();
      const bool ends = next == 0 || text.begins(next);
      ids.push_back(text.byte(position));
      targets.push_back(ends ? -1 : text.byte(next));
      resets.push_back(text.begins(position) ? 1 : 0);
      batch.counted += ends ? 0 : 1;
      position = next;
    }
  }
  const mamba::Shape shape{static_cast<std::int64_t>(positions.size()), time};
  batch.ids = mamba::Tensor::from(ids, shape);
  batch.targets = mamba::Tensor::from(targets, shape);
  batch.reset = mamba::Tensor::from(resets, shape);
  return batch;
}
