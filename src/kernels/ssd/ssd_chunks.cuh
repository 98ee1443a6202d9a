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

#include "kernels/ssd/ssd_block.cuh"

namespace mamba::cuda {

template <class T, int N, bool Summary>
struct SsdChunks : SsdBlock<T, N, Summary> {
  using Block = SsdBlock<T, N, Summary>;
  using Block::B, Block::C, Block::x, Block::mix, Block::steps, Block::resets, Block::poison;
  using Block::copy_states, Block::copy_x, Block::store_y, Block::global_head, Block::prepares;
  using Block::op, Block::cut, Block::layout, Block::S, Block::stage, Block::chunk;
  using Block::warp, Block::head, Block::works, Block::pitch, Block::place;
  using typename Block::Layout;

  __device__ SsdChunks(const SsdOperands& operands, const SsdChunkCut& chunk_cut,
                       const Layout& places, char* shared)
      : Block(operands, chunk_cut, places, shared) {}

  // C B^T of sixteen steps by sixteen, in two tiles, and from it M of all heads.
  __device__ void mix_steps() const {
    const SsdResets begins = resets(stage);
    // Not by the first warp of a head, which has the steps of the next chunk to prepare.
    const bool some = cut.slices > 1;
    const int workers = static_cast<int>(blockDim.x) / 32 - (some ? cut.heads : 0);
    if (some && warp % cut.slices == 0) return;
    for (int tile = some ? warp - head - 1 : warp; tile < 10; tile += workers) {
      const int I = tile < 1 ? 0 : tile < 3 ? 1 : tile < 6 ? 2 : 3, J = tile - I * (I + 1) / 2;
      const int lane = lane_id();
      const unsigned Ci = shared_address(C(stage) + 16 * I * pitch) + place_down(lane, pitch);
      const unsigned Bj = shared_address(B(stage) + 16 * J * pitch) + place_right(lane, pitch);
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < N / 16; ++k) {
        std::uint32_t c[4], bs[4];
        load_matrices(c, Ci + 32u * static_cast<unsigned>(k));
        load_matrices(bs, Bj + 32u * static_cast<unsigned>(k));
        mma<T>(sum[0], c[0], c[1], c[2], c[3], bs[0], bs[1]);
        mma<T>(sum[1], c[0], c[1], c[2], c[3], bs[2], bs[3]);
      }
      const int i = 16 * I + lane / 4, j = 16 * J + lane % 4 * 2;
      for (int h = 0; h < place().heads; ++h) {
        T* to = mix(h) + i * Layout::mix_pitch + j;
        if (I == J || begins.at != 0) {
          put_mix<true>(steps(stage, h), i, j, sum, begins, to);
        } else {
          put_mix<false>(steps(stage, h), i, j, sum, begins, to);
        }
      }
    }
  }
  // Selects: whether there may be pairs of steps that do not see each other.
  template <bool Selects>
  __device__ __forceinline__ static void put_mix(const SsdSteps& of, int i0, int j0,
                                                 const float (&sum)[2][4], const SsdResets& begins,
                                                 T* to) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const auto lead = load_vec<2>(&of.lead[j0 + 8 * tile]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = i0 + 8 * half;
        const float later = of.sum[i];
        float pair[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          pair[k] = __fmul_rn(sum[tile][2 * half + k], exp2_approx(__fadd_rn(later, lead.at[k])));
          const int j = j0 + 8 * tile + k;
          if (Selects && (j > i || j < begins.last(i))) pair[k] = 0;
        }
        *reinterpret_cast<std::uint32_t*>(to + 8 * half * Layout::mix_pitch + 8 * tile) =
            pack_pair<T>(pair[0], pair[1]);
      }
    }
  }

  // What the chunk's first state adds to y of 32 steps.
  __device__ __forceinline__ void from_state(int i0, float (&y)[4][4]) const {
    const int lane = lane_id();
    const unsigned Ci = shared_address(C(stage) + i0 * pitch) + place_right(lane, pitch);
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
      const float(&low)[4] = S[2 * k], (&high)[4] = S[2 * k + 1];
      const std::uint32_t a[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                  pack_pair<T>(high[0], high[1]), pack_pair<T>(high[2], high[3])};
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        std::uint32_t c[4];
        load_matrices(c, Ci + static_cast<unsigned>(2 * (16 * tile * pitch + 16 * k)));
        mma<T>(y[2 * tile], a[0], a[1], a[2], a[3], c[0], c[1]);
        mma<T>(y[2 * tile + 1], a[0], a[1], a[2], a[3], c[2], c[3]);
      }
    }
    const SsdSteps& of = steps(stage, head);
    const int i = i0 + lane % 4 * 2, reached = resets(stage).reached();
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      const auto start = load_vec<2>(&of.start[i + 8 * tile]);
#pragma unroll
      for (int k = 0; k < 4; ++k) y[tile][k] = __fmul_rn(y[tile][k], start.at[k % 2]);
    }
    if (reached == ssd_chunk) return;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (i + 8 * tile + k % 2 >= reached) y[tile][k] = 0;
      }
    }
  }

  // What x and D add to y of those steps; y then takes the place of the warp's x.
  template <int First>
  __device__ __forceinline__ void finish_y(float (&y)[4][4],
                                           const std::uint32_t (&xs)[4][4]) const {
    constexpr int first = First / 16;
    const int lane = lane_id();
    const unsigned Mi = shared_address(mix(head) + First * Layout::mix_pitch) +
                        place_right(lane, Layout::mix_pitch);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int j = 0; j <= first + tile; ++j) {
        std::uint32_t m[4];
        load_matrices(m, Mi + static_cast<unsigned>(2 * (16 * tile * Layout::mix_pitch + 16 * j)));
        mma<T>(y[2 * tile], xs[j][0], xs[j][1], xs[j][2], xs[j][3], m[0], m[1]);
        mma<T>(y[2 * tile + 1], xs[j][0], xs[j][1], xs[j][2], xs[j][3], m[2], m[3]);
      }
    }
    if (op.D != nullptr) {
      const float D = op.D[global_head()];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        float pair[2];
        unpack_pair<T>(xs[first + k / 4][k % 4], pair);
        float(&to)[4] = y[k / 4 * 2 + k % 4 / 2];
        to[k % 2 * 2] = __fmaf_rn(D, pair[0], to[k % 2 * 2]);
        to[k % 2 * 2 + 1] = __fmaf_rn(D, pair[1], to[k % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < 4; tile += 2) {
      const float(&low)[4] = y[tile], (&high)[4] = y[tile + 1];
      const std::uint32_t pairs[4] = {pack_pair<T>(low[0], low[1]), pack_pair<T>(low[2], low[3]),
                                      pack_pair<T>(high[0], high[1]),
                                      pack_pair<T>(high[2], high[3])};
      put_transposed(shared_address(x() + (First + 8 * tile) * layout.x_pitch), layout.x_pitch,
                     lane, pairs);
    }
  }

  // Half of x^T, 32 steps from 16 j on.
  template <int J>
  __device__ __forceinline__ void load_steps_of_x(std::uint32_t (&xs)[4][4]) const {
    const unsigned xj =
        shared_address(x() + 16 * J * layout.x_pitch) + place_right(lane_id(), layout.x_pitch);
    load_matrices_transposed(xs[J], xj);
    load_matrices_transposed(xs[J + 1], xj + static_cast<unsigned>(32 * layout.x_pitch));
  }
  // x^T of the warp. True if all of it was finite; else what was not is taken for zero, and
  // poison() says where it was.
  __device__ __forceinline__ bool load_x(std::uint32_t (&xs)[4][4]) const {
    for (bool as_it_came = true;; as_it_came = false) {
      load_steps_of_x<0>(xs);
      load_steps_of_x<2>(xs);
      std::uint32_t none[2] = {};
#pragma unroll
      for (int k = 0; k < 16; ++k) none[k % 2] = add_none_of<T>(xs[k / 4][k % 4], none[k % 2]);
      if (__all_sync(all_lanes, (none[0] | none[1]) == 0)) return as_it_came;
      take_out();
    }
  }
  // A lane has two channels of every fourth step.
  __device__ void take_out() const {
    const int lane = lane_id();
    poison()[lane] = 0;
    __syncwarp();
#pragma unroll 1
    for (int i = lane / 8; i < ssd_chunk; i += 4) {
      auto* pair = reinterpret_cast<std::uint32_t*>(x() + i * layout.x_pitch) + lane % 8;
      const std::uint32_t bad = not_finite<T>(*pair), low = bad >> 15 & 1, high = bad >> 31;
      unsigned* at = poison() + lane % 8 * 4 + i / 32;
      if (low != 0) atomicOr(at, 1u << i % 32);
      if (high != 0) atomicOr(at + 2, 1u << i % 32);
      *pair &= ~(low * 0xffffu | high * 0xffff0000u);
    }
    __syncwarp();
  }
  // Whether an x of a channel of the warp that was not finite reaches step i.
  __device__ bool is_poisoned(int channel, int i) const {
    const unsigned* words = poison() + 2 * channel;
    const unsigned long long at = words[0] | static_cast<unsigned long long>(words[1]) << 32;
    return (at & ((2ull << i) - 1)) >> max(resets(stage).last(i), 0) != 0;
  }
  // Of y, where it is stored from, and of the last x, from which all of a channel's state will be.
  __device__ void poison_y(std::uint32_t (&xs)[4][4]) const {
    const int lane = lane_id();
#pragma unroll 1
    for (int i = lane / 16; i < ssd_chunk; i += 2) {
      if (is_poisoned(lane % 16, i)) x()[i * layout.x_pitch + lane % 16].bits = 0x7fff;
    }
    poison_x(xs);
  }
  __device__ void poison_x(std::uint32_t (&xs)[4][4]) const {
    const int lane = lane_id();
    if (lane % 4 != 3) return;
    if (is_poisoned(lane / 4, ssd_chunk - 1)) xs[3][2] |= 0x7fff0000u;
    if (is_poisoned(lane / 4 + 8, ssd_chunk - 1)) xs[3][3] |= 0x7fff0000u;
  }

  // S to the chunk's end. What is zero in weight meets an x that is finite.
  __device__ __forceinline__ void advance(std::uint32_t (&xs)[4][4]) {
    const int lane = lane_id();
    const SsdSteps& of = steps(stage, head);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto weight = load_vec<2>(&of.weight[16 * j + k / 2 * 8 + lane % 4 * 2]);
        float pair[2];
        unpack_pair<T>(xs[j][k], pair);
        xs[j][k] = pack_pair<T>(__fmul_rn(pair[0], weight.at[0]), __fmul_rn(pair[1], weight.at[1]));
      }
    }
    if (of.resets.at != 0) this->clear_state();
    const float kept = of.start[ssd_chunk - 1];
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) S[n][k] = __fmul_rn(kept, S[n][k]);
    }
    const unsigned Bj = shared_address(B(stage)) + place_down(lane, pitch);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t bs[4];
        load_matrices_transposed(bs, Bj + static_cast<unsigned>(2 * (16 * j * pitch + 16 * n)));
        mma<T>(S[2 * n], xs[j][0], xs[j][1], xs[j][2], xs[j][3], bs[0], bs[1]);
        mma<T>(S[2 * n + 1], xs[j][0], xs[j][1], xs[j][2], xs[j][3], bs[2], bs[3]);
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

  // What can be done for the next chunk: its copies, which are there at the next barrier, and what
  // depends on its dt alone.
  __device__ __forceinline__ void look_ahead() const {
    const int next = chunk + 1;
    if (next >= place().end) return;
    copy_states(op.B, B(1 - stage), next);
    if constexpr (!Summary) copy_states(op.C, C(1 - stage), next);
    if (!prepares) return;
    SsdSteps& of = steps(1 - stage, head);
    SsdRawSteps<T> raw;
    raw.load(op, place().b, this->first_step(next), global_head(), lane_id());
    raw.put(lane_id(), of);
    __syncwarp();
    prepare_steps(op, global_head(), this->steps_there(next), lane_id(), of);
  }

  __device__ __forceinline__ void one_chunk() {
    mix_steps();
    float y[4][4] = {};
    if (works) from_state(0, y);
    __syncthreads();
    clear_B();
    if (!works) return;
    std::uint32_t xs[4][4];
    const bool finite = load_x(xs);
    finish_y<0>(y, xs);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) y[tile][k] = 0;
    }
    from_state(32, y);
    load_steps_of_x<2>(xs);  // again: meanwhile the registers were needed
    finish_y<32>(y, xs);
    __syncwarp();
    if (!finite) poison_y(xs);
    __syncwarp();
    store_y();
    __syncwarp();
    if (chunk + 1 < place().end) copy_x(chunk + 1);
    advance(xs);
  }

  // Chunk after chunk; before the first, what can be done for it.
  __device__ void walk() {
    stage = 1;
    copy_x(chunk);
    for (--chunk; chunk < place().end; ++chunk, stage = 1 - stage) {
      const bool begun = chunk >= place().chunk;
      if (begun) {
        if (works && cut.kept > 0 && chunk % cut.kept == 0) {
          this->keep_state(op.chunk_states, place().b * op.chunks + chunk / cut.kept);
        }
        wait_for_all_copies();
        __syncthreads();
      }
      look_ahead();
      if (begun) one_chunk();
    }
  }

  // The state at the segment's end, from zero, and by how much the segment decays a state.
  __device__ float summarize() {
    float decay = 1;
    stage = 1;
    copy_x(chunk);
    for (--chunk; chunk < place().end; ++chunk, stage = 1 - stage) {
      const bool begun = chunk >= place().chunk;
      if (begun) {
        wait_for_all_copies();
        __syncthreads();
      }
      look_ahead();
      if (begun) one_summary(decay);
    }
    return decay;
  }
  __device__ __forceinline__ void one_summary(float& decay) {
    clear_B();
    if (!works) return;
    std::uint32_t xs[4][4];
    if (!load_x(xs)) poison_x(xs);
    __syncwarp();
    if (chunk + 1 < place().end) copy_x(chunk + 1);
    advance(xs);
    if (resets(stage).at != 0) {
      decay = starts_anew;
    } else if (decay != starts_anew) {
      decay = __fmul_rn(decay, steps(stage, head).start[ssd_chunk - 1]);
    }
  }
};

}  // namespace mamba::cuda
