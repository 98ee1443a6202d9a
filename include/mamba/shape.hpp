// The sizes of a tensor.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

// Up to four sizes, held inline: making a view allocates nothing.
class Shape {
 public:
  static constexpr int max_rank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes);  // more than max_rank: ArgumentError

  int rank() const { return rank_; }
  // A dimension that is not there is an ArgumentError, here and in back() and with().
  std::int64_t operator[](int i) const {
    if (i < 0 || i >= rank_) refuse(i);
    return sizes_[static_cast<std::size_t>(i)];
  }
  std::int64_t back() const { return (*this)[rank_ - 1]; }
  // No size is negative and no product of them can overflow: what nearly every shape is, for checks
  // that are made often.
  bool is_small() const {
    return static_cast<std::uint64_t>(sizes_[0] | sizes_[1] | sizes_[2] | sizes_[3]) < 1u << 15;
  }
  std::int64_t count() const;  // number of elements; 1 for rank 0; 2^63 and more: ArgumentError
  Shape with(int i, std::int64_t size) const;  // a copy in which size i is another
  std::string to_string() const;               // "[2, 5, 16]"

  friend bool operator==(const Shape& a, const Shape& b) {
    return a.rank_ == b.rank_ && a.sizes_ == b.sizes_;
  }
  friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }

 private:
  friend class ConstTensorView;
  [[noreturn]] void refuse(int i) const;
  std::int64_t count_of_large() const;

  std::array<std::int64_t, max_rank> sizes_{};
  int rank_ = 0;
};

}  // namespace mamba
