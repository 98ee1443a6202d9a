// One block of the chunked plan: some heads of one group in one batch row, chunk after chunk. With
// C, B and x the [steps, ...] matrices of a chunk, L the decays between its steps and S the state
// [d_state, channels] before it,
//   y^T = (S^T C^T) start + x^T M^T + D x^T        M = (C B^T) L delta, for steps j <= i
//   S^T = end S^T + (x weight)^T B
// Every warp has sixteen channels of one head. It keeps their S^T in registers as f32 sums, whose
// layout, rounded in pairs, is that of a first factor; so is x^T's that of y^T. So the state never
// leaves the registers, and C, B and M, which all warps of a head share, are second factors from
// shared memory. C B^T is computed once for all heads of the block.
//
// Rounded to T on the way: M, S where it meets C (S itself stays f32), x weight. All sums are f32.
//
// 0 x NaN is NaN, so what must not be seen is no product with zero: M is selected by step; rows of
// B before a reset are cleared once C B^T is known; and an x that is not finite is taken out of the
// product and makes those y NaN, from its step to the next reset, that it reaches (also an infinite
// one, whose y would be infinite or NaN).
#pragma once

#include "kernels/scan/ssd_block.cuh"

namespace mamba::cuda {

template <class T, int N, bool Summary>
struct SsdChunks : SsdBlock<T, N, Summary> {
  using Block = SsdBlock<T, N, Summary>;
  using Block::B, Block::C, Block::x, Block::mix, Block::steps, Block::resets, Block::poison;
  using Block::b, Block::warp, Block::head, Block::heads, Block::works, Block::pitch;
  using Block::copy_states, Block::copy_x, Block::store_y, Block::global_head, Block::prepares;
  using Block::op, Block::cut, Block::layout, Block::S, Block::stage, Block::chunk, Block::end;
  using typename Block::Layout;

  __device__ SsdChunks(const SsdOperands& operands, const SsdChunkCut& chunk_cut,
                       const Layout& places, char* shared)
      : Block(operands, chunk_cut, places, shared) {}

  // Where the block works is worked out again for each chunk.
  __device__ void forget() {
    make_new(this->b);
    make_new(this->p);
    make_new(this->head);
    make_new(this->group);
  }

  // M of all heads, sixteen steps by sixteen steps.
  __device__ void mix_steps() const {
    const int lane = lane_id();
    const FragmentPlace place(lane, pitch);
    const unsigned C0 = shared_address(C(stage)) + static_cast<unsigned>(place.down);
    const unsigned B0 = shared_address(B(stage)) + static_cast<unsigned>(place.right);
    for (int tile = warp; tile < 10; tile += static_cast<int>(blockDim.x) / 32) {
      const int I = tile < 1 ? 0 : tile < 3 ? 1 : tile < 6 ? 2 : 3, J = tile - I * (I + 1) / 2;
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < N / 16; ++k) {
        std::uint32_t a[4], bs[4];
        load_matrices(a, C0 + static_cast<unsigned>(2 * (16 * I * pitch + 16 * k)));
        load_matrices(bs, B0 + static_cast<unsigned>(2 * (16 * J * pitch + 16 * k)));
        mma<T>(sum[0], a[0], a[1], a[2], a[3], bs[0], bs[1]);
        mma<T>(sum[1], a[0], a[1], a[2], a[3], bs[2], bs[3]);
      }
      const SsdResets begins = resets(stage);
      for (int h = 0; h < heads; ++h)
        put_mix(h, 16 * I + lane / 4, 16 * J + lane % 4 * 2, sum, begins);
    }
  }
  __device__ __forceinline__ void put_mix(int h, int i0, int j0, const float (&sum)[2][4],
                                          const SsdResets& begins) const {
    const SsdSteps& of = steps(stage, h);
    T* to = mix(h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = i0 + 8 * half;
      const float later = of.sum[i];
      const int last = begins.last(i);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float pair[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int j = j0 + 8 * tile + k;
          const float weight = __fmul_rn(decay_between(later, of.sum[j]), of.delta[j]);
          pair[k] = j <= i && j >= last ? __fmul_rn(sum[tile][2 * half + k], weight) : 0;
        }
        *reinterpret_cast<std::uint32_t*>(to + i * Layout::mix_pitch + j0 + 8 * tile) =
            pack_pair<T>(pair[0], pair[1]);
      }
    }
  }

  // What the chunk's first state adds to y of 32 steps.
  __device__ __forceinline__ void from_state(int i0, float (&y)[4][4]) const {
    const int lane = lane_id();
    const FragmentPlace place(lane, pitch);
    const unsigned C0 = shared_address(C(stage) + i0 * pitch) + static_cast<unsigned>(place.right);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
      const std::uint32_t a[4] = {pack_pair<T>(S[2 * k][0], S[2 * k][1]),
                                  pack_pair<T>(S[2 * k][2], S[2 * k][3]),
                                  pack_pair<T>(S[2 * k + 1][0], S[2 * k + 1][1]),
                                  pack_pair<T>(S[2 * k + 1][2], S[2 * k + 1][3])};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        std::uint32_t c[4];
        load_matrices(c, C0 + static_cast<unsigned>(2 * (16 * tile * pitch + 16 * k)));
        mma<T>(y[2 * tile], a[0], a[1], a[2], a[3], c[0], c[1]);
        mma<T>(y[2 * tile + 1], a[0], a[1], a[2], a[3], c[2], c[3]);
      }
    }
    const SsdSteps& of = steps(stage, head);
    const int reached = resets(stage).reached();
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const int i = i0 + 8 * tile + lane % 4 * 2;
      const auto start = load_vec<2>(&of.start[i]);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        y[tile][k] = i + k % 2 < reached ? __fmul_rn(y[tile][k], start.at[k % 2]) : 0;
      }
    }
  }

  // What x and D add to y of those steps; y then takes the place of the warp's x.
  template <int First>
  __device__ __forceinline__ void finish_y(float (&y)[4][4], const std::uint32_t (&xs)[4][4],
                                           bool poisoned, float D) {
    const int lane = lane_id();
    const FragmentPlace place(lane, Layout::mix_pitch);
    const unsigned M0 = shared_address(mix(head)) + static_cast<unsigned>(place.right);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      constexpr int first = First / 16;
#pragma unroll
      for (int j = 0; j <= first + tile; ++j) {
        std::uint32_t m[4];
        load_matrices(
            m, M0 + static_cast<unsigned>(2 * (16 * (first + tile) * Layout::mix_pitch + 16 * j)));
        mma<T>(y[2 * tile], xs[j][0], xs[j][1], xs[j][2], xs[j][3], m[0], m[1]);
        mma<T>(y[2 * tile + 1], xs[j][0], xs[j][1], xs[j][2], xs[j][3], m[2], m[3]);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float pair[2];
        unpack_pair<T>(xs[first + tile][k], pair);
        float(&to)[4] = y[2 * tile + k / 2];
        to[k % 2 * 2] = __fmaf_rn(D, pair[0], to[k % 2 * 2]);
        to[k % 2 * 2 + 1] = __fmaf_rn(D, pair[1], to[k % 2 * 2 + 1]);
      }
    }
    if (poisoned) poison_y(First, y);
    T* to = x() + (First + lane % 4 * 2) * layout.x_pitch + lane / 4;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        to[(8 * tile + k % 2) * layout.x_pitch + k / 2 * 8] = from_float<T>(y[tile][k]);
      }
    }
  }

  // x^T of the warp. True if all of it is finite; else what is not becomes zero, and poison() says
  // where it was.
  __device__ __forceinline__ bool load_x(std::uint32_t (&xs)[4][4]) {
    const int lane = lane_id();
    const FragmentPlace place(lane, layout.x_pitch);
    const unsigned x0 = shared_address(x()) + static_cast<unsigned>(place.right);
    std::uint32_t bad = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      load_matrices_transposed(xs[j], x0 + static_cast<unsigned>(2 * 16 * j * layout.x_pitch));
#pragma unroll
      for (int k = 0; k < 4; ++k) bad |= not_finite<T>(xs[j][k]);
    }
    if (__any_sync(all_lanes, bad != 0)) {
      take_out(xs);
      return false;
    }
    return true;
  }
  __device__ void take_out(std::uint32_t (&xs)[4][4]) {
    const int lane = lane_id();
    unsigned long long at[2] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const std::uint32_t bad = not_finite<T>(xs[j][k]);
        const unsigned long long two = (bad >> 15 & 1u) | (bad >> 31) << 1;
        at[k % 2] |= two << (16 * j + k / 2 * 8 + lane % 4 * 2);
        xs[j][k] &= ~((bad >> 15 & 1u) * 0xffffu | (bad >> 31) * 0xffff0000u);
      }
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      at[k] |= __shfl_xor_sync(all_lanes, at[k], 1);
      at[k] |= __shfl_xor_sync(all_lanes, at[k], 2);
      if (lane % 4 == 0) poison()[lane / 4 + 8 * k] = at[k];
    }
    __syncwarp();
  }
  // Whether an x of channel g + 8 half that is not finite reaches step i.
  __device__ __forceinline__ bool is_poisoned(int half, int i) const {
    const int lane = lane_id();
    const int last = max(resets(stage).last(i), 0);
    return (poison()[lane / 4 + 8 * half] & ((2ull << i) - 1)) >> last != 0;
  }
  __device__ void poison_y(int first, float (&y)[4][4]) const {
    const int lane = lane_id();
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (is_poisoned(k / 2, first + 8 * tile + lane % 4 * 2 + k % 2)) {
          y[tile][k] = __int_as_float(0x7fffffff);
        }
      }
    }
  }

  // S to the chunk's end.
  __device__ __forceinline__ void advance(std::uint32_t (&xs)[4][4], bool poisoned) {
    const int lane = lane_id();
    const SsdSteps& of = steps(stage, head);
    const SsdResets begins = resets(stage);
    const int last = begins.last(ssd_chunk - 1);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int i = 16 * j + k / 2 * 8 + lane % 4 * 2;
        const auto weight = load_vec<2>(&of.weight[i]);
        float pair[2];
        unpack_pair<T>(xs[j][k], pair);
        xs[j][k] = pack_pair<T>(i >= last ? __fmul_rn(pair[0], weight.at[0]) : 0,
                                i + 1 >= last ? __fmul_rn(pair[1], weight.at[1]) : 0);
      }
    }
    const float kept = of.start[ssd_chunk - 1];
    const bool keeps = begins.at == 0;
    const FragmentPlace place(lane, pitch);
    const unsigned B0 = shared_address(B(stage)) + static_cast<unsigned>(place.down);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        S[2 * n][k] = keeps ? __fmul_rn(kept, S[2 * n][k]) : 0;
        S[2 * n + 1][k] = keeps ? __fmul_rn(kept, S[2 * n + 1][k]) : 0;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t bs[4];
        load_matrices_transposed(bs, B0 + static_cast<unsigned>(2 * (16 * j * pitch + 16 * n)));
        mma<T>(S[2 * n], xs[j][0], xs[j][1], xs[j][2], xs[j][3], bs[0], bs[1]);
        mma<T>(S[2 * n + 1], xs[j][0], xs[j][1], xs[j][2], xs[j][3], bs[2], bs[3]);
      }
    }
    if (poisoned) poison_state();
  }
  __device__ void poison_state() {
    const bool bad[2] = {is_poisoned(0, ssd_chunk - 1), is_poisoned(1, ssd_chunk - 1)};
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (bad[k / 2]) S[n][k] = __int_as_float(0x7fffffff);
      }
    }
  }

  // B before the last reset would be multiplied by zero. By all warps.
  __device__ void clear_B() const {
    const int last = resets(stage).last(ssd_chunk - 1);
    if (last <= 0) return;
    for (int i = static_cast<int>(threadIdx.x); i < last * pitch / 2;
         i += static_cast<int>(blockDim.x)) {
      reinterpret_cast<std::uint32_t*>(B(stage))[i] = 0;
    }
    __syncthreads();
  }

  // What depends on dt alone, of the chunk after the one at hand, a chunk before it is needed.
  __device__ void load_steps(int of, SsdRawSteps<T>& raw) const {
    if (of >= end || !prepares()) return;
    raw.load(op, b, this->first_step(of), global_head(), lane_id());
  }
  __device__ void put_steps(int of, int to, const SsdRawSteps<T>& raw) const {
    if (of >= end || !prepares()) return;
    raw.put(lane_id(), steps(to, head));
  }
  __device__ void prepare(int of, int to) const {
    if (of >= end || !prepares()) return;
    __syncwarp();
    prepare_steps(op, global_head(), this->steps_there(of), lane_id(), steps(to, head));
  }

  // The first chunk is there at the next barrier, when all its copies have arrived.
  __device__ void begin() {
    copy_states(op.B, B(0), chunk);
    if constexpr (!Summary) copy_states(op.C, C(0), chunk);
    copy_x(chunk);
    SsdRawSteps<T> raw;
    load_steps(chunk, raw);
    put_steps(chunk, 0, raw);
    prepare(chunk, 0);
  }

  __device__ void one_chunk() {
    forget();
    wait_for_all_copies();
    __syncthreads();
    SsdRawSteps<T> raw;
    load_steps(chunk + 1, raw);
    if (chunk + 1 < end) {
      copy_states(op.B, B(1 - stage), chunk + 1);
      copy_states(op.C, C(1 - stage), chunk + 1);
    }
    mix_steps();
    put_steps(chunk + 1, 1 - stage, raw);
    float y[4][4] = {};
    if (works) from_state(0, y);
    __syncthreads();
    clear_B();
    if (!works) return;
    const float D = op.D != nullptr ? op.D[global_head()] : 0;
    std::uint32_t xs[4][4];
    const bool poisoned = !load_x(xs);
    forget();
    finish_y<0>(y, xs, poisoned, D);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) y[tile][k] = 0;
    }
    from_state(32, y);
    finish_y<32>(y, xs, poisoned, D);
    __syncwarp();
    forget();
    store_y();
    __syncwarp();
    if (chunk + 1 < end) copy_x(chunk + 1);
    advance(xs, poisoned);
    prepare(chunk + 1, 1 - stage);
  }

  __device__ void walk() {
    const auto kept_chunks = static_cast<int>(op.chunk_steps / ssd_chunk);  // between kept states
    for (; chunk < end; ++chunk, stage = 1 - stage) {
      if (works && kept_chunks > 0 && chunk % kept_chunks == 0) {
        this->keep_state(op.chunk_states, b * op.chunks + chunk / kept_chunks);
      }
      one_chunk();
    }
  }

  // The state at the segment's end, from zero, and by how much the segment decays a state.
  __device__ float summarize() {
    float decay = 1;
    for (; chunk < end; ++chunk, stage = 1 - stage) {
      forget();
      wait_for_all_copies();
      __syncthreads();
      SsdRawSteps<T> raw;
      load_steps(chunk + 1, raw);
      if (chunk + 1 < end) copy_states(op.B, B(1 - stage), chunk + 1);
      clear_B();
      if (!works) continue;
      std::uint32_t xs[4][4];
      const bool poisoned = !load_x(xs);
      __syncwarp();
      if (chunk + 1 < end) copy_x(chunk + 1);
      advance(xs, poisoned);
      if (resets(stage).at != 0) {
        decay = starts_anew;
      } else if (decay != starts_anew) {
        decay = __fmul_rn(decay, steps(stage, head).start[ssd_chunk - 1]);
      }
      put_steps(chunk + 1, 1 - stage, raw);
      prepare(chunk + 1, 1 - stage);
    }
    return decay;
  }
};

}  // namespace mamba::cuda
