// One step of Ssd, straight from state row to state row: the layout and the bits of ssd_steps.cuh,
// without shared memory or barriers, so that all of a thread's loads are under way before it needs
// one of them. What it moves is the f32 state, read and written once.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/ssd/ssd_absent.cuh"
#include "kernels/ssd/ssd_launch.hpp"
#include "kernels/ssd/ssd_steps.cuh"

namespace mamba::cuda {

namespace {

constexpr int most_channels = 32;  // of a block
constexpr int most_threads = most_channels / 2 * ssd_lanes;

// Blocks of a multiprocessor, for the registers they get.
template <int Quads, bool Whole>
constexpr int together = (Quads == 8   ? (Whole ? 3 : 2)
                          : Quads == 4 ? (Whole ? 6 : 4)
                                       : 6) -
                         (Quads >= 4 && compiled_for < sm_90 ? 1 : 0);

// Four neighbouring elements of B or C, or those that exist.
template <bool Whole, class T>
struct StepQuad {
  T at[4];

  __device__ __forceinline__ void load(const T* from, int n, int d_state) {
    if constexpr (Whole) {
      Vec<T, 4> quad{};
      if (n < d_state) quad = load_vec<4>(from + n);
#pragma unroll
      for (int i = 0; i < 4; ++i) at[i] = quad.at[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) at[i] = n + i < d_state ? from[n + i] : from_float<T>(0);
    }
  }
  __device__ __forceinline__ void unpack(float (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = to_float(at[i]);
  }
};

template <class T, int Quads, bool Whole>
__global__ void __launch_bounds__(most_threads, together<Quads, Whole>)
    step_kernel(const __grid_constant__ SsdOperands op, const SsdStepsCut cut) {
  using States = SsdChannels<Quads, Whole>;
  const std::int64_t b = blockIdx.y + std::int64_t{gridDim.y} * blockIdx.z;
  const int head = static_cast<int>(blockIdx.x) / cut.tiles, group = head / op.group_heads;
  const int p0 = static_cast<int>(blockIdx.x) % cut.tiles * cut.channels;
  const int lane = static_cast<int>(threadIdx.x) % ssd_lanes;
  const int p = p0 + static_cast<int>(threadIdx.x) / ssd_lanes * 2;
  let_next_begin();
  if (op.batch <= 8 && op.initial != nullptr && b < op.batch && p < op.head_dim) {
    const std::int64_t row = likely_row(op.read, b, op.state_rows);
    if (row >= 0) prefetch_line(op.initial + op.state(row, head, p) + lane * op.d_state / 4);
  }
  wait_for_previous();
  if (b >= op.batch) return;
  const StateRow<> rows = op.rows(b);
  if (rows.is_absent()) {
    return fill_absent<T>(op, rows, b, head, p0, min(cut.channels, op.head_dim - p0));
  }
  States states;
  if (op.initial == nullptr || rows.read < 0 || op.resets(b, 0)) {
    states.clear();
  } else {
    states.load(op, op.initial + op.state(rows.read, head, p), p, lane);
  }
  StepQuad<Whole, T> B[Quads], C[Quads];
#pragma unroll
  for (int k = 0; k < Quads; ++k) {
    B[k].load(op.B.at<T>(b, 0) + op.first_state(group), States::state_of(lane, k), op.d_state);
    C[k].load(op.C.at<T>(b, 0) + op.first_state(group), States::state_of(lane, k), op.d_state);
  }
  const T* x = op.x.at<T>(b, 0) + op.channel(head) + p;
  const float inputs[2] = {p < op.head_dim ? to_float(x[0]) : 0,
                           p + 1 < op.head_dim ? to_float(x[1]) : 0};
  const float bias = op.dt_bias != nullptr ? op.dt_bias[head] : 0;
  const float delta = op.delta(to_float(op.dt.at<T>(b, 0)[head]), bias);
  const float kept = decay(delta, scaled_A(op.A_log[head]));
  const float in[2] = {__fmul_rn(delta, inputs[0]), __fmul_rn(delta, inputs[1])};
  float sum[2];
#pragma unroll
  for (int k = 0; k < Quads; ++k) {
    float Bs[4], Cs[4];
    B[k].unpack(Bs);
    C[k].unpack(Cs);
    states.advance(k, kept, in, Bs, Cs, sum);
  }
  if (op.final_state != nullptr && rows.write >= 0) {
    states.store(op, op.final_state + op.state(rows.write, head, p), p, lane);
  }
  if (op.step_states.data != nullptr) {
    float* to = op.step_states.out<float>(b, 0) + (op.channel(head) + p) * op.d_state;
    states.store(op, to, p, lane);
  }
#pragma unroll
  for (int apart = 1; apart < ssd_lanes; apart *= 2) {
#pragma unroll
    for (float& part : sum) part = __fadd_rn(part, __shfl_xor_sync(all_lanes, part, apart));
  }
  if (lane >= 2 || p + lane >= op.head_dim) return;
  float y = lane == 0 ? sum[0] : sum[1];
  if (op.D != nullptr) y = __fmaf_rn(op.D[head], lane == 0 ? inputs[0] : inputs[1], y);
  op.y.out<T>(b, 0)[op.channel(head) + p + lane] = from_float<T>(y);
}

// Whether B and C can also be taken four at a time.
bool in_whole_quads(const Ssd& op) {
  const std::int64_t size = size_of(op.B.dtype());
  const auto fits = [&](const ConstTensorView& view) {
    return is_aligned(view.data(), view.row_pitch() * size, 4 * size);
  };
  return ssd_in_whole_quads(op) && fits(op.B) && fits(op.C);
}

template <class T, int Quads>
void step(const Ssd& op, Stream& stream) {
  const SsdOperands operands(op, stream);
  const SsdStepsCut cut(operands.head_dim, most_channels);
  const auto kernel =
      in_whole_quads(op) ? step_kernel<T, Quads, true> : step_kernel<T, Quads, false>;
  launch_chained(kernel, cut.grid(operands), static_cast<unsigned>(cut.threads()), 0, stream, "ssd",
                 operands, cut);
}

}  // namespace

void ssd_step(const Ssd& op, Stream& stream) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    with_ssd_quads(op, [&](auto quads) { step<T, decltype(quads)::value>(op, stream); });
  });
}

}  // namespace mamba::cuda
