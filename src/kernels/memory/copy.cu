// Copies between any two devices, pitches and floating-point dtypes, and zeros.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

// A view as [outer, middle, inner] with pitches in elements; inner is contiguous. `dense`: as one
// run.
struct Layout {
  std::int64_t outer = 1, middle = 1, inner = 1;
  std::int64_t outer_pitch = 0, middle_pitch = 0;

  Layout(const ConstTensorView& view, bool dense) {
    if (dense) {
      inner = view.count();
      return;
    }
    outer = view.dim(0);
    outer_pitch = view.row_pitch();
    if (view.rank() <= 2) {
      inner = view.rank() == 2 ? view.dim(1) : 1;
      return;
    }
    middle = view.dim(1);
    middle_pitch = view.step_pitch();
    inner = view.count() / (outer * middle);
  }
};

template <class From, class To>
__global__ void convert_kernel(const From* from, Layout source, To* to, Layout target,
                               std::int64_t count) {
  const std::int64_t stride = std::int64_t{blockDim.x} * gridDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t k = i % source.inner;
    const std::int64_t row = i / source.inner;
    const std::int64_t j = row % source.middle;
    const std::int64_t o = row / source.middle;
    to[o * target.outer_pitch + j * target.middle_pitch + k] =
        from_float<To>(to_float(from[o * source.outer_pitch + j * source.middle_pitch + k]));
  }
}

void convert(const ConstTensorView& from, const Layout& source, const TensorView& to,
             const Layout& target, Stream& stream) {
  constexpr int threads = 256;
  const std::int64_t count = from.count();
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>((count + threads - 1) / threads, 4096));
  detail::visit(from.dtype(), [&](auto from_type) {
    detail::visit(to.dtype(), [&](auto to_type) {
      using From = typename decltype(from_type)::type;
      using To = typename decltype(to_type)::type;
      launch(convert_kernel<From, To>, blocks, threads, 0, stream, "copy",
             static_cast<const From*>(from.data()), source, static_cast<To*>(to.data()), target,
             count);
    });
  });
}

// Bytes of the widest word, up to 16, that rows and pitches of both layouts are made of.
std::int64_t word_of(const void* from, const Layout& source, const void* to, const Layout& target,
                     std::int64_t width) {
  std::int64_t word = 16;
  const auto fits = [&](const void* data, const Layout& layout) {
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % 16);
    for (const std::int64_t bytes :
         {address, layout.inner * width, layout.outer_pitch * width, layout.middle_pitch * width}) {
      if (bytes % word != 0) return false;
    }
    return true;
  };
  while (word > width && !(fits(from, source) && fits(to, target))) word /= 2;
  return word;
}

// The layout in words instead of elements.
Layout in_words(Layout layout, std::int64_t width, std::int64_t word) {
  for (std::int64_t* size : {&layout.inner, &layout.outer_pitch, &layout.middle_pitch}) {
    *size = *size * width / word;
  }
  return layout;
}

// `from` may be nullptr: zeros.
template <class Word>
__global__ void copy_words_kernel(const Word* from, Layout source, Word* to, Layout target,
                                  std::int64_t count) {
  const std::int64_t stride = std::int64_t{blockDim.x} * gridDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t k = i % target.inner;
    const std::int64_t row = i / target.inner;
    const std::int64_t j = row % target.middle;
    const std::int64_t o = row / target.middle;
    to[o * target.outer_pitch + j * target.middle_pitch + k] =
        from == nullptr ? Word{} : from[o * source.outer_pitch + j * source.middle_pitch + k];
  }
}

// In one launch, however many planes there are and whatever lies between them; all on the stream's
// device.
void copy_words(const void* from, const Layout& source, void* to, const Layout& target,
                std::int64_t width, Stream& stream, const char* where) {
  const std::int64_t word = word_of(from, source, to, target, width);
  const Layout s = in_words(source, width, word), t = in_words(target, width, word);
  const std::int64_t count = t.outer * t.middle * t.inner;
  constexpr int threads = 256;
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>((count + threads - 1) / threads, 4096));
  const auto copy_as = [&](auto zero_word) {
    using Word = decltype(zero_word);
    launch(copy_words_kernel<Word>, blocks, threads, 0, stream, where,
           static_cast<const Word*>(from), s, static_cast<Word*>(to), t, count);
  };
  word == 16  ? copy_as(uint4{})
  : word == 8 ? copy_as(std::uint64_t{})
  : word == 4 ? copy_as(std::uint32_t{})
              : copy_as(std::uint16_t{});
}

// The most that CUDA's own copies of rows take between them, in bytes. The least is a row: a view's
// rows may be closer.
constexpr std::size_t most_pitch = (std::size_t{1} << 31) - 1;

// A device's own in one launch; what goes to or comes from elsewhere, plane by plane.
void copy_same_dtype(const ConstTensorView& from, const Layout& source, const TensorView& to,
                     const Layout& target, Stream& stream) {
  const auto width = static_cast<std::size_t>(size_of(from.dtype()));
  const auto bytes = [&](std::int64_t elements) {
    return static_cast<std::size_t>(elements) * width;
  };
  const bool rows_only = source.middle == 1;
  const std::int64_t planes = rows_only ? 1 : source.outer;
  const std::int64_t rows = rows_only ? source.outer : source.middle;
  const std::size_t s_pitch = bytes(rows_only ? source.outer_pitch : source.middle_pitch);
  const std::size_t t_pitch = bytes(rows_only ? target.outer_pitch : target.middle_pitch);
  const std::size_t row_bytes = bytes(source.inner);
  const bool plain = rows == 1 || (std::min(s_pitch, t_pitch) >= row_bytes &&
                                   std::max(s_pitch, t_pitch) <= most_pitch);
  const bool here = from.device() == stream.device() && to.device() == stream.device();
  if (here && (planes > 1 || !plain)) {
    return copy_words(from.data(), source, to.data(), target, size_of(from.dtype()), stream,
                      "copy");
  }
  const auto* s = static_cast<const char*>(from.data());
  auto* t = static_cast<char*>(to.data());
  for (std::int64_t o = 0; o < planes; ++o) {
    const char* s_plane = s + bytes(o * source.outer_pitch);
    char* t_plane = t + bytes(o * target.outer_pitch);
    if (rows > 1 && plain) {
      check(cudaMemcpy2DAsync(t_plane, t_pitch, s_plane, s_pitch, row_bytes,
                              static_cast<std::size_t>(rows), cudaMemcpyDefault, handle(stream)),
            "copy");
      continue;
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto n = static_cast<std::size_t>(row);
      check(cudaMemcpyAsync(t_plane + n * t_pitch, s_plane + n * s_pitch, row_bytes,
                            cudaMemcpyDefault, handle(stream)),
            "copy");
    }
  }
}

}  // namespace

void copy(const ConstTensorView& from, const TensorView& to, Stream& stream) {
  const OnDevice current(stream.device(), "copy");
  if (from.dtype() != to.dtype() && from.device() != to.device()) {
    // Converted on the stream's side, where a kernel can.
    Scratch scratch(stream);
    const bool arrives = to.device() == stream.device();
    const TensorView staged = scratch.take(from.shape(), arrives ? from.dtype() : to.dtype());
    cuda::copy(from, staged, stream);
    cuda::copy(staged, to, stream);
    return;
  }
  const bool dense = from.is_dense() && to.is_dense();
  const Layout source(from, dense);
  const Layout target(to, dense);
  if (from.dtype() == to.dtype()) {
    copy_same_dtype(from, source, to, target, stream);
  } else {
    convert(from, source, to, target, stream);
  }
}

void zero(const TensorView& view, Stream& stream) {
  const OnDevice current(stream.device(), "zero");
  const Layout layout(view, view.is_dense());
  const std::int64_t width = size_of(view.dtype());
  if (layout.outer == 1 && layout.middle == 1) {
    check(cudaMemsetAsync(view.data(), 0, static_cast<std::size_t>(layout.inner * width),
                          handle(stream)),
          "zero");
  } else {
    copy_words(nullptr, layout, view.data(), layout, width, stream, "zero");
  }
}

}  // namespace mamba::cuda
