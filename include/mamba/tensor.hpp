// Owners and views of memory. A Tensor owns and moves; a view points and copies; nothing hides.
//
// Layout everywhere: channels last and contiguous, [batch, time, channel]. A view has two pitches,
// from batch row to batch row and from step to step, so that a slice of a projection is a view and
// not a copy.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include <mamba/device.hpp>
#include <mamba/dtype.hpp>
#include <mamba/error.hpp>
#include <mamba/shape.hpp>
#include <mamba/tensor_view.hpp>

namespace MAMBA_EXPORT mamba {

class Stream;

// Owns dense memory on one device. Moves, and is then absent; is copied only by clone().
class Tensor {
 public:
  Tensor() = default;  // absent
  // Uninitialised. A negative size, or a size in bytes beyond 2^63, is an ArgumentError; too little
  // memory is std::bad_alloc on the host and a DeviceError naming the bytes on CUDA.
  Tensor(const Shape& shape, DType dtype, Device device = Device::cpu());
  static Tensor zeros(const Shape& shape, DType dtype, Device device = Device::cpu());
  // Every element is `value`, rounded to f32 and then to dtype. In i32 it must be a whole number of
  // 32 bits, else an ArgumentError.
  static Tensor full(const Shape& shape, double value, DType dtype, Device device = Device::cpu());
  // Host memory that the GPU copies to and from asynchronously. Its device is the CPU. DeviceError
  // in a build without CUDA.
  static Tensor pinned(const Shape& shape, DType dtype);
  // Dense memory of someone else on `device`, read and written in place. When the tensor ends it
  // calls `release` (which may be empty and must not throw) from whichever thread that is, and does
  // not wait for what is queued on the memory: that is for `release` to do. No memory, or a shape
  // that cannot be, is an ArgumentError, after which `release` is not called.
  static Tensor adopt(void* memory, const Shape& shape, DType dtype, Device device,
                      std::function<void()> release);
  // On the CPU, a copy of `values`, whose count must be shape.count().
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape) {
    return from_host(values.data(), static_cast<std::int64_t>(values.size()), dtype_of<T>(), shape);
  }
  // The same with one dimension: Tensor::from({1, 2, 3}) is [3] i32.
  template <class T>
  static Tensor from(const std::vector<T>& values) {
    return from(values, {static_cast<std::int64_t>(values.size())});
  }
  template <class T>
  static Tensor from(std::initializer_list<T> values) {
    return from(std::vector<T>(values));
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

  // See ConstTensorView.
  template <class T>
  std::vector<T> to_vector() const {
    return view().to_vector<T>();
  }
  template <class T>
  T item() const {
    return view().item<T>();
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
    const std::function<void()>* adopted;  // null: the memory is the library's own
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
