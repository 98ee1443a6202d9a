// Owners and views of memory. A Tensor owns and moves; a view points and copies; nothing hides.
//
// Layout everywhere: channels last and contiguous, [batch, time, channel]. A view has two pitches,
// from batch row to batch row and from step to step, so that a slice of a projection is a view and
// not a copy.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <mamba/device.hpp>
#include <mamba/dtype.hpp>
#include <mamba/error.hpp>

namespace mamba {

class Stream;
class Tensor;

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

// A read-only view. Default-constructed it is absent (rank 0), which is how an optional operand is
// left out; a view of zero elements is present.
class ConstTensorView {
 public:
  ConstTensorView() = default;
  // Dense memory of `shape.count()` elements that outlives the view. A negative size, or 2^63
  // elements and more, is an ArgumentError.
  ConstTensorView(const void* data, const Shape& shape, DType dtype, Device device = Device::cpu());
  // Implicit: a Tensor is passed where a view is asked for, also one that lives for the call alone.
#if defined(__clang__)
  ConstTensorView(const Tensor& tensor [[clang::lifetimebound]]);
#else
  ConstTensorView(const Tensor& tensor);
#endif
  // A view that stays, as an operand or an option does, would outlive such a Tensor: it does not
  // compile. (A template, so that `view = {}` is not meant.)
  template <class T, class = std::enable_if_t<std::is_same_v<T, Tensor>>>
  ConstTensorView& operator=(const T&& temporary) = delete;

  explicit operator bool() const { return shape_.rank() > 0; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t count() const { return shape_.count(); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  // Elements from index i to i + 1 of the first dimension, and of the second. Rank 1: 1 and 1; in
  // rank 2 the second is 1. Dimensions after the second are dense.
  std::int64_t row_pitch() const { return row_pitch_; }
  std::int64_t step_pitch() const { return step_pitch_; }
  bool is_dense() const;

  const void* data() const { return data_; }
  template <class T>
  const T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<const T*>(data_);
  }

  // Slices share memory with this view. Out of range is an ArgumentError.
  ConstTensorView rows(std::int64_t first, std::int64_t count) const;   // of the first dimension
  ConstTensorView steps(std::int64_t first, std::int64_t count) const;  // of the second, rank >= 3
  ConstTensorView columns(std::int64_t first, std::int64_t count) const;  // of the last, rank <= 3
  ConstTensorView reshape(
      const Shape& shape) const;  // dense views only; the same number of elements

 protected:
  void check_dtype(DType dtype) const;
  void pitches_of_large();

  const void* data_ = nullptr;
  Shape shape_;
  std::int64_t row_pitch_ = 0;
  std::int64_t step_pitch_ = 0;
  DType dtype_ = DType::f32;
  Device device_;
};

// The same, writable.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;
  TensorView(void* data, const Shape& shape, DType dtype, Device device = Device::cpu())
      : ConstTensorView(data, shape, dtype, device) {}
  TensorView(Tensor& tensor);

  void* data() const { return const_cast<void*>(data_); }
  template <class T>
  T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<T*>(data());
  }

  TensorView rows(std::int64_t first, std::int64_t count) const {
    return TensorView(ConstTensorView::rows(first, count));
  }
  TensorView steps(std::int64_t first, std::int64_t count) const {
    return TensorView(ConstTensorView::steps(first, count));
  }
  TensorView columns(std::int64_t first, std::int64_t count) const {
    return TensorView(ConstTensorView::columns(first, count));
  }
  TensorView reshape(const Shape& shape) const {
    return TensorView(ConstTensorView::reshape(shape));
  }

 private:
  // Only for slices of a view that was writable to begin with.
  explicit TensorView(const ConstTensorView& view) : ConstTensorView(view) {}
};

// Owns dense memory on one device. Moves, and is then absent; is copied only by clone().
class Tensor {
 public:
  Tensor() = default;  // absent
  // Uninitialised. A negative size, or a size in bytes beyond 2^63, is an ArgumentError; too little
  // memory is std::bad_alloc on the host and a DeviceError naming the bytes on CUDA.
  Tensor(const Shape& shape, DType dtype, Device device = Device::cpu());
  static Tensor zeros(const Shape& shape, DType dtype, Device device = Device::cpu());
  // Host memory that the GPU copies to and from asynchronously. Its device is the CPU. DeviceError
  // in a build without CUDA.
  static Tensor pinned(const Shape& shape, DType dtype);
  // On the CPU, a copy of `values`, whose count must be shape.count().
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape) {
    return from_host(values.data(), static_cast<std::int64_t>(values.size()), dtype_of<T>(), shape);
  }

  Tensor(Tensor&& other) noexcept
      : memory_(std::move(other.memory_)),
        shape_(std::exchange(other.shape_, {})),
        dtype_(other.dtype_),
        device_(other.device_) {}
  Tensor& operator=(Tensor&& other) noexcept {
    Tensor moved(std::move(other));
    std::swap(memory_, moved.memory_);
    std::swap(shape_, moved.shape_);
    std::swap(dtype_, moved.dtype_);
    std::swap(device_, moved.device_);
    return *this;
  }

  explicit operator bool() const { return shape_.rank() > 0; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t count() const { return shape_.count(); }
  std::int64_t bytes() const { return *this ? shape_.count() * size_of(dtype_) : 0; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  TensorView view() & { return {memory_.get(), shape_, dtype_, device_}; }
  ConstTensorView view() const& { return {memory_.get(), shape_, dtype_, device_}; }
  ConstTensorView view() const&& = delete;  // it would outlive its memory
  template <class T>
  T* data() {
    return view().data<T>();
  }
  template <class T>
  const T* data() const {
    return view().data<T>();
  }

  // A deep copy, as it is or on another device or in another floating-point dtype. With a stream
  // the copy is ordered on it (it must be a stream of the CUDA device involved, if there is one);
  // without, it is done when the call returns. clone() of an absent tensor is absent.
  Tensor clone() const;
  Tensor clone(Stream& stream) const;
  Tensor to(Device device) const;
  Tensor to(Device device, DType dtype) const;
  Tensor to(Device device, DType dtype, Stream& stream) const;

 private:
  struct Free {
    Device device;
    bool pinned;
    std::int64_t bytes;
    void operator()(void* memory) const noexcept;
  };
  static Tensor from_host(const void* values, std::int64_t count, DType dtype, const Shape& shape);

  std::unique_ptr<void, Free> memory_;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

inline ConstTensorView::ConstTensorView(const Tensor& tensor) : ConstTensorView(tensor.view()) {}
inline TensorView::TensorView(Tensor& tensor) : TensorView(tensor.view()) {}

// to = from. Same shape; any two floating-point dtypes (rounded to nearest even) or i32 to i32; any
// pitches; any two devices. `stream` is of a GPU that is involved, or of the CPU where none is.
// Overlapping memory is not allowed.
void copy(ConstTensorView from, TensorView to, Stream& stream);

// Every element becomes zero, whatever it was before.
void zero(TensorView view, Stream& stream);

}  // namespace mamba
