// Text as bytes, cut into documents, a part of it kept for validation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/tensor.hpp>

// One long text, and where documents begin in it.
class Text {
 public:
  void add(const std::string& document);

  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size()); }
  std::int64_t documents() const { return documents_; }
  std::int32_t byte(std::int64_t i) const {
    return static_cast<unsigned char>(bytes_[static_cast<std::size_t>(i)]);
  }
  bool begins(std::int64_t i) const { return begins_[static_cast<std::size_t>(i)]; }
  // "N bytes, hash H": of the bytes and of where documents begin. Another text of the same length
  // has another.
  std::string name() const;

 private:
  std::string bytes_;
  std::vector<bool> begins_;
  std::int64_t documents_ = 0;
  std::uint64_t hash_ = 0xCBF29CE484222325u;  // FNV-1a
};

struct Corpus {
  Text train, valid;
  std::vector<std::string> left_out;  // folders in the text's that hold runs of train-lm

  // A file, or every file in a folder and those below it, in the order of their names; each is a
  // document, or several where `separator` (if not empty) stands between them. The last `share` of
  // the bytes is for validation. Text that cannot be read, or is too short to train on, is an
  // Error. What this program writes is no text: `out`, its folder, and others that hold a run are
  // left out, and a text in one of them is an Error.
  static Corpus load(const std::string& path, const std::string& separator, double share,
                     const std::string& out);
};

// What a step reads. All on the CPU.
struct Batch {
  mamba::Tensor ids, targets, reset;  // [batch, time] i32; a target is -1 where a document ends
  std::int64_t counted = 0;           // targets that are not
};

// The next `time` bytes of every row, from `positions` on, which move. A row reads the text round
// and round; the end of the text is the end of a document.
Batch next_batch(const Text& text, std::int64_t time, std::vector<std::int64_t>& positions);

// Whether a folder holds what train-lm writes there; `what` names it.
bool holds_a_run(const std::string& folder, std::string& what);

// Rows that start evenly spread over the text.
std::vector<std::int64_t> spread(const Text& text, std::int64_t rows);
