// The states before every segment of a sequence.
#include "kernels/ssd/ssd_segments.cuh"

#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

// From what each segment adds to the states before each: a thread has four states.
__global__ void __launch_bounds__(256)
    segments_kernel(const __grid_constant__ SsdOperands op, const int count,
                    const SsdSegments segments) {
  const std::int64_t size = op.channel(op.heads) * op.d_state;  // of a row
  const std::int64_t at = 4 * (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  const std::int64_t b = at / size, in_row = at % size;
  if (b >= op.batch) return;
  const StateRow<> rows = op.rows(b);
  if (rows.is_absent()) return;
  const auto head = static_cast<int>(in_row / (std::int64_t{op.head_dim} * op.d_state));
  Vec<float, 4> state{};
  if (op.initial != nullptr && rows.read >= 0) {
    state = load_vec<4>(op.initial + rows.read * size + in_row);
  }
  for (int s = 0; s < count; ++s) {
    const std::int64_t row = b * count + s;
    float* place = segments.states + row * size + in_row;
    const auto added = s + 1 < count ? load_vec<4>(place) : Vec<float, 4>{};
    store_vec(place, state);
    if (s + 1 == count) return;
    const float decay = segments.decays[row * op.heads + head];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      state.at[k] = decay == starts_anew ? added.at[k] : __fmaf_rn(decay, state.at[k], added.at[k]);
    }
  }
}

}  // namespace

void join_segments(const SsdOperands& op, int count, const SsdSegments& segments, Stream& stream) {
  const std::int64_t quads = op.batch * op.heads * op.head_dim * op.d_state / 4;
  launch(segments_kernel, static_cast<unsigned>((quads + 255) / 256), 256, 0, stream, "ssd", op,
         count, segments);
}

}  // namespace mamba::cuda
