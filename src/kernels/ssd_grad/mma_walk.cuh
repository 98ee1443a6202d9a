// States and adjoints from chunk to chunk, on tensor cores.
#pragma once

#include "kernels/ssd_grad/mma.cuh"

namespace mamba::cuda {

// The states of some heads of a group, which share B and C, walked forward from kept states to the
// next ones, or their adjoints, walked back from the end of the sequence to its start. Each of a
// head's four warps has 32 channels and 64 states.
template <int kHeads>
class MmaWalk {
 public:
  static constexpr int threads = 128 * kHeads;
  static constexpr int weights = 2 * ssd_chunk;  // SsdGradSteps::weights and starts
  static constexpr int head_bytes = 2 * channel_tile + 4 * weights;
  static constexpr int buffer_bytes = kHeads * head_bytes + 2 * state_tile;
  static constexpr int shared_bytes = 2 * buffer_bytes;

  // Of a row of the batch.
  static __host__ __device__ std::int64_t blocks(const SsdGradOperands& op) {
    return op.groups * std::int64_t{(op.heads / op.groups + kHeads - 1) / kHeads};
  }

  __device__ MmaWalk(const SsdGradOperands& op, int row, int block) : op_(op), row_(row) {
    const int of_group = (op.group_heads() + kHeads - 1) / kHeads;
    const int in_group = block % of_group * kHeads;
    group_ = block / of_group;
    first_head_ = group_ * op.group_heads() + in_group;
    heads_ = min(op.group_heads() - in_group, kHeads);
  }

  __device__ void states(int k) {
    const int first = k * op_.per_kept;
    const auto count = static_cast<int>(min(op_.chunks - first, std::int64_t{op_.per_kept}));
    if (is_there()) load(op_.kept_state(row_, first, head()));
    if (count > 1) fetch<true>(k, 0, 0);
    for (int n = 0;; ++n) {
      if (is_there()) store(SsdMma::state(op_, row_, first + n, head()));
      if (n + 1 == count) break;
      arrive();
      if (n + 2 < count) fetch<true>(k, n + 1, (n + 1) % 2);
      step(SsdGradSteps::weights, first + n, n % 2);
    }
  }
  __device__ void adjoints() {
    if (op_.dfinal != nullptr && is_there()) load(op_.dfinal + whole());
    int k = static_cast<int>(op_.kept) - 1;
    int n = static_cast<int>(op_.chunks) - 1 - k * op_.per_kept;
    if (op_.chunks > 0) fetch<false>(k, n, 0);
    for (int buffer = 0; k >= 0; buffer = 1 - buffer) {
      const int c = k * op_.per_kept + n;
      if (is_there()) store(SsdMma::adjoint(op_, row_, c, head()));
      arrive();
      if (--n < 0) {
        n = op_.per_kept - 1;
        --k;
      }
      if (k >= 0) fetch<false>(k, n, 1 - buffer);
      step(SsdGradSteps::starts, c, buffer);
    }
    if (op_.dinitial == nullptr || !is_there()) return;
    each([to = op_.dinitial + whole()](int at, float& first, float& second) {
      *reinterpret_cast<float2*>(to + at) = {first, second};
    });
  }

 private:
  static __device__ char* memory() {
    extern __shared__ __align__(16) char ssd_grad_memory[];
    return ssd_grad_memory;
  }
  // Which of the block's heads this warp has, its channels and its states.
  static __device__ int in_block() { return thread_id() / 128; }
  static __device__ int channel() { return thread_id() / 32 % 2 * 32; }
  static __device__ int state() { return thread_id() / 64 % 2 * 64; }
  __device__ bool is_there() const { return in_block() < heads_; }
  __device__ int head() const { return first_head_ + in_block(); }
  __device__ std::int64_t whole() const {
    return ((op_.first_row + row_) * op_.heads + head()) * op_.state_size();
  }
  __device__ bf16* states_of(int buffer) const {
    return reinterpret_cast<bf16*>(memory() + buffer * buffer_bytes);
  }
  __device__ bf16* channels(int buffer, int head) const {
    return states_of(buffer) + state_tile + head * (head_bytes / 2);
  }
  // Where SsdGradSteps would begin.
  __device__ float* steps_of(int buffer, int head) const {
    return reinterpret_cast<float*>(channels(buffer, head) + channel_tile) -
           SsdGradSteps::weights * ssd_chunk;
  }

  template <bool kForward>
  __device__ void fetch(int k, int n, int buffer) const {
    const SsdGradChunk chunk = op_.chunk(k, n);
    const int c = k * op_.per_kept + n;
    const std::int64_t b = op_.first_row + row_;
    const ScanTrack& x = kForward ? op_.x : op_.dy;
    const ScanTrack& B = kForward ? op_.B : op_.C;
    fetch_tile<threads, mma_states>(states_of(buffer),
                                    B.at<bf16>(b, chunk.start) + std::int64_t{group_} * op_.d_state,
                                    B.step_pitch, chunk.steps, op_.d_state);
#pragma unroll 1
    for (int head = 0; head < heads_; ++head) {
      fetch_tile<threads, mma_channels>(
          channels(buffer, head),
          x.at<bf16>(b, chunk.start) + std::int64_t{first_head_ + head} * op_.head_dim,
          x.step_pitch, chunk.steps, op_.head_dim);
      const int piece = SsdGradSteps::weights * ssd_chunk + 4 * thread_id();
      if (piece < SsdGradSteps::weights * ssd_chunk + weights) {
        copy_16_bytes(steps_of(buffer, head) + piece,
                      op_.steps_of(row_, c, first_head_ + head).at + piece, 16);
      }
    }
    end_of_copies();
  }
  // The tiles are there, and all are done with those before.
  static __device__ void arrive() {
    wait_for_all_copies();
    __syncthreads();
  }

  // state = decay state + sum over i of weight[i] channels[i] states[i]^T
  __device__ void step(SsdGradSteps::Array array, int c, int buffer) {
    if (op_.parted[row_ * op_.chunks + c] != 0) forget(array, buffer);
    if (!is_there()) return;
    const SsdGradSteps steps{steps_of(buffer, in_block())};
    const float decay = steps.from_start(ssd_chunk - 1);
    if (decay == 0) {
#pragma unroll
      for (int i = 0; i < 64; ++i) state_[i / 32][i / 4 % 8][i % 4] = 0;
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) state_[i / 32][i / 4 % 8][i % 4] *= decay;
    const Lane lane;
    const int p0 = channel(), n0 = state();
#pragma unroll
    for (int k = 0; k < ssd_chunk; k += 16) {
      float w[4];  // of the lane's depths
      load_floats<2>(steps.at + array * ssd_chunk + k + 2 * lane.q(),
                     reinterpret_cast<float(&)[2]>(w[0]));
      load_floats<2>(steps.at + array * ssd_chunk + k + 8 + 2 * lane.q(),
                     reinterpret_cast<float(&)[2]>(w[2]));
      std::uint32_t a[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        load_rows_across(a[part], channels(buffer, in_block()), channel_pitch, p0 + 16 * part, k,
                         lane);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float first, second;
          unpack_pair(a[part][n], first, second);
          a[part][n] = pack_pair(w[n / 2 * 2] * first, w[n / 2 * 2 + 1] * second);
        }
      }
#pragma unroll
      for (int t = 0; t < 8; t += 2) {
        std::uint32_t b[4];
        load_columns_across(b, states_of(buffer), state_pitch, n0 + 8 * t, k, lane);
        multiply_pair(state_[0][t], state_[0][t + 1], a[0], b);
        multiply_pair(state_[1][t], state_[1][t + 1], a[1], b);
      }
    }
  }
  // What lies on the far side of a reset, whatever it is, becomes zero. It is far for all heads.
  __device__ void forget(SsdGradSteps::Array array, int buffer) const {
    for (int piece = thread_id(); piece < 8 * ssd_chunk; piece += threads) {
      const int row = piece / 8, column = piece % 8 * 8;
      bool far = true;
      for (int head = 0; head < heads_; ++head) {
        const bool zero = SsdGradSteps{steps_of(buffer, head)}.get(array, row) == 0;
        far = far && zero;
        bf16* x = channels(buffer, head) + row * channel_pitch + column;
        if (zero) *reinterpret_cast<uint4*>(x) = uint4{};
      }
      for (int half = 0; half < 2 && far; ++half) {
        bf16* B = states_of(buffer) + row * state_pitch + column + half * mma_states / 2;
        *reinterpret_cast<uint4*>(B) = uint4{};
      }
    }
    __syncthreads();
  }

  // f(offset in the state, two elements)
  template <class F>
  __device__ void each(const F& f) {
    const Lane lane;
    const int p0 = channel(), n0 = state();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = p0 + lane.g() + 8 * i;
      if (p >= op_.head_dim) continue;
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const int n = n0 + 8 * t + 2 * lane.q();
        float(&pair)[4] = state_[i / 2][t];
        if (n < op_.d_state) f(p * op_.d_state + n, pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
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
    const int p0 = channel(), n0 = state();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int p = p0 + lane.g() + 8 * i;
#pragma unroll
      for (int t = 0; t < 8; t += 4) {
        float tiles[4][2];
#pragma unroll
        for (int n = 0; n < 8; ++n)
          tiles[n / 2][n % 2] = state_[i / 2][t + n / 2][i % 2 * 2 + n % 2];
        store_row(to + p * op_.d_state + n0 + 8 * t, tiles, p < op_.head_dim,
                  op_.d_state - n0 - 8 * t, lane);
      }
    }
  }

  const SsdGradOperands& op_;
  const int row_;
  int group_, first_head_, heads_;
  float state_[2][8][4] = {};
};

// Blocks of the adjoints, which walk longest, come first.
template <int kHeads>
__global__ void __launch_bounds__(MmaWalk<kHeads>::threads, 4 / kHeads)
    ssd_grad_mma_walk_kernel(const __grid_constant__ SsdGradOperands op) {
  const std::int64_t of_row = MmaWalk<kHeads>::blocks(op), all = op.rows * of_row;
  const std::int64_t walk = blockIdx.x / all, at = blockIdx.x - walk * all, row = at / of_row;
  MmaWalk<kHeads> block(op, static_cast<int>(row), static_cast<int>(at - row * of_row));
  if (walk == 0) {
    block.adjoints();
  } else {
    block.states(static_cast<int>(walk) - 1);
  }
}

}  // namespace mamba::cuda
