// One token of up to 64 rows through all layers of a Mamba-2 stack, three kernels a layer:
//
//   in_proj, with the norm after its sums, the convolution and its state
//   Ssd, the gate, and what the gated norm needs of it
//   out_proj, with that norm after its sums, the residual, and what the next layer's norm needs
//
// With one group both norms divide all of a row by one number, so each can wait until after the
// product that follows it. Why states may be read before a kernel's turn: see rows_step.cu.
#include "detail/mamba2_step.hpp"
#include "kernels/ssd/ssd_operands.cuh"
#include "kernels/step/rows_launch.cuh"

namespace mamba::cuda {

namespace rows {

namespace {

// Where in_proj's columns go, and what the kernels hand on.
struct Mamba2Operands : StepOperands<Mamba2StepSizes> {
  Mamba2Step::Block layer;
  T *z, *gated;          // [rows, d_inner]: its y times gate and the norm's weight
  T* dt;                 // [rows, heads]
  float* gated_squares;  // [rows, d_inner / ssd_channels]

  __device__ __forceinline__ T* beside(std::int64_t row, int column) const {
    if (column < step.d_inner) return z + row * step.d_inner + column;
    return dt + row * step.heads + column - step.d_inner - conv.channels;
  }
};

constexpr int ssd_threads = 128;
constexpr int ssd_channels = 16;  // of a block
constexpr int ssd_each = 4;       // channels of a warp, whose lanes share their states

// Sums over the warp of four values; lane l gets that of value l / 8.
__device__ __forceinline__ float sum_of_my_value(const float (&sum)[ssd_each], int lane) {
  const bool high = (lane & 16) != 0, odd = (lane & 8) != 0;
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float give = high ? sum[i] : sum[i + 2];
    pair[i] = (high ? sum[i + 2] : sum[i]) + __shfl_xor_sync(all_lanes, give, 16);
  }
  const float give = odd ? pair[0] : pair[1];
  float mine = (odd ? pair[1] : pair[0]) + __shfl_xor_sync(all_lanes, give, 8);
#pragma unroll
  for (int apart = 4; apart > 0; apart /= 2) {
    mine += __shfl_xor_sync(all_lanes, mine, apart);
  }
  return mine;
}

// Grid: [stretches of channels, each in one head][rows].
template <int DState>
__global__ void __launch_bounds__(ssd_threads)
    ssd_kernel(const __grid_constant__ Mamba2Operands op) {
  // Of each channel a lane has every 32nd piece of `width` states.
  constexpr int width = DState < 128 ? DState / 32 : 4, pieces = DState / 32 / width;
  __shared__ float squares[ssd_threads / 32];
  const Mamba2StepSizes& s = op.step;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int c0 = static_cast<int>(blockIdx.x) * ssd_channels + warp * ssd_each;
  const int mine = c0 + lane / 8;  // the channel that this lane ends
  const int head = c0 / (s.d_inner / s.heads);
  const auto row = static_cast<int>(blockIdx.y);

  let_next_begin();
  // Early: what only kernels before the last one have written.
  const StateRow<int> state = state_row(s, row);
  const auto state_at = [&](int state_row, int i, int piece) {
    return op.layer.ssm + (std::int64_t{state_row} * s.d_inner + c0 + i) * DState +
           (piece * 32 + lane) * width;
  };
  Vec<float, width> h[ssd_each][pieces] = {};
  if (state.read >= 0) {
#pragma unroll
    for (int i = 0; i < ssd_each * pieces; ++i) {
      h[i / pieces][i % pieces] = load_vec<width>(state_at(state.read, i / pieces, i % pieces));
    }
  }
  const float A = scaled_A(op.layer.A_log[head]), D = op.layer.D[head];
  const float bias = op.layer.dt_bias[head], weight = op.layer.gated_norm[mine];
  wait_for_previous();

  const T* u = op.conv.y + std::int64_t{row} * op.conv.channels;
  Vec<T, width> B[pieces], C[pieces];
#pragma unroll
  for (int piece = 0; piece < pieces; ++piece) {
    B[piece] = load_vec<width>(u + s.d_inner + (piece * 32 + lane) * width);
    C[piece] = load_vec<width>(u + s.d_inner + DState + (piece * 32 + lane) * width);
  }
  const auto x = load_vec<ssd_each>(u + c0);
  const std::int64_t at = std::int64_t{row} * s.d_inner + mine;
  const float x_mine = to_float(u[mine]), z = to_float(op.z[at]);
  float delta = softplus(to_float(op.dt[std::int64_t{row} * s.heads + head]) + bias);
  delta = ssd_limited(delta, s.dt_low, s.dt_high);
  float sum[ssd_each] = {};
#pragma unroll
  for (int i = 0; i < ssd_each; ++i) {
    const float input = delta * to_float(x.at[i]);
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        float& one = h[i][piece].at[k];
        one = advance(one, delta, A, input, to_float(B[piece].at[k]));
        sum[i] = fmaf(to_float(C[piece].at[k]), one, sum[i]);
      }
      if (state.write >= 0) store_vec(state_at(state.write, i, piece), h[i][piece]);
    }
  }

  const float y = fmaf(D, x_mine, sum_of_my_value(sum, lane));
  const float gated = y * silu_of_scan<T>(z);
  const float normed = s.gate_first ? gated : y;
  if (lane % 8 == 0) op.gated[at] = from_float<T>(gated * weight);
  float square = normed * normed;
  square += __shfl_xor_sync(all_lanes, square, 8);
  square += __shfl_xor_sync(all_lanes, square, 16);
  if (lane == 0) squares[warp] = square;
  __syncthreads();
  if (threadIdx.x == 0) {
    op.gated_squares[row * (s.d_inner / ssd_channels) + static_cast<int>(blockIdx.x)] =
        (squares[0] + squares[1]) + (squares[2] + squares[3]);
  }
}

// The gated norm's factor of a row.
template <int Rows, int Threads>
struct GatedFactors {
  const Mamba2Operands& op;
  float* factors;  // [Rows], in shared memory

  __device__ __forceinline__ void prepare() const {
    norm_factors<Rows, Threads>(op.gated_squares, op.step.d_inner / ssd_channels, op.step.rows,
                                static_cast<float>(op.step.d_inner), op.step.gated_epsilon,
                                factors);
  }
  __device__ __forceinline__ float of(std::int64_t row) const { return factors[row]; }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    out_kernel(const __grid_constant__ MatmulOperands<Load> product,
               const __grid_constant__ Mamba2Operands op, const SkinnyCut cut) {
  __shared__ float factors[Tile::rows];
  using Factors = GatedFactors<Tile::rows, Tile::threads>;
  skinny_product<Load, Tile>(
      product, cut, ResidualEnd<Mamba2Operands, Tile::rows, Factors>{op, Factors{op, factors}});
}

}  // namespace

}  // namespace rows

bool takes(const Mamba2Step& s, const Stream& stream) {
  using namespace rows;
  const Device device = stream.device();
  const OnDevice current(device, where);
  // Places of eight columns of in_proj lie in one of its parts, a block's channels in one head.
  if (s.rows > Mamba2Step::most_rows || s.d_model % 32 != 0 || s.heads % 8 != 0 ||
      s.d_inner % s.heads != 0 || s.d_inner / s.heads % ssd_channels != 0 ||
      !ssd_knows_states(s.d_state) || !products_fit(s, device)) {
    return false;
  }
  return with_ssd_states(s.d_state, [&](auto d_state) {
    return capability_of(ssd_kernel<decltype(d_state)::value>, device, where) >= sm_90;
  });
}

void run(const Mamba2Step& step, Stream& stream) {
  using namespace rows;
  const Device device = stream.device();
  const OnDevice current(device, where);
  const int rows = step.rows, d_model = step.d_model, d_inner = step.d_inner;
  const int projected = d_inner + step.conv_channels() + step.heads;
  Scratch scratch(stream);
  const auto take = [&](int channels) {
    return static_cast<T*>(scratch.take({rows, channels}, StackStepSizes::dtype).data());
  };
  Mamba2Operands op{};
  op.step = step;
  op.conv.y = take(step.conv_channels());
  op.conv.first = d_inner;
  op.conv.channels = step.conv_channels();
  op.z = take(d_inner);
  op.gated = take(d_inner);
  op.dt = take(step.heads);
  op.gated_squares = scratch.take({rows, d_inner / ssd_channels}, DType::f32).data<float>();
  begin(op, step.layers[0].norm, scratch, stream);

  const dim3 grid(static_cast<unsigned>(d_inner / ssd_channels), static_cast<unsigned>(rows));
  for (int l = 0; l < step.layer_count; ++l) {
    take_layer(op, step, l);
    const auto product = [&](const void* x, const void* weight, int from, int to) {
      return product_of(x, weight, op.z, rows, from, to, device);
    };
    launch_product(
        product(op.normed, op.layer.in_proj, d_model, projected), op, stream,
        [](auto type) { return in_kernel<Mamba2Operands, typename decltype(type)::type>; });
    with_ssd_states(step.d_state, [&](auto d_state) {
      launch_chained(ssd_kernel<decltype(d_state)::value>, grid, ssd_threads, 0, stream, where, op);
    });
    launch_product(product(op.gated, op.layer.out_proj, d_inner, d_model), op, stream,
                   [](auto type) { return out_kernel<typename decltype(type)::type>; });
  }
}

}  // namespace mamba::cuda
