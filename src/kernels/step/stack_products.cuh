// What the layers of a step of a stack have in common: a block's inputs come from all blocks, and
// are multiplied with its rows of a matrix.
//
// Products are those of the tensor cores (m16n8k16), with weights as the 8 columns and the rows of
// the batch, four at most, among the 16 rows. The tensor cores add up over depth in any order that
// both operands share, so a lane's 8 neighbouring inputs and weights go in as they lie in memory.
#pragma once

#include <algorithm>

#include "kernels/gpu/ptx.cuh"
#include "kernels/step/stack_weights.cuh"

namespace mamba::cuda::stack {

// Single: one batch row.
template <int Slots, bool Single>
class Products {
 protected:
  __device__ __forceinline__ Products(const Operands& operands, char* shared)
      : op_(operands),
        step_(operands.step),
        plan_(operands.plan),
        memory_(shared),
        warp_(__shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        weights_(operands, shared, warp_, lane_) {}

  __device__ __forceinline__ int batch() const { return Single ? 1 : step_.rows; }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory_ + offset);
  }

  // f(n, r) for each batch row and 0 <= r < count, a thread each; whole warps come along with an r
  // that is not there (`count` or more) where Whole.
  template <bool Whole = false, class F>
  __device__ __forceinline__ void each(int count, F f) const {
    const int all = count * batch();
    for (int i = static_cast<int>(threadIdx.x); (Whole ? i - lane_ : i) < all; i += threads) {
      const int n = batch() == 1 ? 0 : i / count;
      f(i < all ? n : 0, i < all ? i - n * count : count);
    }
  }

  // Lanes of a batch row where a warp reads its inputs: a lane has values of one row only.
  __device__ __forceinline__ int lanes_of_row() const {
    return batch() > 2 ? 8 : batch() > 1 ? 16 : 32;
  }
  __device__ __forceinline__ T* inputs_of(int n) const {
    return at<T>(plan_.inputs) + (warp_ * batch() + n) * plan_.input_pitch;
  }
  // This warp's pairs of words, `each` of them to a piece: keep(i, n, pair) takes pair i of batch
  // row n, once it is of `round`.
  template <int each, class Keep>
  __device__ __forceinline__ void take(const Word* words, const Pieces& pieces, int inputs,
                                       int round, Keep keep) const {
    constexpr int together = 4;  // on their way at a time
    const int lanes = lanes_of_row();
    const int n = lane_ / lanes, count = weights_.pieces_of(inputs) * each;
    int i = lane_ % lanes;
    const Word* from = words + 2 * ((warp_ * batch() + n) * pieces.most * each + i);
    for (; i < count && n < batch(); i += together * lanes, from += 2 * together * lanes) {
      WordPair pairs[together] = {};  // of no round
      bool ready;
      do {
#pragma unroll
        for (int j = 0; j < together; ++j) {
          if (i + j * lanes < count && !is_of(pairs[j], round))
            look(from + 2 * j * lanes, pairs[j]);
        }
        ready = true;
#pragma unroll
        for (int j = 0; j < together; ++j) {
          ready = ready && (i + j * lanes >= count || is_of(pairs[j], round));
        }
      } while (!ready);
#pragma unroll
      for (int j = 0; j < together; ++j) {
        if (i + j * lanes < count) keep(i + j * lanes, n, pairs[j]);
      }
    }
    __syncwarp();
  }

  // Products of the inputs with this block's rows of a matrix: this warp's part of the sums.
  __device__ __forceinline__ void multiply(int inputs, int rows, float* sums, int pitch) {
    const int pieces = weights_.pieces_of(inputs);
    const int g = lane_ / 4, q = lane_ % 4;
    const T* x = inputs_of(min(g, batch() - 1)) + q * 8;
    const auto add = [](float(&to)[4], const uint4& a, const uint4& b) {
      mma<T>(to, a.x, 0, a.y, 0, b.x, b.y);
      mma<T>(to, a.z, 0, a.w, 0, b.z, b.w);
    };
    for (int first = 0; first < rows; first += tile) {
      float even[4] = {}, odd[4] = {};
      const T* from = x;
      int left = pieces;
      for (; left >= 2; left -= 2) {
        wait_for_copies<Slots - 2>();
        const uint4 w0 = Load::fragment({load_shared(weights_.oldest)});
        const uint4 w1 = Load::fragment({load_shared(weights_.next(weights_.oldest))});
        const uint4 x0 = *reinterpret_cast<const uint4*>(from);
        const uint4 x1 = *reinterpret_cast<const uint4*>(from + piece);
        from += 2 * piece;
        add(even, x0, w0);
        add(odd, x1, w1);
        weights_.request();
        weights_.request();
      }
      if (left > 0) {
        wait_for_copies<Slots - 1>();
        add(even, *reinterpret_cast<const uint4*>(from),
            Load::fragment({load_shared(weights_.oldest)}));
        weights_.request();
      }
      if (g < batch()) {
        float* to = sums + (g * pitch + first + 2 * q) * sum_pitch + warp_;
        to[0] = even[0] + odd[0];
        to[sum_pitch] = even[1] + odd[1];
      }
    }
  }
  // Of what the warps have left side by side.
  static __device__ __forceinline__ float total(const float* parts) {
    float sum[4];
    load_floats<4>(parts, sum);
#pragma unroll
    for (int w = 4; w < warps; w += 4) {
      float more[4];
      load_floats<4>(parts + w, more);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += more[i];
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  const Operands& op_;
  const Mamba1Step& step_;
  const Plan& plan_;
  char* memory_;
  int warp_, lane_;
  WeightStream<Slots> weights_;
};

}  // namespace mamba::cuda::stack
