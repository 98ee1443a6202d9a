// SsdGrad on tensor cores, for bf16, head_dim up to 64 and d_state up to 128: products of bf16 with
// f32 sums. What is computed is rounded to bf16 once where it becomes a factor.
#pragma once

#include "kernels/scan/ssd_grad_steps.cuh"

namespace mamba::cuda {

// ---- tiles in shared memory ---------------------------------------------------------------------

constexpr int mma_channels = 64, mma_states = 128;  // of a tile, zeros where there are fewer
// Rows are odd numbers of 16 bytes apart, so that eight of them lie in different banks.
constexpr int channel_pitch = mma_channels + 8, state_pitch = mma_states + 8;
constexpr int channel_tile = ssd_chunk * channel_pitch, state_tile = ssd_chunk * state_pitch;

// Begins to copy `rows` rows of `columns` elements, a multiple of 8, and zeros for what is missing
// of 64 rows of kWidth.
template <int kThreads, int kWidth>
__device__ __forceinline__ void fetch_tile(bf16* to, const bf16* from, std::int64_t pitch, int rows,
                                           int columns) {
  constexpr int pieces = kWidth / 8;
  const int thread = thread_id();
#pragma unroll
  for (int n = 0; n < 64 * pieces / kThreads; ++n) {
    const int piece = thread + n * kThreads;
    const int row = piece / pieces, column = piece % pieces * 8;
    const bool there = row < rows && column < columns;
    copy_16_bytes(to + row * (kWidth + 8) + column, there ? from + row * pitch + column : from,
                  there ? 16 : 0);
  }
}

// ---- fragments ----------------------------------------------------------------------------------

// A lane 4 g + q: see mma(). Each part of a kernel asks anew, so that no part keeps in registers
// where in shared memory the others read.
struct Lane {
  int index = lane_id();

  __device__ int g() const { return index / 4; }
  __device__ int q() const { return index % 4; }
};

// 16 rows x 16 depths from [row][depth].
__device__ __forceinline__ void load_rows(std::uint32_t (&to)[4], const bf16* tile, int pitch,
                                          int row, int depth, Lane lane) {
  load_matrices(
      to, shared_address(tile + (row + lane.index % 16) * pitch + depth + lane.index / 16 * 8));
}
// The same from [depth][row].
__device__ __forceinline__ void load_rows_across(std::uint32_t (&to)[4], const bf16* tile,
                                                 int pitch, int row, int depth, Lane lane) {
  load_matrices_transposed(
      to, shared_address(tile + (depth + lane.index / 16 * 8 + lane.index % 8) * pitch + row +
                         lane.index / 8 % 2 * 8));
}
// 16 columns, in two tiles of 8, x 16 depths from [column][depth].
__device__ __forceinline__ void load_columns(std::uint32_t (&to)[4], const bf16* tile, int pitch,
                                             int column, int depth, Lane lane) {
  load_matrices(to, shared_address(tile + (column + lane.index / 16 * 8 + lane.index % 8) * pitch +
                                   depth + lane.index / 8 % 2 * 8));
}
// The same from [depth][column].
__device__ __forceinline__ void load_columns_across(std::uint32_t (&to)[4], const bf16* tile,
                                                    int pitch, int column, int depth, Lane lane) {
  load_matrices_transposed(
      to, shared_address(tile + (depth + lane.index % 16) * pitch + column + lane.index / 16 * 8));
}
// Two tiles of 8 columns.
__device__ __forceinline__ void multiply_pair(float (&first)[4], float (&second)[4],
                                              const std::uint32_t (&a)[4],
                                              const std::uint32_t (&b)[4]) {
  mma<bf16>(first, a[0], a[1], a[2], a[3], b[0], b[1]);
  mma<bf16>(second, a[0], a[1], a[2], a[3], b[2], b[3]);
}

__device__ __forceinline__ void unpack_pair(std::uint32_t pair, float& first, float& second) {
  first = __uint_as_float(pair << 16);
  second = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ std::uint32_t pack_pair(float first, float second) {
  return Packed<bf16, 2>::pack({first, second}).words;
}
__device__ __forceinline__ void load_pair(const bf16* from, float& first, float& second) {
  unpack_pair(*reinterpret_cast<const std::uint32_t*>(from), first, second);
}

// A row of two neighbouring tiles, 16 columns from `to` on: pairs of lanes exchange what they have,
// so that each stores 8 bytes and four of them a sector. By the whole warp.
__device__ __forceinline__ void store_row(bf16* to, const float (&first)[2],
                                          const float (&second)[2], bool there, int columns,
                                          Lane lane) {
  const std::uint32_t own = pack_pair(first[0], first[1]), other = pack_pair(second[0], second[1]);
  const bool odd = lane.q() % 2 != 0;
  const std::uint32_t got = __shfl_xor_sync(all_lanes, odd ? own : other, 1);
  const int column = odd ? 8 + 2 * (lane.q() - 1) : 2 * lane.q();
  if (there && column < columns) {
    *reinterpret_cast<uint2*>(to + column) = odd ? uint2{got, other} : uint2{own, got};
  }
}

// ---- from chunk to chunk ------------------------------------------------------------------------

// States before chunks and adjoints behind them in scratch: bf16, [rows, chunks, heads, head_dim,
// d_state].
struct SsdMma {
  static __device__ bf16* state(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                int head) {
    return static_cast<bf16*>(op.states) + op.at_head(row, c, head) * op.state_size();
  }
  static __device__ bf16* adjoint(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                  int head) {
    return static_cast<bf16*>(op.adjoints) + op.at_head(row, c, head) * op.state_size();
  }
};

constexpr int mma_walk_threads = 256;

// A head's state, walked forward from a kept state to the next one, or its adjoint, walked back
// from the end of the sequence to its start. Each of 8 warps has 16 channels and 64 states.
class MmaWalk {
 public:
  static constexpr int weights = 3 * ssd_chunk;  // the first arrays of SsdSteps
  static constexpr int buffer_bytes = 2 * (channel_tile + state_tile) + 4 * weights;
  static constexpr int shared_bytes = 2 * buffer_bytes;

  __device__ MmaWalk(const SsdGradOperands& op, std::int64_t row, int head, char* memory)
      : op_(op), row_(row), b_(op.first_row + row), head_(head), memory_(memory) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    p_ = warp % 4 * 16;
    n_ = warp / 4 * 64;
  }

  __device__ void states(std::int64_t k) {
    const std::int64_t first = k * op_.per_kept;
    const std::int64_t last = min(first + op_.per_kept, op_.chunks) - 1;
    load(op_.kept_state(row_, first, head_));
    fetch<true>(first, 0);
    for (std::int64_t c = first; c <= last; ++c) {
      store(SsdMma::state(op_, row_, c, head_));
      if (c == last) break;
      const int buffer = static_cast<int>(c - first) % 2;
      if (c + 1 < last) fetch<true>(c + 1, 1 - buffer);
      step<true>(c, buffer, c + 1 < last);
    }
    wait_for_all_copies();
  }
  __device__ void adjoints() {
    const std::int64_t whole = (b_ * op_.heads + head_) * op_.state_size();
    if (op_.dfinal != nullptr) load(op_.dfinal + whole);
    if (op_.chunks > 0) fetch<false>(op_.chunks - 1, 0);
    for (std::int64_t c = op_.chunks - 1; c >= 0; --c) {
      store(SsdMma::adjoint(op_, row_, c, head_));
      const int buffer = static_cast<int>(op_.chunks - 1 - c) % 2;
      if (c > 0) fetch<false>(c - 1, 1 - buffer);
      step<false>(c, buffer, c > 0);
    }
    if (op_.dinitial == nullptr) return;
    each([to = op_.dinitial + whole](int at, float& first, float& second) {
      *reinterpret_cast<float2*>(to + at) = {first, second};
    });
  }

 private:
  __device__ bf16* channels(int buffer) const {
    return reinterpret_cast<bf16*>(memory_ + buffer * buffer_bytes);
  }
  __device__ bf16* states_of(int buffer) const { return channels(buffer) + channel_tile; }
  __device__ float* weights_of(int buffer) const {
    return reinterpret_cast<float*>(states_of(buffer) + state_tile);
  }

  template <bool kForward>
  __device__ void fetch(std::int64_t c, int buffer) const {
    const SsdChunk chunk = op_.chunk(c);
    const ScanTrack& x = kForward ? op_.x : op_.dy;
    const ScanTrack& B = kForward ? op_.B : op_.C;
    fetch_tile<mma_walk_threads, mma_channels>(
        channels(buffer), x.at<bf16>(b_, chunk.start) + std::int64_t{head_} * op_.head_dim,
        x.step_pitch, chunk.steps, op_.head_dim);
    fetch_tile<mma_walk_threads, mma_states>(
        states_of(buffer),
        B.at<bf16>(b_, chunk.start) + std::int64_t{head_ / op_.group_heads()} * op_.d_state,
        B.step_pitch, chunk.steps, op_.d_state);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < weights / 4) {
      copy_16_bytes(weights_of(buffer) + 4 * thread, op_.steps_of(row_, c, head_).at + 4 * thread,
                    16);
    }
    end_of_copies();
  }

  // state = decay state + sum over i of weight[i] channels[i] states[i]^T
  template <bool kForward>
  __device__ void step(std::int64_t c, int buffer, bool more) {
    if (more) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    const SsdSteps steps{weights_of(buffer)};
    const auto weight = [&](int i) { return kForward ? steps.weight(i) : steps.from_start(i); };
    if (op_.parted[row_ * op_.chunks + c] != 0) forget(states_of(buffer), weight);
    const float decay = steps.from_start(ssd_chunk - 1);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      float& value = state_[i / 4][i % 4];
      value = decay == 0 ? 0 : decay * value;
    }
    const Lane lane;
#pragma unroll
    for (int k = 0; k < ssd_chunk; k += 16) {
      std::uint32_t a[4];
      load_rows_across(a, channels(buffer), channel_pitch, p_, k, lane);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int i = k + 8 * (n / 2) + 2 * lane.q();
        const float w[2] = {weight(i), weight(i + 1)};
        float first, second;
        unpack_pair(a[n], first, second);
        a[n] = pack_pair(w[0] == 0 ? 0 : w[0] * first, w[1] == 0 ? 0 : w[1] * second);
      }
#pragma unroll
      for (int t = 0; t < 8; t += 2) {
        std::uint32_t b[4];
        load_columns_across(b, states_of(buffer), state_pitch, n_ + 8 * t, k, lane);
        multiply_pair(state_[t], state_[t + 1], a, b);
      }
    }
    __syncthreads();
  }
  // What lies on the far side of a reset, whatever it is, becomes zero.
  template <class F>
  __device__ void forget(bf16* tile, const F& weight) const {
    const int thread = static_cast<int>(threadIdx.x), row = thread / 4;
    if (weight(row) == 0) {
      for (int column = 8 * (thread % 4); column < mma_states; column += 32) {
        *reinterpret_cast<uint4*>(tile + row * state_pitch + column) = uint4{};
      }
    }
    __syncthreads();
  }

  // f(offset in the state, two elements)
  template <class F>
  __device__ void each(const F& f) {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int p = p_ + lane.g() + 8 * half, n = n_ + 8 * t + 2 * lane.q();
        if (p < op_.head_dim && n < op_.d_state) {
          f(p * op_.d_state + n, state_[t][2 * half], state_[t][2 * half + 1]);
        }
      }
    }
  }
  __device__ void load(const float* from) {
    each([from](int at, float& first, float& second) {
      const float2 both = *reinterpret_cast<const float2*>(from + at);
      first = both.x;
      second = both.y;
    });
  }
  __device__ void store(bf16* to) const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int p = p_ + lane.g() + 8 * half, n = n_ + 8 * t;
        store_row(to + p * op_.d_state + n, {state_[t][2 * half], state_[t][2 * half + 1]},
                  {state_[t + 1][2 * half], state_[t + 1][2 * half + 1]}, p < op_.head_dim,
                  op_.d_state - n, lane);
      }
    }
  }

  const SsdGradOperands& op_;
  const std::int64_t row_, b_;
  const int head_;
  int p_, n_;
  char* memory_;
  float state_[8][4] = {};
};

// Blocks of the adjoints, which walk longest, come first.
__global__ void __launch_bounds__(mma_walk_threads, 2)
    ssd_grad_mma_walk_kernel(const __grid_constant__ SsdGradOperands op) {
  extern __shared__ __align__(16) char ssd_grad_memory[];
  const std::int64_t all = op.rows * op.heads;
  const std::int64_t walk = blockIdx.x / all, at = blockIdx.x - walk * all, row = at / op.heads;
  MmaWalk block(op, row, static_cast<int>(at - row * op.heads), ssd_grad_memory);
  if (walk == 0) {
    block.adjoints();
  } else {
    block.states(walk - 1);
  }
}

}  // namespace mamba::cuda
