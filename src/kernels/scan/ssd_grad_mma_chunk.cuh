// SsdGrad on tensor cores: a chunk of some heads of a group, by 16 warps. The first eight have rows
// of steps i, where outputs are: Z, dC and what spans each step. The others have rows of steps j,
// where inputs are: dx and dB. Of either, warp w has 16 rows from 16 (w % 4) on, and half of the
// columns. Tiles of the next head arrive meanwhile.
#pragma once

#include "kernels/scan/ssd_grad_mma.cuh"

namespace mamba::cuda {

constexpr int mma_chunk_threads = 512;

class MmaChunk {
  // Where the block's first head is in memory: kept where it takes no registers.
  struct Sources {
    const bf16 *x, *dy, *S, *G;
    const float* of_steps;
    bf16* dx;
    std::int64_t row, c, start;  // of the chunk
    int steps, group, head_block, first_head, heads;
    bool parted;
  };

 public:
  static constexpr int warps = mma_chunk_threads / 32;
  static constexpr int buffer_bytes = 4 * (channel_tile + state_tile) + 4 * SsdSteps::floats;
  static constexpr int fixed_bytes =
      4 * state_tile + 2 * channel_tile + 2 * buffer_bytes + sizeof(Sources);
  // What is kept of each head until all of dlog_a is known, 64 floats each: of the sums that span a
  // step, those of four groups of rows, and the rows' sums over the first half of the columns; what
  // two halves of the columns make of the next three; and dy . x.
  enum Kept { spans = 0, half_rows = 4, from_state = 5, to_adjoint = 7, input = 9, skip = 11 };
  static constexpr int kept_floats = 12 * ssd_chunk + warps / 2;  // the last ones: E[last] <G, S>
  static constexpr int shared_bytes(int heads) { return fixed_bytes + 4 * kept_floats * heads; }

  __device__ MmaChunk(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int group,
                      int head_block)
      : op_(op), rows_(thread() / 32 % 4 * 16), half_(thread() / 128 % 2) {
    if (thread() == 0) find_sources(row, c, group, head_block);
    __syncthreads();
  }

  __device__ void run() {
    fetch_states(op_.B, B());
    fetch_states(op_.C, C());
    fetch(0);
    if (thread() < mma_chunk_threads / 2) {
      walk_outputs();
    } else {
      walk_inputs();
    }
    finish();
  }

 private:
  static __device__ char* memory() {
    extern __shared__ __align__(16) char ssd_grad_memory[];
    return ssd_grad_memory;
  }
  static __device__ int thread() { return thread_id(); }
  __device__ int head(int h) const { return sources().first_head + h; }
  __device__ float* kept(int what) const {
    return all_kept() + h_ * kept_floats + what * ssd_chunk;
  }
  // The row of half `half` of a fragment that this lane has.
  __device__ int row_of(int half, Lane lane) const { return rows_ + lane.g() + 8 * half; }

  __device__ bf16* tiles(int h) const {
    return reinterpret_cast<bf16*>(memory() + h % 2 * buffer_bytes);
  }
  __device__ bf16* x() const { return tiles(h_); }
  __device__ bf16* dy() const { return x() + channel_tile; }
  __device__ bf16* S() const { return dy() + channel_tile; }
  __device__ bf16* G() const { return S() + state_tile; }
  __device__ SsdSteps steps() const { return {reinterpret_cast<float*>(G() + state_tile)}; }
  __device__ bf16* B() const { return reinterpret_cast<bf16*>(memory() + 2 * buffer_bytes); }
  __device__ bf16* C() const { return B() + state_tile; }
  __device__ bf16* mixed() const { return C() + state_tile; }
  __device__ Sources& sources() const {
    return *reinterpret_cast<Sources*>(mixed() + channel_tile);
  }
  __device__ float* all_kept() const { return reinterpret_cast<float*>(&sources() + 1); }
  __device__ void begin(int h) {
    h_ = h;
    wait_for_all_copies();
    __syncthreads();
    if (h + 1 < sources().heads) fetch(h + 1);
  }
  __device__ void fetch_states(const ScanTrack& track, bf16* to) const {
    fetch_tile<mma_chunk_threads, mma_states>(
        to,
        track.at<bf16>(op_.first_row + sources().row, sources().start) +
            std::int64_t{sources().group} * op_.d_state,
        track.step_pitch, sources().steps, op_.d_state);
  }
  __device__ void find_sources(std::int64_t row, std::int64_t c, int group, int head_block) const {
    const SsdHeads heads(op_, group, head_block);
    const std::int64_t column = std::int64_t{heads.first} * op_.head_dim;
    const std::int64_t b = op_.first_row + row, start = op_.chunk(c).start;
    Sources& all = sources();
    all.row = row;
    all.c = c;
    all.start = start;
    all.steps = op_.chunk(c).steps;
    all.parted = op_.parted[row * op_.chunks + c] != 0;
    all.group = group;
    all.head_block = head_block;
    all.first_head = heads.first;
    all.heads = heads.count;
    all.x = op_.x.at<bf16>(b, start) + column;
    all.dy = op_.dy.at<bf16>(b, start) + column;
    all.dx = op_.dx.out<bf16>(b, start) + column;
    all.S = SsdMma::state(op_, row, c, heads.first);
    all.G = SsdMma::adjoint(op_, row, c, heads.first);
    all.of_steps = op_.steps_of(row, c, heads.first).at;
  }
  __device__ void fetch(int h) const {
    const Sources& from = sources();
    const int channel = h * op_.head_dim, state = channel * op_.d_state;
    bf16* to = tiles(h);
    fetch_tile<mma_chunk_threads, mma_channels>(to, from.x + channel, op_.x.step_pitch,
                                                sources().steps, op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_channels>(to += channel_tile, from.dy + channel,
                                                op_.dy.step_pitch, sources().steps, op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_states>(to += channel_tile, from.S + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    fetch_tile<mma_chunk_threads, mma_states>(to += state_tile, from.G + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    const int piece = 4 * thread();
    if (piece < SsdSteps::floats) {
      copy_16_bytes(reinterpret_cast<float*>(to + state_tile) + piece,
                    from.of_steps + h * SsdSteps::floats + piece, 16);
    }
    end_of_copies();
  }
  // Whether this thread's part of a tile has an infinity or NaN.
  static __device__ bool has_wild(const bf16* tile, int pitch, int width) {
    bool found = false;
    const int row = thread() / 8;
    for (int column = thread() % 8 * 2; column < width; column += 16) {
      float first, second;
      load_pair(tile + row * pitch + column, first, second);
      found = found || !isfinite(first) || !isfinite(second);
    }
    return found;
  }

  // The two kinds of warps meet at the same barriers: in begin(), where a head's tiles are there
  // and all are done with the head before; in is_wild(), where L (C . B) is; and behind the last
  // head, before Z takes its place and when it has.
  __device__ void walk_outputs() {
    for (int h = 0; h < sources().heads; ++h) {
      begin(h);
      if (h == 0) multiply_CB();
      within_chunk();
      is_wild();
      from_states();
      through();
    }
    __syncthreads();
    put_Z();
    add_within<true>();
  }
  __device__ void walk_inputs() {
    for (int h = 0; h < sources().heads; ++h) {
      begin(h);
      from_adjoint();
      from_outputs(is_wild());
    }
    __syncthreads();
    add_within<false>();
  }
  __device__ bool is_wild() const {
    return __syncthreads_or(sources().parted && has_wild(dy(), channel_pitch, mma_channels)) != 0;
  }

  // The sum of a value of each row over the four lanes that share it, to to[half_][row].
  __device__ void put_row_sums(int what, float (&sums)[2], Lane lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 1);
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 2);
      if (lane.q() == 0) kept(what + half_)[row_of(half, lane)] = sums[half];
    }
  }

  // ---- rows of outputs ----

  __device__ void multiply_CB() {
    const Lane lane;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4];
      load_rows(a, C(), state_pitch, rows_, k, lane);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        if (is_above(t)) continue;
        std::uint32_t b[4];
        load_columns(b, B(), state_pitch, column(t), k, lane);
        multiply_pair(CB_[t], CB_[t + 1], a, b);
      }
    }
  }
  __device__ int column(int t) const { return 32 * half_ + 8 * t; }
  // Whether tiles t and t + 1 have only steps j behind all steps i of this warp.
  __device__ bool is_above(int t) const { return column(t) > rows_; }

  __device__ void within_chunk() {
    const Lane lane;
    float T[4][4] = {};
#pragma unroll
    for (int k = 0; k < mma_channels; k += 16) {
      std::uint32_t a[4];
      load_rows(a, dy(), channel_pitch, rows_, k, lane);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        if (is_above(t)) continue;
        std::uint32_t b[4];
        load_columns(b, x(), channel_pitch, column(t), k, lane);
        multiply_pair(T[t], T[t + 1], a, b);
      }
    }
    float before[2] = {}, down[8];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      if (!is_above(t & ~1)) mix(t, T[t], lane);
      sum_along_rows(t, T[t], before, down, lane);
    }
    if (half_ == 0 && lane.q() == 0) {
      kept(half_rows)[row_of(0, lane)] = before[0];
      kept(half_rows)[row_of(1, lane)] = before[1];
    }
    put_spans(down, lane);
  }
  // From dy . x of a tile: Z, which is added to those before; L (C . B), which goes to the rows of
  // inputs; and Z (C . B), in its place.
  __device__ void mix(int t, float (&dyx)[4], Lane lane) {
    const int j0 = column(t) + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row_of(half, lane);
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = j0 + e, at = 2 * half + e;
        const float L = j > i ? 0.0f : exp2_approx(-log2e * steps().way(i, j));
        if (i == j) kept(skip)[i] = dyx[at];
        const float z = L == 0 ? 0.0f : dyx[at] * (L * steps().delta(j));
        Z_[t][at] += z;
        dyx[at] = L == 0 ? 0.0f : z * CB_[t][at];
        pair[e] = L == 0 ? 0.0f : L * CB_[t][at];
      }
      *reinterpret_cast<std::uint32_t*>(mixed() + i * channel_pitch + j0) =
          pack_pair(pair[0], pair[1]);
    }
  }
  // spans[k] = the sum over rows i >= k and columns j < k: along each row first, here over this
  // warp's half of the columns, then down each column. before: the rows' sums over tiles before.
  __device__ void sum_along_rows(int t, const float (&tile)[4], float (&before)[2],
                                 float (&down)[8], Lane lane) const {
    const int k = column(t) + 2 * lane.q();
    down[2 * t] = down[2 * t + 1] = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float own = tile[2 * half] + tile[2 * half + 1];
      const float beside = __shfl_xor_sync(all_lanes, own, 1), two = own + beside;
      const float others = __shfl_xor_sync(all_lanes, two, 2);
      const float here = before[half] + ((lane.q() & 2) != 0 ? others : 0.0f) +
                         ((lane.q() & 1) != 0 ? beside : 0.0f);
      if (row_of(half, lane) >= k) down[2 * t] += here;
      if (row_of(half, lane) >= k + 1) down[2 * t + 1] += here + tile[2 * half];
      before[half] += two + others;
    }
  }
  __device__ void put_spans(const float (&down)[8], Lane lane) const {
    // Lanes that share columns add up, each for one of the eight in the end.
    const int g = lane.g();
    float four[4], two[2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const bool high = (g & 4) != 0;
      four[n] = (high ? down[n + 4] : down[n]) +
                __shfl_xor_sync(all_lanes, high ? down[n] : down[n + 4], 16);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const bool high = (g & 2) != 0;
      two[n] = (high ? four[n + 2] : four[n]) +
               __shfl_xor_sync(all_lanes, high ? four[n] : four[n + 2], 8);
    }
    const bool high = (g & 1) != 0;
    const float one =
        (high ? two[1] : two[0]) + __shfl_xor_sync(all_lanes, high ? two[0] : two[1], 4);
    kept(spans + rows_ / 16)[column(g / 2) + 2 * lane.q() + g % 2] = one;
  }

  // E S^T dy, added to dC, and its product with C.
  __device__ void from_states() {
    const Lane lane;
    float sums[2] = {};
#pragma unroll
    for (int t = 0; t < 8; t += 4) {
      float part[4][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        std::uint32_t a[4];
        load_rows(a, dy(), channel_pitch, rows_, 16 * k, lane);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          std::uint32_t b[4];
          load_columns_across(b, S(), state_pitch, 64 * half_ + 8 * (t + n), 16 * k, lane);
          multiply_pair(part[n], part[n + 1], a, b);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float weight = steps().from_start(row_of(half, lane));
        const bf16* row =
            C() + row_of(half, lane) * state_pitch + 64 * half_ + 8 * t + 2 * lane.q();
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float c[2];
          load_pair(row + 8 * n, c[0], c[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = weight == 0 ? 0 : weight * part[n][2 * half + e];
            total_[t + n][2 * half + e] += value;
            if (weight != 0) sums[half] = fmaf(value, c[e], sums[half]);
          }
        }
      }
    }
    put_row_sums(from_state, sums, lane);
  }
  // E[last] <G, S>, a share for each warp of outputs.
  __device__ void through() const {
    const float decay = steps().from_start(ssd_chunk - 1);
    float sum = 0;
    if (decay != 0) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int piece = thread() + n * mma_chunk_threads / 2;
        const int at = piece / 16 * state_pitch + piece % 16 * 8;
        float g[8], s[8];
        Packed<bf16, 8>::load(G() + at).unpack(g);
        Packed<bf16, 8>::load(S() + at).unpack(s);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(g[i], s[i], sum);
      }
    }
    sum = sum_of_lanes(sum);
    if (thread() % 32 == 0) kept(12)[thread() / 32] = decay == 0 ? 0 : decay * sum;
  }
  __device__ void put_Z() const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<std::uint32_t*>(mixed() + row_of(half, lane) * channel_pitch + column(t) +
                                          2 * lane.q()) =
            pack_pair(Z_[t][2 * half], Z_[t][2 * half + 1]);
      }
    }
  }

  // ---- rows of inputs ----

  // L[last, j] G B[j], which q begins with, and delta L[last, j] G^T x, added to dB.
  __device__ void from_adjoint() {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 16; ++i) q_[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4];
      load_rows(a, B(), state_pitch, rows_, k, lane);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        std::uint32_t b[4];
        load_columns(b, G(), state_pitch, column(t), k, lane);
        multiply_pair(q_[t], q_[t + 1], a, b);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float weight = steps().to_end(row_of(half, lane));
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& value = q_[i / 2][2 * half + i % 2];
        value = weight == 0 ? 0 : weight * value;
      }
    }
    put_products_with_x(to_adjoint, lane);
#pragma unroll
    for (int t = 0; t < 8; t += 4) {
      float part[4][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        std::uint32_t a[4];
        load_rows(a, x(), channel_pitch, rows_, 16 * k, lane);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          std::uint32_t b[4];
          load_columns_across(b, G(), state_pitch, 64 * half_ + 8 * (t + n), 16 * k, lane);
          multiply_pair(part[n], part[n + 1], a, b);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float weight = steps().weight(row_of(half, lane));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float value = part[i / 2][2 * half + i % 2];
          total_[t + i / 2][2 * half + i % 2] += weight == 0 ? 0 : weight * value;
        }
      }
    }
  }
  __device__ void put_products_with_x(int what, Lane lane) const {
    float sums[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        float in[2];
        load_pair(x() + row_of(half, lane) * channel_pitch + column(t) + 2 * lane.q(), in[0],
                  in[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = q_[t][2 * half + e];
          if (value != 0) sums[half] = fmaf(value, in[e], sums[half]);
        }
      }
    }
    put_row_sums(what, sums, lane);
  }
  // What outputs from step j on have, and with it all of q; dx.
  __device__ void from_outputs(bool wild) {
    const Lane lane;
    if (wild) {
      add_selected<false>(
          q_, lane, [&](int j, int i) { return mixed()[i * channel_pitch + j]; }, dy(),
          channel_pitch, 32 * half_);
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (k < rows_) continue;
        std::uint32_t a[4];
        load_rows_across(a, mixed(), channel_pitch, rows_, k, lane);
#pragma unroll
        for (int t = 0; t < 4; t += 2) {
          std::uint32_t b[4];
          load_columns_across(b, dy(), channel_pitch, column(t), k, lane);
          multiply_pair(q_[t], q_[t + 1], a, b);
        }
      }
    }
    put_products_with_x(input, lane);
    const float D = op_.D == nullptr ? 0 : op_.D[head(h_)];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = row_of(half, lane);
      const float delta = steps().delta(j);
#pragma unroll
      for (int t = 0; t < 4; t += 2) {
        float dx[2][2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float out[2];
          load_pair(dy() + j * channel_pitch + column(t + n) + 2 * lane.q(), out[0], out[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float skipped = op_.D == nullptr ? 0 : D * out[e];
            dx[n][e] = fmaf(delta, q_[t + n][2 * half + e], skipped);
          }
        }
        const bool there = j < sources().steps;
        bf16* to =
            sources().dx + (there ? j : 0) * op_.dx.step_pitch + h_ * op_.head_dim + column(t);
        store_row(to, dx[0], dx[1], there, op_.head_dim - column(t), lane);
      }
    }
  }

  // ---- behind the last head ----

  // sums += a(row, k) b[k][column], where a is not zero: what a reset parts may be infinite or NaN
  // there. Slow, and only for such chunks. `a` is zero where k and row do not belong together.
  template <bool kOutputs, int kTiles, class A>
  __device__ void add_selected(float (&sums)[kTiles][4], Lane lane, const A& a, const bf16* b,
                               int pitch, int first) const {
    for (int k = 0; k < ssd_chunk; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(half, lane);
        if (kOutputs ? k > row : k < row) continue;
        const float factor = to_float(a(row, k));
        if (factor == 0) continue;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          float value[2];
          load_pair(b + k * pitch + first + 8 * t + 2 * lane.q(), value[0], value[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[t][2 * half + e] = fmaf(factor, value[e], sums[t][2 * half + e]);
          }
        }
      }
    }
  }
  // Z B to dC, or Z^T C to dB, of all heads at once.
  template <bool kOutputs>
  __device__ void add_within() {
    const Lane lane;
    const bool wild =
        __syncthreads_or(sources().parted && (has_wild(B(), state_pitch, mma_states) ||
                                              has_wild(C(), state_pitch, mma_states))) != 0;
    const bf16* states = kOutputs ? B() : C();
    if (wild) {
      add_selected<kOutputs>(
          total_, lane,
          [&](int row, int k) {
            return mixed()[kOutputs ? row * channel_pitch + k : k * channel_pitch + row];
          },
          states, state_pitch, 64 * half_);
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (kOutputs ? k > rows_ : k < rows_) continue;
        std::uint32_t a[4];
        if constexpr (kOutputs) {
          load_rows(a, mixed(), channel_pitch, rows_, k, lane);
        } else {
          load_rows_across(a, mixed(), channel_pitch, rows_, k, lane);
        }
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
          std::uint32_t b[4];
          load_columns_across(b, states, state_pitch, 64 * half_ + 8 * t, k, lane);
          multiply_pair(total_[t], total_[t + 1], a, b);
        }
      }
    }
    const std::int64_t first =
        std::int64_t{sources().group} * op_.d_state + 64 * half_ + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row_of(half, lane) >= sources().steps) continue;
      const PutStates<bf16> put(op_, kOutputs, sources().row, sources().start + row_of(half, lane),
                                sources().head_block, first);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        if (64 * half_ + 8 * t >= op_.d_state) break;
        put(8 * t, total_[t][2 * half]);
        put(8 * t + 1, total_[t][2 * half + 1]);
      }
    }
  }
  __device__ void finish() {
    const int lane = thread() % 32;
    for (int h = thread() / 32; h < sources().heads; h += warps) {
      h_ = h;
      const SsdSteps steps = op_.steps_of(sources().row, sources().c, head(h));
      const float rows[2] = {kept(half_rows)[2 * lane], kept(half_rows)[2 * lane + 1]};
      float behind = __shfl_down_sync(all_lanes, sum_of_lanes_from(rows[0] + rows[1]), 1);
      if (lane == 31) behind = 0;
      const float from[2] = {behind + rows[1] + rows[0], behind + rows[1]};
      SsdStepSums of[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int i = 2 * lane + n;
        const auto both = [&](int what) { return kept(what)[i] + kept(what + 1)[i]; };
        const float within = both(spans) + both(spans + 2), adjoint = both(to_adjoint);
        of[n] = {i < 32 ? within : within + from[n], both(from_state),
                 adjoint == 0 ? 0 : steps.delta(i) * adjoint, both(input), kept(skip)[i]};
      }
      float sum = 0;
      for (int w = 0; w < warps / 2; ++w) sum += kept(12)[w];
      finish_steps<bf16>(op_, sources().row, sources().c, head(h), of, sum);
    }
  }

  const SsdGradOperands& op_;
  const int rows_, half_;
  int h_ = 0;
  float CB_[4][4] = {}, Z_[4][4] = {}, q_[4][4];
  float total_[8][4] = {};  // dC or dB
};

__global__ void __launch_bounds__(mma_chunk_threads, 1)
    ssd_grad_mma_chunk_kernel(const __grid_constant__ SsdGradOperands op) {
  const std::int64_t blocks = std::int64_t{op.groups} * op.head_blocks;
  const std::int64_t chunk = blockIdx.x / blocks, row = chunk / op.chunks;
  const auto block = static_cast<int>(blockIdx.x - chunk * blocks);
  MmaChunk(op, row, chunk - row * op.chunks, block / op.head_blocks, block % op.head_blocks).run();
}

}  // namespace mamba::cuda
