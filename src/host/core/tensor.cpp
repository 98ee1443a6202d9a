#include <mamba/tensor.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#include <mamba/check.hpp>
#include <mamba/stream.hpp>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/core/finished.hpp"

namespace mamba {

Shape::Shape(std::initializer_list<std::int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
  if (sizes.size() > max_rank) {
    throw ArgumentError("Shape", "sizes", fmt::format("at most {}", max_rank),
                        fmt::format("{}", sizes.size()));
  }
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

std::int64_t Shape::count() const {
  if (is_small()) {
    switch (rank_) {
      case 1:
        return sizes_[0];
      case 2:
        return sizes_[0] * sizes_[1];
      case 3:
        return sizes_[0] * sizes_[1] * sizes_[2];
      case 4:
        return sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3];
      default:
        return 1;
    }
  }
  return count_of_large();
}

std::int64_t Shape::count_of_large() const {
  std::int64_t product = 1;
  bool zero = false;
  bool overflow = false;
  for (int i = 0; i < rank_; ++i) {
    const std::int64_t size = sizes_[static_cast<std::size_t>(i)];
    zero |= size == 0;
    overflow |= __builtin_mul_overflow(product, size, &product);
  }
  if (zero) return 0;
  if (overflow) throw ArgumentError("Shape", "count", "fewer than 2^63", to_string());
  return product;
}

void Shape::refuse(int i) const {
  throw ArgumentError("Shape", "dimension", fmt::format("one of the {} of {}", rank_, to_string()),
                      fmt::format("{}", i));
}

Shape Shape::with(int i, std::int64_t size) const {
  if (i < 0 || i >= rank_) refuse(i);
  Shape changed = *this;
  changed.sizes_[static_cast<std::size_t>(i)] = size;
  return changed;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(sizes_.begin(), sizes_.begin() + rank_, ", "));
}

// ---- views ------------------------------------------------------------------------------------

ConstTensorView::ConstTensorView(const void* data, const Shape& shape, DType dtype, Device device)
    : data_(data), shape_(shape), dtype_(dtype), device_(device) {
  row_pitch_ = step_pitch_ = 1;
  if (!shape.is_small()) {
    pitches_of_large();
    return;
  }
  const auto& size = shape.sizes_;
  if (shape.rank_ > 2) step_pitch_ = shape.rank_ > 3 ? size[2] * size[3] : size[2];
  if (shape.rank_ > 1) row_pitch_ = size[1] * step_pitch_;
}

ConstTensorView::ConstTensorView(const void* data, const Shape& shape, Pitches pitches, DType dtype,
                                 Device device)
    : ConstTensorView(data, shape, dtype, device) {
  if (pitches.row < 0 || pitches.step < 0) {
    throw ArgumentError("TensorView", "pitches", "at least 0",
                        fmt::format("{} and {}", pitches.row, pitches.step));
  }
  if (shape.rank() > 1) row_pitch_ = pitches.row;
  if (shape.rank() > 2) step_pitch_ = pitches.step;
}

void ConstTensorView::pitches_of_large() {
  std::int64_t product = 1;
  bool zero = false;
  bool overflow = false;
  for (int i = rank() - 1; i >= 0; --i) {
    const std::int64_t size = shape_[i];
    if (size < 0) {
      throw ArgumentError("TensorView", "shape", "sizes of at least 0", shape_.to_string());
    }
    zero |= size == 0;
    overflow |= __builtin_mul_overflow(product, size, &product);  // no matter where one is 0
    if (i == 2) step_pitch_ = product;
    if (i == 1) row_pitch_ = product;
  }
  if (overflow && !zero) {
    throw ArgumentError("TensorView", "shape", "fewer than 2^63 elements", shape_.to_string());
  }
}

bool ConstTensorView::is_dense() const {
  if (count() == 0) return true;
  const ConstTensorView dense(data_, shape_, dtype_, device_);
  return (dim(0) <= 1 || row_pitch_ == dense.row_pitch_) &&
         (rank() < 2 || dim(1) <= 1 || step_pitch_ == dense.step_pitch_);
}

void ConstTensorView::check_dtype(DType dtype) const {
  if (dtype != dtype_) {
    throw ArgumentError("TensorView::data", "dtype", name_of(dtype_), name_of(dtype));
  }
}

namespace {

void check_slice(const char* where, const ConstTensorView& view, int dimension, std::int64_t first,
                 std::int64_t count) {
  const std::int64_t size = dimension < view.rank() ? view.dim(dimension) : 0;
  if (dimension >= view.rank() || first < 0 || count < 0 || count > size || first > size - count) {
    throw ArgumentError(
        where, "range", fmt::format("within [0, {})", size),
        fmt::format("[{}, {} + {}) of {}", first, first, count, view.shape().to_string()));
  }
}

const void* advance(const void* data, std::int64_t elements, DType dtype) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + elements * size_of(dtype);
}

}  // namespace

ConstTensorView ConstTensorView::rows(std::int64_t first, std::int64_t count) const {
  check_slice("TensorView::rows", *this, 0, first, count);
  ConstTensorView slice = *this;
  slice.data_ = advance(data_, first * row_pitch_, dtype_);
  slice.shape_ = shape_.with(0, count);
  return slice;
}

ConstTensorView ConstTensorView::steps(std::int64_t first, std::int64_t count) const {
  check_slice("TensorView::steps", *this, rank() < 3 ? rank() : 1, first, count);
  ConstTensorView slice = *this;
  slice.data_ = advance(data_, first * step_pitch_, dtype_);
  slice.shape_ = shape_.with(1, count);
  return slice;
}

ConstTensorView ConstTensorView::columns(std::int64_t first, std::int64_t count) const {
  check_slice("TensorView::columns", *this, rank() > 3 ? rank() : std::max(rank() - 1, 0), first,
              count);
  ConstTensorView slice = *this;
  slice.data_ = advance(data_, first, dtype_);
  slice.shape_ = shape_.with(rank() - 1, count);
  return slice;
}

ConstTensorView ConstTensorView::reshape(const Shape& shape) const {
  if (!is_dense() || shape.count() != count()) {
    throw ArgumentError("TensorView::reshape", "shape",
                        fmt::format("{} elements of a dense view", count()), shape.to_string());
  }
  return {data_, shape, dtype_, device_};
}

void ConstTensorView::copy_out(void* values, DType dtype) const {
  if (!*this) return;
  if (device_.is_cpu()) StreamAccess::wait_for(*this);
  finished_move(device_, Device::cpu(), [&](Stream& stream) {
    copy(*this, TensorView(values, shape_, dtype), stream);
    return true;
  });
}

void ConstTensorView::check_single() const {
  if (!*this || count() != 1) {
    throw ArgumentError("TensorView::item", "view", "one element",
                        *this ? shape_.to_string() : "none");
  }
}

// ---- owners -----------------------------------------------------------------------------------

namespace {

// Long vectors are read at the speed of memory only when the pages behind them are large.
constexpr std::int64_t huge_page = std::int64_t{2} << 20;
constexpr std::int64_t host_alignment = 256;

std::align_val_t alignment_for(std::int64_t bytes) {
  return static_cast<std::align_val_t>(bytes >= 2 * huge_page ? huge_page : host_alignment);
}

void* allocate_host(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  void* memory = ::operator new(size, alignment_for(bytes));
  if (bytes >= 2 * huge_page) madvise(memory, size, MADV_HUGEPAGE);  // a hint: failing is harmless
  return memory;
}

}  // namespace

Tensor::Tensor(const Shape& shape, DType dtype, Device device)
    : shape_(shape), dtype_(dtype), device_(device) {
  const std::int64_t bytes = check::bytes("Tensor", "shape", shape, dtype);
  if (bytes == 0) return;
  void* memory = device.is_cuda() ? cuda::allocate(device, bytes) : allocate_host(bytes);
  memory_ = std::unique_ptr<void, Free>(memory, Free{device, false, bytes, nullptr});
}

Tensor Tensor::adopt(void* memory, const Shape& shape, DType dtype, Device device,
                     std::function<void()> release) {
  const std::int64_t bytes = check::bytes("Tensor::adopt", "shape", shape, dtype);
  if (memory == nullptr) throw ArgumentError("Tensor::adopt", "memory", "an address", "none");
  Tensor tensor;
  auto* kept = new std::function<void()>(std::move(release));
  tensor.memory_ = std::unique_ptr<void, Free>(memory, Free{device, false, bytes, kept});
  tensor.shape_ = shape;
  tensor.dtype_ = dtype;
  tensor.device_ = device;
  return tensor;
}

void Tensor::Free::operator()(void* memory) const noexcept {
  if (adopted != nullptr) {
    if (*adopted) (*adopted)();
    delete adopted;
  } else if (device.is_cuda()) {
    cuda::release(device, memory);
  } else if (pinned) {
    cuda::release_pinned(memory);
  } else {
    ::operator delete(memory, alignment_for(bytes));
  }
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor tensor(shape, dtype, device);
  Stream& stream = default_stream(device);  // what others have queued cannot concern new memory
  zero(tensor, stream);
  stream.synchronize();
  return tensor;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor tensor(shape, dtype);
  if (dtype == DType::i32) {
    using Limits = std::numeric_limits<std::int32_t>;
    const bool fits = value >= Limits::min() && value <= Limits::max();  // NaN does not
    if (!fits || std::trunc(value) != value) {
      throw ArgumentError("Tensor::full", "value", "a whole number of 32 bits",
                          fmt::format("{}", value));
    }
    std::fill_n(tensor.data<std::int32_t>(), tensor.count(), static_cast<std::int32_t>(value));
  } else {
    detail::visit(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      std::fill_n(tensor.data<T>(), tensor.count(), T(static_cast<float>(value)));
    });
  }
  return device.is_cpu() ? std::move(tensor) : tensor.to(device);
}

Tensor Tensor::pinned(const Shape& shape, DType dtype) {
  Tensor tensor;
  const std::int64_t bytes = check::bytes("Tensor", "shape", shape, dtype);
  tensor.memory_ = std::unique_ptr<void, Free>(cuda::allocate_pinned(bytes),
                                               Free{Device::cpu(), true, bytes, nullptr});
  tensor.shape_ = shape;
  tensor.dtype_ = dtype;
  return tensor;
}

Tensor Tensor::from_host(const void* values, std::int64_t count, DType dtype, const Shape& shape) {
  Tensor tensor(shape, dtype);
  if (count != shape.count()) {
    throw ArgumentError("Tensor::from", "values", fmt::format("{} values", shape.count()),
                        fmt::format("{}", count));
  }
  if (count > 0)
    std::memcpy(tensor.memory_.get(), values, static_cast<std::size_t>(tensor.bytes()));
  return tensor;
}

Tensor Tensor::clone() const { return to(device_, dtype_); }
Tensor Tensor::clone(Stream& stream) const { return to(device_, dtype_, stream); }
Tensor Tensor::to(Device device) const { return to(device, dtype_); }

Tensor Tensor::to(Device device, DType dtype) const {
  if (!*this) return {};
  if (device_.is_cpu()) StreamAccess::wait_for(view());
  return finished_move(device_, device, [&](Stream& s) { return to(device, dtype, s); });
}

Tensor Tensor::to(Device device, DType dtype, Stream& stream) const {
  if (!*this) return {};
  Tensor result(shape_, dtype, device);
  copy(*this, result, stream);
  return result;
}

// ---- copy and zero ----------------------------------------------------------------------------

namespace {

// Calls f(offset of the run in a, offset in b, length) for every run that is contiguous in both
// views.
template <class F>
void each_run(const ConstTensorView& a, const ConstTensorView& b, F&& f) {
  if (a.count() == 0) return;
  if (a.is_dense() && b.is_dense()) return f(0, 0, a.count());
  if (a.rank() <= 2) {
    const std::int64_t length = a.rank() == 2 ? a.dim(1) : 1;
    for (std::int64_t i = 0; i < a.dim(0); ++i) f(i * a.row_pitch(), i * b.row_pitch(), length);
    return;
  }
  const std::int64_t length = a.count() / (a.dim(0) * a.dim(1));
  for (std::int64_t i = 0; i < a.dim(0); ++i) {
    for (std::int64_t j = 0; j < a.dim(1); ++j) {
      f(i * a.row_pitch() + j * a.step_pitch(), i * b.row_pitch() + j * b.step_pitch(), length);
    }
  }
}

}  // namespace

void copy(ConstTensorView from, TensorView to, Stream& stream) {
  check::present("copy", "from", from);
  check::shape("copy", "to", to, from.shape());
  if (from.dtype() == DType::i32 || to.dtype() == DType::i32) {
    check::dtype("copy", "to", to, from.dtype());
  }
  if (from.device().is_cuda() || to.device().is_cuda()) {
    const bool on_stream = from.device() == stream.device() || to.device() == stream.device();
    if (stream.device().is_cpu() || !on_stream) {
      throw ArgumentError("copy", "stream", "a stream of the CUDA device involved",
                          stream.device().name());
    }
    if (from.count() > 0) cuda::copy(from, to, stream);
    return;
  }
  if (stream.device().is_cuda()) {  // the copy would not wait for what is queued there
    throw ArgumentError("copy", "stream", "a stream of the CPU", stream.device().name());
  }
  if (from.dtype() == to.dtype()) {
    const auto width = static_cast<std::size_t>(size_of(to.dtype()));
    each_run(from, to, [&](std::int64_t i, std::int64_t j, std::int64_t length) {
      std::memcpy(static_cast<char*>(to.data()) + static_cast<std::size_t>(j) * width,
                  static_cast<const char*>(from.data()) + static_cast<std::size_t>(i) * width,
                  static_cast<std::size_t>(length) * width);
    });
    return;
  }
  detail::visit(from.dtype(), [&](auto source_type) {
    detail::visit(to.dtype(), [&](auto target_type) {
      using Source = typename decltype(source_type)::type;
      using Target = typename decltype(target_type)::type;
      const Source* source = from.data<Source>();
      Target* target = to.data<Target>();
      each_run(from, to, [&](std::int64_t i, std::int64_t j, std::int64_t length) {
        for (std::int64_t k = 0; k < length; ++k) {
          target[j + k] = Target(static_cast<float>(source[i + k]));
        }
      });
    });
  });
}

void zero(TensorView view, Stream& stream) {
  check::device("zero", "view", view, stream.device());
  if (view.device().is_cuda()) {
    if (view.count() > 0) cuda::zero(view, stream);
    return;
  }
  const auto width = static_cast<std::size_t>(size_of(view.dtype()));
  each_run(view, view, [&](std::int64_t i, std::int64_t, std::int64_t length) {
    std::memset(static_cast<char*>(view.data()) + static_cast<std::size_t>(i) * width, 0,
                static_cast<std::size_t>(length) * width);
  });
}

}  // namespace mamba
