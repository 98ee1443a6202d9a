// One block of the plan of Ssd by warpgroups. Some of its warpgroups have channels, sixteen of a
// head for each warp; one mixes, and one brings what all need, ahead of them. Chunk after chunk,
// with C, B and x the [steps, ...] matrices of a chunk, L the decays between its steps and S the
// state [d_state, channels] before it,
//   y^T = (S^T C^T) start + D x^T + x^T M^T        M = (C B^T) L delta, for steps j <= i
//   S^T = end S^T + (weight x)^T B
// As in ssd_chunks.cuh a warp keeps its S^T in registers, as f32 sums whose layout, rounded in
// pairs, is that of a first factor, and x^T too. So shared memory, whose speed limits this plan,
// has only what is a second factor: C and B for all, and M, which the warpgroup that mixes makes
// for each head from C B^T.
//
// Rounded to bf16 on the way: M, S where it meets C (S itself stays f32), weight x. All sums are
// f32. What must not be seen is kept from products with zero in the way of ssd_chunks.cuh.
#pragma once

#include "kernels/gpu/ptx_90a.cuh"
#include "kernels/ssd/ssd_absent.cuh"
#include "kernels/ssd/ssd_chunk_steps.cuh"
#include "kernels/ssd/ssd_fragments.cuh"
#include "kernels/ssd/ssd_segments.cuh"

namespace mamba::cuda {

constexpr int ssd_warp_channels = 16;

// How the work is cut into blocks.
struct SsdWarpgroupCut {
  int warpgroups;      // of a block that have channels
  int of_head;         // warps
  int blocks;          // of a group, if none is divided
  int whole;           // blocks; those after them are divided, one for each warpgroup
  int heads;           // that a block may meet
  int segments;        // runs of chunks that are walked at the same time
  int segment_chunks;  // of each, but the last may have fewer
  int kept;            // chunks between two states that are kept; 0: none are
};
struct SsdMaps {
  CUtensorMap x, B, C, y;
};

// XBytes: of a row of x in shared memory: 128 for all of a warpgroup's channels, where these are
// one head's, or 32 for a warp's. Summary: without what y needs.
template <int N, int XBytes, bool Summary>
struct SsdWarpgroups {
  static constexpr int most = N <= 128 ? 2 : 1;  // with channels, for the registers of their states
  static constexpr int threads = 128 * (most + 2);
  // Registers of a thread that has channels, of one that mixes and of one that brings: the kernel
  // begins with as many in all.
  static constexpr int many = most == 1 ? 240 : 184, some = 88, few = 56;

  using States = Panel<128>;  // B, C and M
  using Channels = Panel<XBytes>;
  using Stored = Panel<32>;                                                     // y of a warp
  static constexpr int columns = XBytes / 2;                                    // of a box of x
  static constexpr int tiles = N / 8 < 16 ? N / 8 : 16, wides = N / 8 / tiles;  // of S: 128 states

  // Where things lie: what all share; of each warpgroup with channels two x, and y; of each head
  // two M; of each warp where its x is not finite; of each head what is known of its steps, of four
  // chunks; the counters: of two chunks, that B, C and x are there, that M is, and that none is
  // needed any more; of four, that their steps are known, and that these are not needed any more.
  static constexpr int states_bytes = ssd_chunk * N * 2;
  static constexpr int x_bytes = ssd_chunk * 4 * ssd_warp_channels * 2;
  static constexpr int warp_bytes = x_bytes / 4;
  static constexpr int shared_bytes = (Summary ? 2 : 4) * states_bytes;
  static constexpr int own_bytes = (Summary ? 2 : 3) * x_bytes;
  static constexpr int mix_bytes = Summary ? 0 : ssd_chunk * ssd_chunk * 2;
  static constexpr int poison_bytes = ssd_warp_channels * 8;
  static constexpr int steps_bytes = static_cast<int>(sizeof(SsdSteps)), slots = 4;
  static constexpr int bytes(int warpgroups, int heads) {
    return 1024 + shared_bytes + warpgroups * (own_bytes + 4 * poison_bytes) +
           heads * (2 * mix_bytes + slots * steps_bytes) + (6 + 2 * slots) * 8;
  }

  const SsdOperands& op;
  const SsdWarpgroupCut& cut;
  const SsdMaps& maps;
  char* memory;
  unsigned base;             // its shared address
  int b, segment;            // batch row and segment
  int group, first;          // first: the block's first warpgroup among those of its group
  bool alone;                // whether the block has one warpgroup with channels at most
  int warpgroup, warp;       // warp: of its warpgroup
  int head, p0;              // of a warp with channels
  bool works;                // whether they exist
  int chunk, end;            // the one at hand, and one past the last
  int stage = 0, slot = 0;   // which of two and of four buffers the chunk is in
  float S[wides][tiles][4];  // of channels g and g + 8, states 8 k + 2 q and + 1

  __device__ SsdWarpgroups(const SsdOperands& operands, const SsdWarpgroupCut& warpgroup_cut,
                           const SsdMaps& tensors, char* shared)
      : op(operands), cut(warpgroup_cut), maps(tensors) {
    const unsigned at = shared_address(shared);
    base = (at + 1023) / 1024 * 1024;
    memory = shared + (base - at);
    warpgroup = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 128, 0);
    warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32 % 4, 0);
    auto part = static_cast<int>(blockIdx.x);
    const int divided = part - cut.whole;
    alone = divided >= 0;
    if (alone) part = cut.whole + divided / cut.warpgroups;
    first = part % cut.blocks * cut.warpgroups + (alone ? divided % cut.warpgroups : 0);
    part /= cut.blocks;
    group = part % op.groups();
    part /= op.groups();
    segment = part % cut.segments;
    b = part / cut.segments;
    chunk = segment * cut.segment_chunks;
    end = min(chunk + cut.segment_chunks, static_cast<int>((op.time + ssd_chunk - 1) / ssd_chunk));
    const int own = 4 * (first + warpgroup) + warp;
    works = own < warps_of_group();
    head = head_of(own);
    p0 = channel_of(own);
    if (threadIdx.x != 0) return;
    for (int s = 0; s < slots; ++s) {
      init_counter(known(s), heads());
      init_counter(used(s), 4 * warpgroups());
    }
    for (int s = 0; s < 2; ++s) {
      init_counter(full(s), 1);
      init_counter(mixed(s), 4);
      init_counter(empty(s), 4 * warpgroups());
    }
    fence_counters();
  }

  __device__ bool mixes() const { return warpgroup == cut.warpgroups; }
  __device__ bool brings() const { return warpgroup > cut.warpgroups; }
  // Warps with channels are counted through the heads of a group.
  __device__ int warps_of_group() const { return op.group_heads * cut.of_head; }
  __device__ int head_of(int w) const {
    return group * op.group_heads + min(w / cut.of_head, op.group_heads - 1);
  }
  __device__ int channel_of(int w) const { return w % cut.of_head * ssd_warp_channels; }
  // Warpgroups of the block that have channels, and whether this one is such.
  __device__ int warpgroups() const {
    return min(alone ? 1 : cut.warpgroups, (warps_of_group() + 3) / 4 - first);
  }
  __device__ bool has_channels() const { return warpgroup < warpgroups(); }
  // The heads that the block meets, and the first of them.
  __device__ int first_head() const { return head_of(4 * first); }
  __device__ int heads() const {
    return head_of(4 * (first + warpgroups()) - 1) - first_head() + 1;
  }
  // The outputs of a row without a state, by all of the block.
  __device__ void fill(const StateRow<>& rows) const {
    for (int w = 4 * first; w < 4 * (first + warpgroups()) && w < warps_of_group(); ++w) {
      fill_absent<bf16>(op, rows, b, head_of(w), channel_of(w), ssd_warp_channels);
    }
  }

  __device__ std::int64_t first_step(int of) const { return std::int64_t{of} * ssd_chunk; }
  __device__ int steps_there(int of) const {
    return static_cast<int>(min(op.time - first_step(of), std::int64_t{ssd_chunk}));
  }
  __device__ int B_at(int s) const { return s * states_bytes; }
  __device__ int C_at(int s) const { return (2 + s) * states_bytes; }
  __device__ int x_at(int w, int s) const { return shared_bytes + w * own_bytes + s * x_bytes; }
  __device__ int y_at() const { return x_at(warpgroup, 2) + warp * warp_bytes; }
  __device__ int M_at(int k, int s) const {
    return shared_bytes + cut.warpgroups * own_bytes + (2 * k + s) * mix_bytes;
  }
  __device__ int poison_at(int w) const { return M_at(cut.heads, 0) + w * poison_bytes; }
  __device__ int steps_at(int k, int s) const {
    return poison_at(4 * cut.warpgroups) + (slots * k + s) * steps_bytes;
  }
  __device__ SsdSteps& steps_of(int k, int s) const {
    return *reinterpret_cast<SsdSteps*>(memory + steps_at(k, s));
  }
  __device__ const SsdSteps& steps() const { return steps_of(head - first_head(), slot); }
  __device__ const SsdResets& resets() const { return steps_of(0, slot).resets; }  // of all
  __device__ unsigned* poison() const {  // two words of steps for each of the warp's channels
    return reinterpret_cast<unsigned*>(memory + poison_at(4 * warpgroup + warp));
  }
  __device__ unsigned full(int s) const {
    return base + static_cast<unsigned>(steps_at(cut.heads, 0) + 8 * s);
  }
  __device__ unsigned mixed(int s) const { return full(2 + s); }
  __device__ unsigned empty(int s) const { return full(4 + s); }
  __device__ unsigned known(int s) const { return full(6 + s); }
  __device__ unsigned used(int s) const { return full(6 + slots + s); }

  // ---- what a chunk needs, by the warpgroup that brings
  // ------------------------------------------

  __device__ void copy(int of, int s) const {
    const int t = of * ssd_chunk, last = min(4 * (first + warpgroups()), warps_of_group());
    const int x = (last - 4 * first) * warp_bytes;
    arrive_with_bytes(full(s), (Summary ? 1 : 2) * states_bytes + x);
    for (int n = 0; n < N / 64; ++n) {
      const int column = group * N + 64 * n;
      const auto to = base + static_cast<unsigned>(n * ssd_chunk * 128);
      copy_box(to + static_cast<unsigned>(B_at(s)), maps.B, column, t, b, full(s));
      if constexpr (!Summary) {
        copy_box(to + static_cast<unsigned>(C_at(s)), maps.C, column, t, b, full(s));
      }
    }
    constexpr int warps = columns / ssd_warp_channels;  // of a box
    for (int w = 4 * first; w < last; w += warps) {
      const int in_block = w - 4 * first;
      const int to = x_at(in_block / 4, s) + in_block % 4 * warp_bytes;
      copy_box(base + static_cast<unsigned>(to), maps.x,
               static_cast<int>(op.channel(head_of(w))) + channel_of(w), t, b, full(s));
    }
  }
  // One warp copies; the others take turns, chunk after chunk and head after head.
  __device__ void bring() {
    constexpr int turns = 3;
    if (warp == turns) {
      for (int count = 0; chunk < end; ++chunk, ++count) {
        wait_for_phase(empty(count % 2), count / 2 + 1);
        if (lane_id() == 0) copy(chunk, count % 2);
      }
      return;
    }
    const int of_chunk = heads(), all = (end - chunk) * of_chunk;
    SsdRawSteps<bf16> raw;
    const auto load = [&](int turn) {
      raw.load(op, b, first_step(chunk + turn / of_chunk), first_head() + turn % of_chunk,
               lane_id());
    };
    if (warp < all) load(warp);
    for (int turn = warp; turn < all; turn += turns) {
      const int count = turn / of_chunk, k = turn % of_chunk, s = count % slots;
      wait_for_phase(used(s), count / slots + 1);
      SsdSteps& to = steps_of(k, s);
      raw.put(lane_id(), to);
      __syncwarp();
      if (turn + turns < all) load(turn + turns);
      prepare_steps(op, first_head() + k, steps_there(chunk + count), lane_id(), to);
      __syncwarp();
      if (lane_id() == 0) arrive(known(s));
    }
  }

  // ---- M, by the warpgroup that mixes
  // ------------------------------------------------------------

  // C B^T.
  __device__ __forceinline__ void begin_mix(float (&sum)[8][4]) const {
    const Factor<128> C(base + static_cast<unsigned>(C_at(stage)));
    const Factor<128> B(base + static_cast<unsigned>(B_at(stage)));
    hold(sum);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
      const auto at = static_cast<unsigned>(k / 4 * ssd_chunk * 128 + k % 4 * 32);
      wgmma<Depth::along_rows, Depth::along_rows>(sum, C, at, B, at, k > 0);
    }
    wgmma_commit();
  }
  __device__ static std::uint32_t pair_of(bool low, bool high) {
    return (low ? 0xffffu : 0) | (high ? 0xffff0000u : 0);
  }
  // From C B^T, M of head k.
  __device__ __forceinline__ void mix(const float (&sum)[8][4], int k) const {
    const int lane = lane_id(), i = 16 * warp + lane / 4, q = lane % 4;
    const SsdSteps& of = steps_of(k, slot);
    const float later[2] = {of.sum[i], of.sum[i + 8]};
    // Which of two steps a row sees in the tile that the diagonal crosses.
    const std::uint32_t seen = pair_of(2 * q <= lane / 4, 2 * q + 1 <= lane / 4);
    const SsdResets begins = of.resets;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
      std::uint32_t words[4];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const auto lead = load_vec<2>(&of.lead[8 * (t + tile) + 2 * q]);
        const int from = t + tile - 2 * warp;  // 0 where the diagonal crosses the first eight rows
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* two = &sum[t + tile][2 * half];
          words[2 * tile + half] =
              pack_pair<bf16>(__fmul_rn(two[0], exp2_approx(__fadd_rn(later[half], lead.at[0]))),
                              __fmul_rn(two[1], exp2_approx(__fadd_rn(later[half], lead.at[1])))) &
              (from < half    ? ~0u
               : from == half ? seen
                              : 0);
        }
      }
      if (begins.at != 0) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int j = 8 * (t + w / 2) + 2 * q, since = begins.last(i + w % 2 * 8);
          words[w] &= pair_of(j >= since, j + 1 >= since);
        }
      }
      store_matrices(base + static_cast<unsigned>(M_at(k, stage)) +
                         States::place(ssd_chunk, 16 * warp + lane % 16, t + lane / 16),
                     words);
    }
  }
  // B before the last reset would be multiplied by zero.
  __device__ __forceinline__ void clear_B() const {
    const int last = resets().last(ssd_chunk - 1);
    if (last <= 0) return;
    sync_warpgroup(1);  // C B^T is known to all
    for (int i = thread_id() % 128; i < last * N / 8; i += 128) {
      *reinterpret_cast<uint4*>(memory + B_at(stage) +
                                States::place(ssd_chunk, i / (N / 8), i % (N / 8))) = uint4{};
    }
  }
  __device__ void mix() {
    for (int count = 0; chunk < end; ++chunk, ++count) {
      stage = count % 2;
      slot = count % slots;
      wait_for_phase(known(slot), count / slots);
      wait_for_phase(full(stage), count / 2);
      if constexpr (!Summary) {
        float sum[8][4];
        begin_mix(sum);
        wgmma_wait<0>();
        hold(sum);
        for (int k = 0; k < heads(); ++k) mix(sum, k);
      }
      clear_B();
      fence_for_products();
      __syncwarp();
      if (lane_id() == 0) arrive(mixed(stage));
    }
  }

  // ---- the state, in registers of warps with channels
  // --------------------------------------------

  // f(where two neighbouring states of a channel are, they), for all of the thread.
  template <class F>
  __device__ __forceinline__ void each_state(std::int64_t row, F f) {
    const int lane = lane_id();
    const std::int64_t at = op.state(row, head, p0 + lane / 4) + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < wides; ++n) {
#pragma unroll
      for (int k = 0; k < tiles; ++k) {
        f(at + 128 * n + 8 * k, S[n][k][0], S[n][k][1]);
        f(at + 128 * n + 8 * k + 8 * N, S[n][k][2], S[n][k][3]);
      }
    }
  }
  // Not by selecting, which would need as many registers again.
  __device__ void clear_state() {
#pragma unroll
    for (int n = 0; n < wides; ++n) {
#pragma unroll
      for (int k = 0; k < tiles; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) make_zero(S[n][k][i]);
      }
    }
  }
  __device__ void load_state(const float* from, std::int64_t row) {
    if (!works) return;
    each_state(row, [from](std::int64_t at, float& first, float& second) {
      const auto pair = load_vec<2>(from + at);
      first = pair.at[0];
      second = pair.at[1];
    });
  }
  __device__ void keep_state(float* to, std::int64_t row) {
    if (!works) return;
    each_state(row, [to](std::int64_t at, float first, float second) {
      store_vec(to + at, Vec<float, 2>{{first, second}});
    });
  }

  // ---- a chunk, by a warpgroup with channels
  // -----------------------------------------------------

  // Where the lane's row of four 8 x 8 matrices lies: sixteen steps from `step` on by the warp's
  // channels, steps downwards in both halves first.
  __device__ __forceinline__ unsigned x_place(int step, int lane) const {
    const int row = step + lane % 8 + lane / 16 * 8, piece = lane / 8 % 2;
    if constexpr (XBytes == 128) {
      return static_cast<unsigned>(x_at(warpgroup, stage)) +
             Channels::place(ssd_chunk, row, 2 * warp + piece);
    } else {
      return static_cast<unsigned>(x_at(warpgroup, stage) + warp * warp_bytes) +
             Channels::place(ssd_chunk, row, piece);
    }
  }
  __device__ std::uint16_t& x_element(int step, int channel) const {
    const int lane = step % 8 + channel / 8 * 8 + step / 8 % 2 * 16;
    return reinterpret_cast<std::uint16_t*>(memory + x_place(step / 16 * 16, lane))[channel % 8];
  }
  // x^T of the warp. True if all of it was finite; else what was not is taken for zero, and
  // poison() says where it was. A warp without channels has zeros.
  __device__ __forceinline__ bool load_x(std::uint32_t (&xs)[4][4]) const {
    for (bool as_it_came = true;; as_it_came = false) {
      const int lane = lane_id();
      std::uint32_t none[2] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        load_matrices_transposed(xs[j], base + x_place(16 * j, lane));
        if (!works) xs[j][0] = xs[j][1] = xs[j][2] = xs[j][3] = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) none[k % 2] = add_none_of<bf16>(xs[j][k], none[k % 2]);
      }
      if (__all_sync(all_lanes, (none[0] | none[1]) == 0)) return as_it_came;
      take_out();
    }
  }
  // A lane has a channel of every second step.
  __device__ void take_out() const {
    const int lane = lane_id(), channel = lane % 16;
    poison()[lane] = 0;
    __syncwarp();
#pragma unroll 1
    for (int i = lane / 16; i < ssd_chunk; i += 2) {
      std::uint16_t& x = x_element(i, channel);
      if (not_finite<bf16>(x) == 0) continue;
      atomicOr(poison() + 2 * channel + i / 32, 1u << i % 32);
      x = 0;
    }
    fence_for_products();  // before the copy of a later chunk
    __syncwarp();
  }
  // Whether an x of a channel of the warp that was not finite reaches step i.
  __device__ bool is_poisoned(int channel, int i) const {
    const unsigned* words = poison() + 2 * channel;
    const unsigned long long at = words[0] | static_cast<unsigned long long>(words[1]) << 32;
    return (at & ((2ull << i) - 1)) >> max(resets().last(i), 0) != 0;
  }
  // Of y, where it is stored from.
  __device__ void poison_y() const {
    const int lane = lane_id(), channel = lane % 16;
#pragma unroll 1
    for (int i = lane / 16; i < ssd_chunk; i += 2) {
      if (!is_poisoned(channel, i)) continue;
      reinterpret_cast<std::uint16_t*>(
          memory + y_at() + Stored::place(ssd_chunk, i, channel / 8))[channel % 8] = 0x7fff;
    }
  }
  // Of the last x, from which all of a channel's state will be NaN.
  __device__ void poison_x(std::uint32_t (&xs)[4][4]) const {
    const int lane = lane_id();
    if (lane % 4 != 3) return;
    if (is_poisoned(lane / 4, ssd_chunk - 1)) xs[3][2] |= 0x7fff0000u;
    if (is_poisoned(lane / 4 + 8, ssd_chunk - 1)) xs[3][3] |= 0x7fff0000u;
  }

  // S^T of the states from 128 n on, rounded, as first factors.
  __device__ __forceinline__ void round_S(int n, std::uint32_t (&to)[tiles / 2][4]) const {
#pragma unroll
    for (int k = 0; k < tiles / 2; ++k) {
      const float(&low)[4] = S[n][2 * k], (&high)[4] = S[n][2 * k + 1];
      to[k][0] = pack_pair<bf16>(low[0], low[1]);
      to[k][1] = pack_pair<bf16>(low[2], low[3]);
      to[k][2] = pack_pair<bf16>(high[0], high[1]);
      to[k][3] = pack_pair<bf16>(high[2], high[3]);
    }
  }
  // Those by their part of C^T, added to y but for the first.
  __device__ __forceinline__ void begin_y(int n, const std::uint32_t (&rounded)[tiles / 2][4],
                                          float (&y)[8][4]) const {
    const Factor<128> C(base + static_cast<unsigned>(C_at(stage)));
    hold(y);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < tiles / 2; ++k) {
      const int at = (2 * n + k / 4) * ssd_chunk * 128 + k % 4 * 32;
      wgmma<Depth::along_rows>(y, rounded[k], C, static_cast<unsigned>(at), n > 0 || k > 0);
    }
    wgmma_commit();
  }
  // That, by how much S has decayed at each step, and D x^T.
  __device__ __forceinline__ void decay_y(float (&y)[8][4], const std::uint32_t (&xs)[4][4]) const {
    const SsdSteps& of = steps();
    const int q = lane_id() % 4, reached = of.resets.reached();
    const float D = op.D != nullptr ? op.D[head] : 0;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const auto start = load_vec<2>(&of.start[8 * t + 2 * q]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float pair[2];
        unpack_pair<bf16>(xs[t / 2][t % 2 * 2 + half], pair);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float& to = y[t][2 * half + k];
          to = __fmul_rn(to, start.at[k]);
          if (reached < ssd_chunk && 8 * t + 2 * q + k >= reached) to = 0;
          to = __fmaf_rn(D, pair[k], to);
        }
      }
    }
  }
  // x^T M^T, added to y. Where a warpgroup meets several heads, each warp takes part with zeros for
  // all but its own.
  __device__ __forceinline__ void add_mixed(float (&y)[8][4],
                                            const std::uint32_t (&xs)[4][4]) const {
    hold(y);
    wgmma_begin();
    if constexpr (XBytes == 128) {
      add_mixed(y, xs, head - first_head());
    } else {
      const int last = head_of(4 * (first + warpgroup) + 3);
      for (int h = head_of(4 * (first + warpgroup)); h <= last; ++h) {
        std::uint32_t own[4][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) own[j][k] = h == head ? xs[j][k] : 0;
        }
        add_mixed(y, own, h - first_head());
        if (h < last) {
          wgmma_commit();
          wgmma_wait<0>();
          hold(y);
          wgmma_begin();
        }
      }
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void add_mixed(float (&y)[8][4], const std::uint32_t (&xs)[4][4],
                                            int k) const {
    const Factor<128> M(base + static_cast<unsigned>(M_at(k, stage)));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      wgmma<Depth::along_rows>(y, xs[j], M, static_cast<unsigned>(32 * j), true);
    }
  }

  // S, by how much it decays in the chunk.
  __device__ __forceinline__ void decay_S() {
    const SsdSteps& of = steps();
    const float kept = of.start[ssd_chunk - 1];
#pragma unroll
    for (int n = 0; n < wides; ++n) {
#pragma unroll
      for (int k = 0; k < tiles; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) S[n][k][i] = __fmul_rn(kept, S[n][k][i]);
      }
    }
    if (of.resets.at != 0) clear_state();
  }
  __device__ __forceinline__ void weigh(const std::uint32_t (&xs)[4][4],
                                        std::uint32_t (&to)[4][4]) const {
    const SsdSteps& of = steps();
    const int q = lane_id() % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto weight = load_vec<2>(&of.weight[16 * j + k / 2 * 8 + 2 * q]);
        float pair[2];
        unpack_pair<bf16>(xs[j][k], pair);
        to[j][k] =
            pack_pair<bf16>(__fmul_rn(pair[0], weight.at[0]), __fmul_rn(pair[1], weight.at[1]));
      }
    }
  }
  // (weight x)^T B, added to S.
  __device__ __forceinline__ void advance(const std::uint32_t (&weighted)[4][4]) {
    const Factor<128> B(base + static_cast<unsigned>(B_at(stage)), ssd_chunk * 128);
    hold_S();
    wgmma_begin();
#pragma unroll
    for (int n = 0; n < wides; ++n) {
#pragma unroll
      for (int j = 0; j < ssd_chunk / 16; ++j) {
        wgmma<Depth::down_columns>(S[n], weighted[j], B,
                                   static_cast<unsigned>(n * 2 * ssd_chunk * 128 + j * 16 * 128),
                                   true);
      }
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void hold_S() {
#pragma unroll
    for (int n = 0; n < wides; ++n) hold(S[n]);
  }

  __device__ __forceinline__ void store_y(const float (&y)[8][4], bool finite) const {
    const int lane = lane_id();
    if (lane == 0) wait_for_boxes();  // of the chunk before
    __syncwarp();
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
      const float(&low)[4] = y[t], (&high)[4] = y[t + 1];
      const std::uint32_t pairs[4] = {
          pack_pair<bf16>(low[0], low[1]), pack_pair<bf16>(low[2], low[3]),
          pack_pair<bf16>(high[0], high[1]), pack_pair<bf16>(high[2], high[3])};
      store_matrices_transposed(
          base + static_cast<unsigned>(y_at()) +
              Stored::place(ssd_chunk, 8 * t + lane % 8 + lane / 16 * 8, lane / 8 % 2),
          pairs);
    }
    if (!finite) {
      __syncwarp();
      poison_y();
    }
    fence_for_products();
    __syncwarp();
    if (lane != 0 || !works) return;
    store_box(maps.y, static_cast<int>(op.channel(head)) + p0, chunk * ssd_chunk, b,
              base + static_cast<unsigned>(y_at()));
    end_of_boxes();
  }

  __device__ __forceinline__ void one_chunk(int count) {
    wait_for_phase(known(slot), count / slots);
    wait_for_phase(full(stage), count / 2);
    std::uint32_t xs[4][4], weighted[4][4];
    float y[8][4];
    const bool finite = load_x(xs);
    if constexpr (Summary) {
      if (!finite) poison_x(xs);
      weigh(xs, weighted);
      decay_S();
      wait_for_phase(mixed(stage), count / 2);
      advance(weighted);
    } else {
      std::uint32_t rounded[tiles / 2][4];
      round_S(0, rounded);
      if constexpr (wides > 1) {
        begin_y(0, rounded, y);
        wgmma_wait<0>();
        hold(y);
        round_S(1, rounded);
      }
      decay_S();
      begin_y(wides - 1, rounded, y);
      wgmma_wait<0>();
      hold(y);
      decay_y(y, xs);
      wait_for_phase(mixed(stage), count / 2);
      add_mixed(y, xs);
      weigh(xs, weighted);
      if (!finite) poison_x(weighted);
      advance(weighted);
      wgmma_wait<1>();
      hold(y);
      store_y(y, finite);
    }
    wgmma_wait<0>();
    hold_S();
  }

  // Chunk after chunk; returns by how much the segment decays a state.
  __device__ __forceinline__ float walk() {
    float decay = 1;
    for (int count = 0; chunk < end; ++chunk, ++count) {
      stage = count % 2;
      slot = count % slots;
      if (!Summary && cut.kept > 0 && chunk % cut.kept == 0) {
        keep_state(op.chunk_states, b * op.chunks + chunk / cut.kept);
      }
      one_chunk(count);
      if constexpr (Summary) {
        if (resets().at != 0) {
          decay = starts_anew;
        } else if (decay != starts_anew) {
          decay = __fmul_rn(decay, steps().start[ssd_chunk - 1]);
        }
      }
      __syncwarp();
      if (lane_id() == 0) {
        arrive(empty(stage));
        arrive(used(slot));
      }
    }
    if (!Summary && lane_id() == 0) wait_for_boxes();
    return decay;
  }
};

}  // namespace mamba::cuda
