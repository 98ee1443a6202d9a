// SsdGrad on tensor cores: a chunk of some heads of a group, by 16 warps. Warp 4 c + r has rows of
// steps from 16 r on: as steps i, where outputs are, with 16 c of the steps j of inputs; and as
// steps j with 16 c of the channels. Of what is summed over heads the first eight warps have dC and
// the others dB, half of the states each. Tiles of the next head arrive meanwhile.
#pragma once

#include "kernels/scan/ssd_grad_mma.cuh"

namespace mamba::cuda {

constexpr int mma_chunk_threads = 512;

class MmaChunk {
  // What is asked for once a head, kept where it takes no registers.
  struct Place {
    const bf16 *x, *dy, *S, *G;  // of the block's first head
    const float* steps;
    bf16* dx;
    std::int64_t row, c, start;  // of the chunk
    int count;                   // its steps
    int group, head_block, first_head, heads;
    bool parted;
  };

 public:
  static constexpr int warps = mma_chunk_threads / 32;
  static constexpr int buffer_bytes = 4 * (channel_tile + state_tile) + 4 * SsdSteps::floats;
  // What warps know of a head's steps, 64 floats each: of the sums that span a step, what four
  // groups of rows have, and the rows' sums over three groups of columns; what two halves of the
  // states and four groups of channels make of the next; and dy . x. It is written for one head
  // while that of the head before is added up.
  enum Part { spans = 0, rows_before = 4, from_state = 7, to_adjoint = 9, input = 13, parts = 17 };
  // Of each head until the end: its part of the sums that span a step, what columns before the
  // second, third and fourth group add to them, the next three, dy . x, and shares of E[last] <G,
  // S>.
  enum Kept { of_spans = 0, of_rows = 1, of_state = 4, of_adjoint = 5, of_input = 6, skip = 7 };
  static constexpr int kept_floats = 8 * ssd_chunk + warps, through = 8 * ssd_chunk;
  static constexpr int fixed_bytes = 4 * state_tile + 2 * channel_tile + 2 * 4 * parts * ssd_chunk +
                                     static_cast<int>(sizeof(Place));
  static constexpr int shared_bytes(int heads, int buffers) {
    return fixed_bytes + buffers * buffer_bytes + 4 * kept_floats * heads;
  }

  __device__ MmaChunk(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int group,
                      int head_block)
      : op_(op), rows_(thread() / 32 % 4 * 16), column_(thread() / 128 * 16) {
    if (thread() == 0) find_place(row, c, group, head_block);
    __syncthreads();
  }

  __device__ void run() {
    fetch_states(op_.B, B());
    fetch_states(op_.C, C());
    fetch(0);
    for (int h = 0; h < place().heads; ++h) {
      begin(h);
      if (h == 0 && !is_above()) multiply_CB();
      if (!is_above()) {
        within_chunk();
      } else if (h > 0) {
        add_up(h - 1);
      }
      if (is_of_outputs()) {
        from_far<true>();
      } else {
        from_far<false>();
      }
      from_adjoint();
      put_through();
      from_outputs(
          __syncthreads_or(place().parted && has_wild(dy(), channel_pitch, mma_channels)) != 0);
    }
    __syncthreads();
    if (is_above()) {
      add_up(place().heads - 1);
    } else {
      put_Z();
    }
    const bool wild = __syncthreads_or(place().parted && (has_wild(B(), state_pitch, mma_states) ||
                                                          has_wild(C(), state_pitch, mma_states)));
    if (is_of_outputs()) {
      add_within<true>(wild);
    } else {
      add_within<false>(wild);
    }
    finish();
  }

 private:
  // ---- what lies where ----

  static __device__ int thread() { return thread_id(); }
  static __device__ char* memory() {
    extern __shared__ __align__(16) char ssd_grad_memory[];
    return ssd_grad_memory;
  }
  static __device__ Place& place() {
    return *reinterpret_cast<Place*>(memory() + fixed_bytes - sizeof(Place));
  }
  static __device__ bf16* B() { return reinterpret_cast<bf16*>(memory()); }
  static __device__ bf16* C() { return B() + state_tile; }
  static __device__ bf16* mixed() { return C() + state_tile; }
  static __device__ float* part(int h, int what) {
    return reinterpret_cast<float*>(mixed() + channel_tile) + (h % 2 * parts + what) * ssd_chunk;
  }
  __device__ char* buffer(int h) const {
    return memory() + fixed_bytes + (h & (op_.buffers - 1)) * buffer_bytes;
  }
  __device__ float* kept(int h, int what) const {
    return reinterpret_cast<float*>(memory() + fixed_bytes + op_.buffers * buffer_bytes) +
           h * kept_floats + what * ssd_chunk;
  }
  __device__ bf16* x() const { return reinterpret_cast<bf16*>(buffer(h_)); }
  __device__ bf16* dy() const { return x() + channel_tile; }
  __device__ bf16* S() const { return dy() + channel_tile; }
  __device__ bf16* G() const { return S() + state_tile; }
  __device__ SsdSteps steps() const { return {reinterpret_cast<float*>(G() + state_tile)}; }

  // Whether this warp's steps j are all behind its steps i.
  __device__ bool is_above() const { return column_ > rows_; }
  __device__ bool is_of_outputs() const { return column_ < 32; }
  __device__ int states_from() const { return column_ % 32 * 4; }
  // The row of half `half` of a fragment that this lane has.
  __device__ int row_of(int half, Lane lane) const { return rows_ + lane.g() + 8 * half; }

  __device__ void find_place(std::int64_t row, std::int64_t c, int group, int head_block) const {
    const SsdHeads heads(op_, group, head_block);
    const SsdChunk chunk = op_.chunk(c);
    const std::int64_t column = std::int64_t{heads.first} * op_.head_dim, b = op_.first_row + row;
    Place& all = place();
    all.x = op_.x.at<bf16>(b, chunk.start) + column;
    all.dy = op_.dy.at<bf16>(b, chunk.start) + column;
    all.dx = op_.dx.out<bf16>(b, chunk.start) + column;
    all.S = SsdMma::state(op_, row, c, heads.first);
    all.G = SsdMma::adjoint(op_, row, c, heads.first);
    all.steps = op_.steps_of(row, c, heads.first).at;
    all.row = row;
    all.c = c;
    all.start = chunk.start;
    all.count = chunk.steps;
    all.group = group;
    all.head_block = head_block;
    all.first_head = heads.first;
    all.heads = heads.count;
    all.parted = op_.parted[row * op_.chunks + c] != 0;
  }
  __device__ void fetch_states(const ScanTrack& track, bf16* to) const {
    fetch_tile<mma_chunk_threads, mma_states>(
        to,
        track.at<bf16>(op_.first_row + place().row, place().start) +
            std::int64_t{place().group} * op_.d_state,
        track.step_pitch, place().count, op_.d_state);
  }
  __device__ void fetch(int h) const {
    const Place& from = place();
    const int channel = h * op_.head_dim, state = channel * op_.d_state;
    bf16* to = reinterpret_cast<bf16*>(buffer(h));
    fetch_tile<mma_chunk_threads, mma_channels>(to, from.x + channel, op_.x.step_pitch, from.count,
                                                op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_channels>(to += channel_tile, from.dy + channel,
                                                op_.dy.step_pitch, from.count, op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_states>(to += channel_tile, from.S + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    fetch_tile<mma_chunk_threads, mma_states>(to += state_tile, from.G + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    const int piece = 4 * thread();
    if (piece < SsdSteps::floats) {
      copy_16_bytes(reinterpret_cast<float*>(to + state_tile) + piece,
                    from.steps + h * SsdSteps::floats + piece, 16);
    }
    end_of_copies();
  }
  // The head's tiles are there, and all are done with the head before.
  __device__ void begin(int h) {
    h_ = h;
    if (op_.buffers == 1 && h > 0) {
      __syncthreads();
      fetch(h);
    }
    wait_for_all_copies();
    __syncthreads();
    if (op_.buffers > 1 && h + 1 < place().heads) fetch(h + 1);
  }

  // ---- within a chunk ----

  __device__ void multiply_CB() {
    const Lane lane;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, C(), state_pitch, rows_, k, lane);
      load_columns(b, B(), state_pitch, column_, k, lane);
      multiply_pair(CB_[0], CB_[1], a, b);
    }
  }

  // Z, which is added to that of the heads before; L (C . B); and what spans each step.
  __device__ void within_chunk() {
    const Lane lane;
    float tile[2][4] = {};
#pragma unroll
    for (int k = 0; k < mma_channels; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, dy(), channel_pitch, rows_, k, lane);
      load_columns(b, x(), channel_pitch, column_, k, lane);
      multiply_pair(tile[0], tile[1], a, b);
    }
    float before[2] = {}, down[4] = {};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      mix(t, tile[t], lane);
      sum_along_rows(t, tile[t], before, down, lane);
    }
    if (column_ < 48 && lane.q() == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        part(h_, rows_before + column_ / 16)[row_of(half, lane)] = before[half];
      }
    }
    put_spans(down, lane);
  }
  // dy . x becomes Z (C . B).
  __device__ void mix(int t, float (&dyx)[4], Lane lane) {
    const SsdSteps of = steps();
    const int j0 = column_ + 8 * t + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row_of(half, lane);
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = j0 + e, at = 2 * half + e;
        const float L = j > i ? 0.0f : exp2_approx(-log2e * of.way(i, j));
        if (i == j) kept(h_, skip)[i] = dyx[at];
        const float z = L == 0 ? 0.0f : dyx[at] * (L * of.delta(j));
        Z_[t][at] += z;
        dyx[at] = L == 0 ? 0.0f : z * CB_[t][at];
        pair[e] = L == 0 ? 0.0f : L * CB_[t][at];
      }
      *reinterpret_cast<std::uint32_t*>(mixed() + i * channel_pitch + j0) =
          pack_pair(pair[0], pair[1]);
    }
  }
  // spans[k] = the sum over rows i >= k and columns j < k: along each row first, here over this
  // warp's columns, then down each column. before: the rows' sums over tiles before.
  __device__ void sum_along_rows(int t, const float (&tile)[4], float (&before)[2],
                                 float (&down)[4], Lane lane) const {
    const int k = column_ + 8 * t + 2 * lane.q();
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
  // Lanes that share columns add up, each two for one of the four in the end.
  __device__ void put_spans(const float (&down)[4], Lane lane) const {
    const bool third = (lane.g() & 4) != 0, second = (lane.g() & 2) != 0;
    float two[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      two[n] = (third ? down[n + 2] : down[n]) +
               __shfl_xor_sync(all_lanes, third ? down[n] : down[n + 2], 16);
    }
    float one =
        (second ? two[1] : two[0]) + __shfl_xor_sync(all_lanes, second ? two[0] : two[1], 8);
    one += __shfl_xor_sync(all_lanes, one, 4);
    if (lane.g() % 2 == 0) {
      part(h_, spans + rows_ / 16)[column_ + (third ? 8 : 0) + 2 * lane.q() + (second ? 1 : 0)] =
          one;
    }
  }
  // By two of the warps that have nothing to do within the chunk: what is known of each step of a
  // head, in one place.
  __device__ void add_up(int h) const {
    if (rows_ > 0 || column_ < 32) return;
    const int k = thread() % 32 + (column_ - 32) * 2, group = k / 16;
    const auto sum = [&](int first, int count) {
      float all = 0;
      for (int n = first; n < first + count; ++n) all += part(h, n)[k];
      return all;
    };
    kept(h, of_spans)[k] = sum(spans + group, 4 - group);
    for (int n = 0; n < 3; ++n) {
      // Rows have sums over columns up to their own.
      kept(h, of_rows + n)[k] = sum(rows_before, min(n, group) + 1);
    }
    kept(h, of_state)[k] = sum(from_state, 2);
    kept(h, of_adjoint)[k] = sum(to_adjoint, 4);
    kept(h, of_input)[k] = sum(input, 4);
  }

  // ---- from states and adjoints ----

  // Rows of what a reset parts from that side are zero, whatever is there.
  template <int kTiles>
  static __device__ void forget_rows(float (&tiles)[kTiles][4], const float (&weights)[2]) {
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      if (weights[i % 4 / 2] == 0) tiles[i / 4][i % 4] = 0;
    }
  }
  // E S^T dy, which is added to dC, and its product with C; or delta L[last] G^T x, to dB.
  template <bool kOutputs>
  __device__ void from_far() {
    const Lane lane;
    float sums[2] = {}, weights[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half, lane);
      weights[half] = kOutputs ? steps().from_start(row) : steps().weight(row);
    }
#pragma unroll
    for (int t = 0; t < 8; t += 4) {
      float tiles[4][4] = {};
#pragma unroll
      for (int k = 0; k < mma_channels; k += 16) {
        std::uint32_t a[4];
        load_rows(a, kOutputs ? dy() : x(), channel_pitch, rows_, k, lane);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          std::uint32_t b[4];
          load_columns_across(b, kOutputs ? S() : G(), state_pitch, states_from() + 8 * (t + n), k,
                              lane);
          multiply_pair(tiles[n], tiles[n + 1], a, b);
        }
      }
      if (place().parted) forget_rows(tiles, weights);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bf16* row = C() + row_of(half, lane) * state_pitch + states_from() + 2 * lane.q();
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float c[2] = {};
          if (kOutputs) load_pair(row + 8 * (t + n), c[0], c[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = tiles[n][2 * half + e];
            total_[t + n][2 * half + e] = fmaf(weights[half], value, total_[t + n][2 * half + e]);
            if (kOutputs) sums[half] = fmaf(value, c[e], sums[half]);
          }
        }
      }
    }
    if (!kOutputs) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] = weights[half] == 0 ? 0 : weights[half] * sums[half];
    }
    put_row_sums(from_state + column_ / 16, sums, lane);
  }
  // The sum of a value of each row over the four lanes that share it.
  __device__ void put_row_sums(int what, float (&sums)[2], Lane lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 1);
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 2);
      if (lane.q() == 0) part(h_, what)[row_of(half, lane)] = sums[half];
    }
  }
  // L[last, j] G B[j], which q begins with.
  __device__ void from_adjoint() {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 8; ++i) q_[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, B(), state_pitch, rows_, k, lane);
      load_columns(b, G(), state_pitch, column_, k, lane);
      multiply_pair(q_[0], q_[1], a, b);
    }
    const float weights[2] = {steps().to_end(row_of(0, lane)), steps().to_end(row_of(1, lane))};
    if (place().parted) forget_rows(q_, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) q_[i / 4][i % 4] *= weights[i % 4 / 2];
    put_products_with_x(to_adjoint, lane);
  }
  __device__ void put_products_with_x(int what, Lane lane) const {
    float sums[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float in[2];
        load_pair(x() + row_of(half, lane) * channel_pitch + column_ + 8 * t + 2 * lane.q(), in[0],
                  in[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = q_[t][2 * half + e];
          if (value != 0) sums[half] = fmaf(value, in[e], sums[half]);
        }
      }
    }
    put_row_sums(what + column_ / 16, sums, lane);
  }
  // E[last] <G, S>, a share for each warp.
  __device__ void put_through() const {
    const float decay = steps().from_start(ssd_chunk - 1);
    float sum = 0;
    if (decay != 0) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int piece = thread() + n * mma_chunk_threads;
        const int at = piece / 16 * state_pitch + piece % 16 * 8;
        float g[8], s[8];
        Packed<bf16, 8>::load(G() + at).unpack(g);
        Packed<bf16, 8>::load(S() + at).unpack(s);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(g[i], s[i], sum);
      }
    }
    sum = sum_of_lanes(sum);
    if (thread() % 32 == 0) {
      kept(h_, 0)[through + thread() / 32] = decay == 0 ? 0 : decay * sum;
    }
  }

  // What outputs from step j on have, and with it all of q; dx.
  __device__ void from_outputs(bool wild) {
    const Lane lane;
    if (wild) {
      add_selected<false>(
          q_, lane, [](int j, int i) { return mixed()[i * channel_pitch + j]; }, dy(),
          channel_pitch, column_);
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (k < rows_) continue;
        std::uint32_t a[4], b[4];
        load_rows_across(a, mixed(), channel_pitch, rows_, k, lane);
        load_columns_across(b, dy(), channel_pitch, column_, k, lane);
        multiply_pair(q_[0], q_[1], a, b);
      }
    }
    put_products_with_x(input, lane);
    const float D = op_.D == nullptr ? 0 : op_.D[place().first_head + h_];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = row_of(half, lane);
      const float delta = steps().delta(j);
      float dx[2][2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float out[2];
        load_pair(dy() + j * channel_pitch + column_ + 8 * t + 2 * lane.q(), out[0], out[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float skipped = op_.D == nullptr ? 0 : D * out[e];
          dx[t][e] = fmaf(delta, q_[t][2 * half + e], skipped);
        }
      }
      const bool there = j < place().count;
      bf16* to = place().dx + (there ? j : 0) * op_.dx.step_pitch + h_ * op_.head_dim + column_;
      store_row(to, dx[0], dx[1], there, op_.head_dim - column_, lane);
    }
  }

  // ---- what a reset parts may be infinite or NaN ----

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
  // sums += a(row, k) b[k][column], where a is not zero. Slow, and only for chunks that have both
  // a reset and something wild.
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

  // ---- behind the last head ----

  __device__ void put_Z() const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<std::uint32_t*>(mixed() + row_of(half, lane) * channel_pitch + column_ +
                                          8 * t + 2 * lane.q()) =
            pack_pair(Z_[t][2 * half], Z_[t][2 * half + 1]);
      }
    }
  }
  // Z B to dC, or Z^T C to dB, of all heads at once.
  template <bool kOutputs>
  __device__ void add_within(bool wild) {
    const Lane lane;
    const bf16* states = kOutputs ? B() : C();
    if (wild) {
      add_selected<kOutputs>(
          total_, lane,
          [](int row, int k) {
            return mixed()[kOutputs ? row * channel_pitch + k : k * channel_pitch + row];
          },
          states, state_pitch, states_from());
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
          load_columns_across(b, states, state_pitch, states_from() + 8 * t, k, lane);
          multiply_pair(total_[t], total_[t + 1], a, b);
        }
      }
    }
    const std::int64_t first =
        std::int64_t{place().group} * op_.d_state + states_from() + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half, lane);
      if (row >= place().count) continue;
      const PutStates<bf16> put(op_, kOutputs, place().row, place().start + row, place().head_block,
                                first);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        if (states_from() + 8 * t >= op_.d_state) break;
        put(8 * t, total_[t][2 * half]);
        put(8 * t + 1, total_[t][2 * half + 1]);
      }
    }
  }
  __device__ void finish() const {
    const int lane = thread() % 32;
    for (int h = thread() / 32; h < place().heads; h += warps) {
      const int head = place().first_head + h;
      const SsdSteps steps = op_.steps_of(place().row, place().c, head);
      SsdStepSums of[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int k = 2 * lane + n;
        const float adjoint = kept(h, of_adjoint)[k];
        of[n] = {kept(h, of_spans)[k], kept(h, of_state)[k],
                 adjoint == 0 ? 0 : steps.delta(k) * adjoint, kept(h, of_input)[k],
                 kept(h, skip)[k]};
      }
      for (int group = 1; group < 4; ++group) {
        const float* rows = kept(h, of_rows + group - 1) + 2 * lane;
        float behind = __shfl_down_sync(all_lanes, sum_of_lanes_from(rows[0] + rows[1]), 1);
        if (lane == 31) behind = 0;
        if (2 * lane / 16 != group) continue;
        of[0].within += behind + rows[1] + rows[0];
        of[1].within += behind + rows[1];
      }
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += kept(h, 0)[through + w];
      finish_steps<bf16>(op_, place().row, place().c, head, of, sum);
    }
  }

  const SsdGradOperands& op_;
  const int rows_, column_;
  int h_ = 0;
  float CB_[2][4] = {}, Z_[2][4] = {}, q_[2][4];
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
