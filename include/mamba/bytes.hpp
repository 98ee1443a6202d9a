// Bytes in memory, where a file could be: what is saved can be sent or kept without a path.
#pragma once

#include <cstddef>
#include <vector>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

// Not a std::string, since that is what a path is: load_state(path) and load_state(bytes) are told
// apart by their types.
using Bytes = std::vector<std::byte>;

// `size` bytes from `data` on, which belong to somebody else and must stay as they are while they
// are read.
class ByteView {
 public:
  ByteView() = default;
  ByteView(const void* data, std::size_t size) : data_(data), size_(size) {}
  ByteView(const Bytes& bytes) : data_(bytes.data()), size_(bytes.size()) {}

  const void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace mamba
