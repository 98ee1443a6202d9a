// SsdGrad on f32 units: a chunk of some heads of a group.
#pragma once

#include "kernels/ssd_grad/plain.cuh"

namespace mamba::cuda {

template <class T>
class PlainChunk {
 public:
  // What is kept of each head and step until all of dlog_a is known.
  enum Kept { within, from_state, to_adjoint, input, skip, kept_arrays };
  static constexpr int tile_pitch = ssd_chunk + 1;
  static constexpr int tile_floats = ssd_chunk * tile_pitch;
  static constexpr int warps = plain_threads / 32;

  static std::int64_t shared_bytes(int heads) {
    return 4 * (plain_stage + 2 * tile_floats +
                std::int64_t{heads} * (kept_arrays * ssd_chunk + warps));
  }

  __device__ PlainChunk(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int group,
                        int head_block, float* memory)
      : op_(op),
        row_(row),
        c_(c),
        b_(op.first_row + row),
        group_(group),
        head_block_(head_block),
        heads_(op, group, head_block),
        chunk_(op.chunk(c)),
        selects_(op.parted[row * op.chunks + c] != 0),
        B_(op.B, b_, chunk_, std::int64_t{group} * op.d_state, op.d_state),
        C_(op.C, b_, chunk_, std::int64_t{group} * op.d_state, op.d_state),
        stage_(memory),
        tile_(stage_ + plain_stage),
        Z_(tile_ + tile_floats),
        kept_(Z_ + tile_floats),
        through_(kept_ + heads_.count * kept_arrays * ssd_chunk) {}

  __device__ void run() {
    for (int i = thread(); i < heads_.count * kept_arrays * ssd_chunk; i += plain_threads) {
      kept_[i] = 0;
    }
    clear(CB_);
    multiply<Along::depth, Along::depth>(CB_, op_.d_state, false, stage_, C_, B_);
    for (int h = 0; h < heads_.count; ++h) {
      begin(h);
      within_chunk();
      for (int p = 0; p < op_.head_dim; p += 64) inputs(p);
      through();
    }
    put_Z();
    for (int n = 0; n < op_.d_state; n += 64) {
      dC(n);
      dB(n);
    }
    __syncthreads();
    finish();
  }

 private:
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ int ty() { return thread() / 16; }
  static __device__ int tx() { return thread() % 16; }
  __device__ float* kept(int h, Kept what) const {
    return kept_ + (h * kept_arrays + what) * ssd_chunk;
  }
  __device__ int head() const { return heads_.first + h_; }
  __device__ PlainState state() const {
    return {SsdPlain::state_before(op_, row_, c_, head()), op_.head_dim, op_.d_state};
  }
  __device__ PlainState adjoint() const {
    return {SsdPlain::adjoint(op_, row_, c_, head()), op_.head_dim, op_.d_state};
  }
  __device__ PlainRows<T> channels(const ScanTrack& track) const {
    return {track, b_, chunk_, std::int64_t{head()} * op_.head_dim, op_.head_dim};
  }
  __device__ void begin(int h) {
    h_ = h;
    steps_ = op_.steps_of(row_, c_, head());
  }

  // to[row] += the sum over columns of value(r, s), by the 16 threads of each row.
  template <class F>
  __device__ void add_row_sums(float* to, const F& value) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float sum = 0;
#pragma unroll
      for (int s = 0; s < 4; ++s) sum += value(r, s);
#pragma unroll
      for (int apart = 8; apart > 0; apart /= 2) sum += __shfl_xor_sync(all_lanes, sum, apart);
      if (tx() == 0) to[4 * ty() + r] += sum;
    }
  }

  // Z of this head, added to those before; what spans each step; L (C . B) in the tile.
  __device__ void within_chunk() {
    const PlainRows<T> dy = channels(op_.dy), x = channels(op_.x);
    float dyx[4][4] = {}, mixed[4][4];
    multiply<Along::depth, Along::depth>(dyx, op_.head_dim, false, stage_, dy, x);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int i = 4 * ty() + r, j = 4 * tx() + s;
        const float L = i < j || i >= chunk_.steps ? 0.0f : exp_of_minus(steps_.way(i, j));
        const float z = L == 0 ? 0.0f : dyx[r][s] * L * steps_.delta(j);
        if (i == j) kept(h_, skip)[i] = dyx[r][s];
        Z_sums_[r][s] += z;
        tile_[i * tile_pitch + j] = L == 0 ? 0.0f : z * CB_[r][s];
        mixed[r][s] = L == 0 ? 0.0f : L * CB_[r][s];
      }
    }
    __syncthreads();
    sum_spans();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) tile_[(4 * ty() + r) * tile_pitch + 4 * tx() + s] = mixed[r][s];
    }
  }

  // within[k] = the sum of the tile over rows i >= k and columns j < k: sums along each row first,
  // then down each column.
  __device__ void sum_spans() const {
    const int at = thread() / 4, quarter = thread() % 4;
    float* row = tile_ + at * tile_pitch + 16 * quarter;
    float sum = 0;
    for (int j = 0; j < 16; ++j) sum += row[j];
    float before = 0;
#pragma unroll
    for (int apart = 1; apart < 4; ++apart) {
      const float other = __shfl_up_sync(all_lanes, sum, apart, 4);
      if (quarter >= apart) before += other;
    }
    for (int j = 0; j < 16; ++j) {
      const float value = row[j];
      row[j] = before;
      before += value;
    }
    __syncthreads();
    sum = 0;
    for (int i = max(16 * quarter, at); i < 16 * quarter + 16; ++i) {
      sum += tile_[i * tile_pitch + at];
    }
    sum += __shfl_xor_sync(all_lanes, sum, 1);
    sum += __shfl_xor_sync(all_lanes, sum, 2);
    if (quarter == 0) kept(h_, within)[at] = sum;
  }

  // dx of the 64 channels from p on, and x . q.
  __device__ void inputs(int p0) {
    const PlainRows<T> x = channels(op_.x), dy = channels(op_.dy);
    const PlainState G = adjoint();
    const float D = op_.D == nullptr ? 0 : op_.D[head()];
    float q[4][4] = {};
    multiply<Along::depth, Along::depth>(q, op_.d_state, false, stage_, B_,
                                         [&](int p, int n) { return G(p0 + p, n); });
    scale_rows(q, [&](int j) { return steps_.to_end(j); });
    const auto times_x = [&](int r, int s) {
      const float value = q[r][s];
      return value == 0 ? 0.0f : value * x(4 * ty() + r, p0 + 4 * tx() + s);
    };
    add_row_sums(kept(h_, to_adjoint), times_x);
    multiply<Along::rows, Along::rows>(
        q, chunk_.steps, selects_, stage_, [&](int j, int i) { return tile_[i * tile_pitch + j]; },
        [&](int p, int i) { return dy(i, p0 + p); });
    add_row_sums(kept(h_, input), times_x);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int j = 4 * ty() + r;
      if (j >= chunk_.steps) continue;
      T* to = op_.dx.out<T>(b_, chunk_.start + j) + std::int64_t{head()} * op_.head_dim;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int p = p0 + 4 * tx() + s;
        if (p >= op_.head_dim) continue;
        const float skipped = op_.D == nullptr ? 0 : D * dy(j, p);
        to[p] = from_float<T>(fmaf(steps_.delta(j), q[r][s], skipped));
      }
    }
  }

  // E[last] <G, S>, a share for each warp.
  __device__ void through() const {
    const float decay = steps_.from_start(ssd_chunk - 1);
    const float *S = state().data, *G = adjoint().data;
    float sum = 0;
    for (std::int64_t i = thread(); i < op_.state_size() && decay != 0; i += plain_threads) {
      sum = fmaf(G[i], S[i], sum);
    }
    sum = sum_of_lanes(sum);
    if (thread() % 32 == 0) through_[h_ * warps + thread() / 32] = decay == 0 ? 0 : decay * sum;
  }

  __device__ void put_Z() const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) Z_[(4 * ty() + r) * tile_pitch + 4 * tx() + s] = Z_sums_[r][s];
    }
  }

  __device__ void dC(int n0) {
    float total[4][4] = {};
    for (int h = 0; h < heads_.count; ++h) {
      begin(h);
      const PlainState S = state();
      float sums[4][4] = {};
      multiply<Along::depth, Along::rows>(sums, op_.head_dim, false, stage_, channels(op_.dy),
                                          [&](int n, int p) { return S(p, n0 + n); });
      scale_rows(sums, [&](int i) { return steps_.from_start(i); });
      add_row_sums(kept(h, from_state), [&](int r, int s) {
        return sums[r][s] == 0 ? 0.0f : sums[r][s] * C_(4 * ty() + r, n0 + 4 * tx() + s);
      });
      add_to(total, sums);
    }
    multiply<Along::depth, Along::rows>(
        total, chunk_.steps, selects_, stage_, [&](int i, int j) { return Z_[i * tile_pitch + j]; },
        [&](int n, int j) { return B_(j, n0 + n); });
    put(true, n0, total);
  }

  __device__ void dB(int n0) {
    float total[4][4] = {};
    for (int h = 0; h < heads_.count; ++h) {
      begin(h);
      const PlainState G = adjoint();
      float sums[4][4] = {};
      multiply<Along::depth, Along::rows>(sums, op_.head_dim, false, stage_, channels(op_.x),
                                          [&](int n, int p) { return G(p, n0 + n); });
      scale_rows(sums, [&](int j) { return steps_.weight(j); });
      add_to(total, sums);
    }
    multiply<Along::rows, Along::rows>(
        total, chunk_.steps, selects_, stage_, [&](int j, int i) { return Z_[i * tile_pitch + j]; },
        [&](int n, int i) { return C_(i, n0 + n); });
    put(false, n0, total);
  }

  __device__ void put(bool is_dC, int n0, const float (&sums)[4][4]) const {
    const int n = n0 + 4 * tx();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int i = 4 * ty() + r;
      if (i >= chunk_.steps) continue;
      const PutStates<T> put(op_, is_dC, row_, chunk_.start + i, head_block_,
                             std::int64_t{group_} * op_.d_state + n);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (n + s < op_.d_state) put(s, sums[r][s]);
      }
    }
  }

  __device__ void finish() {
    for (int h = thread() / 32; h < heads_.count; h += warps) {
      begin(h);
      SsdStepSums of[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int i = 2 * (thread() % 32) + n;
        const float adjoint = kept(h, to_adjoint)[i];
        of[n] = {kept(h, within)[i], kept(h, from_state)[i],
                 adjoint == 0 ? 0 : steps_.delta(i) * adjoint, kept(h, input)[i], kept(h, skip)[i]};
      }
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += through_[h * warps + w];
      finish_steps<T>(op_, row_, c_, head(), of, sum);
    }
  }

  const SsdGradOperands& op_;
  const std::int64_t row_, c_, b_;
  const int group_, head_block_;
  const SsdHeads heads_;
  const SsdGradChunk chunk_;
  const bool selects_;
  const PlainRows<T> B_, C_;
  float *stage_, *tile_, *Z_, *kept_, *through_;
  int h_ = 0;
  SsdGradSteps steps_{};
  float CB_[4][4], Z_sums_[4][4] = {};
};

template <class T>
__global__ void __launch_bounds__(plain_threads)
    ssd_grad_plain_chunk_kernel(const __grid_constant__ SsdGradOperands op) {
  extern __shared__ __align__(16) float ssd_grad_memory[];
  const std::int64_t blocks = std::int64_t{op.groups} * op.head_blocks;
  const std::int64_t chunk = blockIdx.x / blocks, row = chunk / op.chunks;
  const auto block = static_cast<int>(blockIdx.x - chunk * blocks);
  PlainChunk<T>(op, row, chunk - row * op.chunks, block / op.head_blocks, block % op.head_blocks,
                ssd_grad_memory)
      .run();
}

}  // namespace mamba::cuda
