// Views of memory: a pointer, a shape, a dtype and two pitches. A view points and copies; it owns
// nothing.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include <mamba/device.hpp>
#include <mamba/dtype.hpp>
#include <mamba/shape.hpp>

namespace MAMBA_EXPORT mamba {

class Tensor;

// Of a view, in elements: from index i to i + 1 of the first dimension, and of the second.
struct Pitches {
  std::int64_t row;
  std::int64_t step;
};

// A read-only view. Default-constructed it is absent (rank 0), which is how an optional operand is
// left out; a view of zero elements is present.
class ConstTensorView {
 public:
  ConstTensorView() = default;
  // Dense memory of `shape.count()` elements that outlives the view. A negative size, or 2^63
  // elements and more, is an ArgumentError.
  ConstTensorView(const void* data, const Shape& shape, DType dtype, Device device = Device::cpu());
  // The same with pitches, for memory that someone else has laid out: time before batch, say. Each
  // is at least 0 (the same memory again, which only inputs may have); what a rank has no pitch
  // for, as row_pitch() and step_pitch() say, is left aside. Else an ArgumentError.
  ConstTensorView(const void* data, const Shape& shape, Pitches pitches, DType dtype,
                  Device device = Device::cpu());
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
  // Dense views only; the same number of elements.
  ConstTensorView reshape(const Shape& shape) const;

  // Every element, in order, on the host, once all that was queued on the device is done. T is the
  // view's dtype, or both are floating-point; else an ArgumentError. An absent view has none.
  template <class T>
  std::vector<T> to_vector() const {
    std::vector<T> values(static_cast<std::size_t>(*this ? count() : 0));
    copy_out(values.data(), dtype_of<T>());
    return values;
  }
  // The only element. Another number of them is an ArgumentError.
  template <class T>
  T item() const {
    check_single();
    return to_vector<T>().front();
  }

 protected:
  void copy_out(void* values, DType dtype) const;
  void check_single() const;
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
  TensorView(void* data, const Shape& shape, Pitches pitches, DType dtype,
             Device device = Device::cpu())
      : ConstTensorView(data, shape, pitches, dtype, device) {}
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

}  // namespace mamba
