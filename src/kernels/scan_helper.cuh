// The warps that serve the recurrence: see scan_block.cuh.
#pragma once

#include "kernels/scan_block.cuh"

namespace mamba::cuda {

constexpr int helper_threads = 64;

// Copies of 16, 8 or 4 bytes go past the registers; the first `valid` bytes come from memory and the
// rest are zeros. 2 bytes are a plain load: rows of odd alignment only.
template <int Bytes>
__device__ __forceinline__ void copy_granule(char* to, const char* from, int valid) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(valid));
  } else if constexpr (Bytes > 2) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared), "l"(from),
                 "r"(valid), "n"(Bytes));
  } else {
    *reinterpret_cast<std::uint16_t*>(to) =
        valid > 0 ? *reinterpret_cast<const std::uint16_t*>(from) : std::uint16_t{0};
  }
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int Pending>  // groups that may be under way still
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

template <class Block>
struct ScanHelper {
  using T = typename Block::Element;
  static constexpr int Steps = Block::steps, Channels = Block::channels, half = Block::half;
  static constexpr int pitch = Block::pitch, element = Block::element, stages = Block::stages;
  static constexpr int quads = Steps / 4;
  // In prepare and finish a helper has one pair of channels and every quads_at_once-th four steps.
  static constexpr int quads_at_once = helper_threads / half;
  static_assert(helper_threads % half == 0);

  const Block& block;
  const ScanOperands& op;
  const ScanCut& cut;
  int id;              // among the helpers
  int pair, my_quad;
  // Where the next tile to fill, and to finish, begins.
  const char *x, *dt, *z, *B, *C;
  T* y;

  __device__ explicit ScanHelper(const Block& b)
      : block(b), op(b.op), cut(b.cut), id(Block::thread() - b.workers()) {
    pair = id % half;
    my_quad = id / half;
    for (int i = id; i < Channels; i += helper_threads) {
      const int c = block.channel + i;
      block.D()[i] = op.D != nullptr && c < op.channels ? op.D[c] : 0;
      block.bias()[i] = op.dt_bias != nullptr && c < op.channels ? op.dt_bias[c] : 0;
    }
    const auto begin = [&](const ScanTrack& track, int c) {
      return reinterpret_cast<const char*>(track.at<T>(block.b, block.first) + c);
    };
    x = begin(op.x, block.channel);
    dt = begin(op.dt, block.channel);
    z = begin(op.z, block.channel);
    B = begin(op.B, 0);
    C = begin(op.C, 0);
    y = op.y.template out<T>(block.b, block.first + 4 * my_quad) + block.channel + 2 * pair;
  }

  // ---- fill -------------------------------------------------------------------------------------

  template <int Bytes>
  __device__ __forceinline__ void fill_channels(int stage, int steps) const {
    constexpr int per_row = Channels * element / Bytes > 0 ? Channels * element / Bytes : 1;
    constexpr int rows = helper_threads / per_row;  // at once
    static_assert(rows > 0);
    const int mine = recomputed(id);
    const int byte = mine % per_row * Bytes;
    const int valid = max(0, min(Bytes, block.block_channels() * element - byte));
    char* target = block.raw(stage, 0) + byte;
#pragma unroll 1
    for (int i = 0; i < Steps; i += rows) {
      const int row = i + mine / per_row;
      if (Steps % rows != 0 && row >= Steps) break;
      const int bytes = row < steps ? valid : 0;
      char* to = target + row * Channels * element;
      copy_granule<Bytes>(to, x + row * op.x.step_pitch * element + byte, bytes);
      copy_granule<Bytes>(to + Block::raw_bytes, dt + row * op.dt.step_pitch * element + byte,
                          bytes);
      if (op.z.data != nullptr) {
        copy_granule<Bytes>(to + 2 * Block::raw_bytes, z + row * op.z.step_pitch * element + byte,
                            bytes);
      }
    }
  }

  template <int Bytes>
  __device__ __forceinline__ void fill_states(int stage, int steps) const {
    constexpr int shift = Bytes == 16 ? 4 : Bytes == 8 ? 3 : Bytes == 4 ? 2 : 1;
    const int per_row = cut.row_bytes_BC >> shift;  // a power of two
    const int row_shift = 31 - __clz(per_row);
#pragma unroll 1
    for (int i = recomputed(id); i < Steps * per_row; i += helper_threads) {
      const int row = i >> row_shift;
      const int byte = (i & (per_row - 1)) << shift;
      const int bytes = row < steps ? max(0, min(Bytes, op.d_state * element - byte)) : 0;
      char* target = block.raw_BC(stage, 0) + row * cut.row_bytes_BC + byte;
      copy_granule<Bytes>(target, B + row * op.B.step_pitch * element + byte, bytes);
      copy_granule<Bytes>(target + Steps * cut.row_bytes_BC,
                          C + row * op.C.step_pitch * element + byte, bytes);
    }
  }

  // Tiles are filled in order, and a group of copies is closed also when there is no tile left.
  __device__ __forceinline__ void fill(int tile, int stage) {
    if (tile < block.tiles()) {
      const int steps = block.steps_of(tile);
      switch (cut.granule) {
        case 16: fill_channels<16>(stage, steps); break;
        case 8: fill_channels<8>(stage, steps); break;
        case 4: fill_channels<4>(stage, steps); break;
        default: fill_channels<element>(stage, steps);
      }
      switch (cut.granule_BC) {
        case 16: fill_states<16>(stage, steps); break;
        case 8: fill_states<8>(stage, steps); break;
        case 4: fill_states<4>(stage, steps); break;
        default: fill_states<element>(stage, steps);
      }
      if (op.reset != nullptr && id < Steps) {
        const std::int32_t* flag =
            op.reset + block.b * op.reset_pitch + block.first + std::int64_t{tile} * Steps + id;
        copy_granule<4>(block.raw_BC(stage, 2) + 4 * id, reinterpret_cast<const char*>(flag),
                        id < steps ? 4 : 0);
      }
      x += op.x.step_pitch * (Steps * element);
      dt += op.dt.step_pitch * (Steps * element);
      z += op.z.step_pitch * (Steps * element);
      B += op.B.step_pitch * (Steps * element);
      C += op.C.step_pitch * (Steps * element);
    }
    copies_commit();
  }

  // ---- prepare ----------------------------------------------------------------------------------

  // This thread's pair of channels at step t of a raw operand.
  __device__ __forceinline__ Vec<T, 2> raw_pair(int stage, int which, int t) const {
    return load_vec<2>(reinterpret_cast<const T*>(block.raw(stage, which)) + t * Channels +
                       2 * pair);
  }

  __device__ __forceinline__ void prepare(int stage, int buffer) const {
    float* to_delta = block.delta(buffer) + pair * pitch;
    float* to_delta_x = block.delta_x(buffer) + pair * pitch;
    const Vec<float, 2> bias = load_vec<2>(block.bias() + 2 * pair);
#pragma unroll 1
    for (int q = my_quad; q < quads; q += quads_at_once) {
      Four d[2], u[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> dt_i = raw_pair(stage, 1, 4 * q + i), x_i = raw_pair(stage, 0, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          d[c].at[i] = softplus(__fadd_rn(to_float(dt_i.at[c]), bias.at[c]));
          u[c].at[i] = __fmul_rn(d[c].at[i], to_float(x_i.at[c]));
        }
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        store_four(to_delta + c * half * pitch + 4 * q, d[c]);
        store_four(to_delta_x + c * half * pitch + 4 * q, u[c]);
      }
    }
    prepare_states(stage, buffer);
    if (op.reset != nullptr && id < 32) {
      const auto* flags = reinterpret_cast<const std::int32_t*>(block.raw_BC(stage, 2));
      const unsigned mask = __ballot_sync(0xffffffffu, id < Steps && flags[id] != 0);
      if (id == 0) *block.resets(buffer) = mask;
    }
  }

  // B and C, contiguous in raw memory, two states and four steps at a time.
  __device__ __forceinline__ void prepare_states(int stage, int buffer) const {
    const int row = cut.row_bytes_BC / element;
    const int pairs = cut.padded_states / 2;
    const int shift = 31 - __clz(pairs);
    const T* table = reinterpret_cast<const T*>(block.raw_BC(stage, 0));
#pragma unroll 1
    for (int i = id; i < 2 * quads << shift; i += helper_threads) {
      const int n = 2 * (i & (pairs - 1));
      const int q = (i >> shift) & (quads - 1);
      const int which = (i >> shift) / quads;
      const T* from = table + (which * Steps + 4 * q) * row + n;
      Four v[2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Vec<T, 2> two = load_vec<2>(from + j * row);
        v[0].at[j] = to_float(two.at[0]);
        v[1].at[j] = to_float(two.at[1]);
      }
      float* to = (which == 0 ? block.B(buffer) : block.C(buffer)) + n * pitch +
                  n / Block::states * 4 + 4 * q;
      store_four(to, v[0]);
      store_four(to + pitch, v[1]);
    }
  }

  // ---- finish -----------------------------------------------------------------------------------

  // Tiles are finished in order.
  __device__ __forceinline__ void finish(int tile, int stage, int buffer) {
    const int left = op.channels - block.channel - 2 * pair;
    const int steps = block.steps_of(tile);
    const float* from = block.parts(buffer) + pair * cut.part_channel;
    T* to = y;
    y += op.y.step_pitch * Steps;
#pragma unroll 1
    for (int q = my_quad; q < quads && left > 0; q += quads_at_once) {
      Four sum[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sum[c] = tree_sum<Block::few_lanes>(from + c * half * cut.part_channel + 4 * q,
                                            cut.part_lane, cut.lanes);
      }
      gate(stage, q, sum);
      if (4 * q + 4 <= steps && cut.paired_y && left > 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_vec(to + i * op.y.step_pitch,
                    Vec<T, 2>{{from_float<T>(sum[0].at[i]), from_float<T>(sum[1].at[i])}});
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (4 * q + i >= steps) break;
          to[i * op.y.step_pitch] = from_float<T>(sum[0].at[i]);
          if (left > 1) to[i * op.y.step_pitch + 1] = from_float<T>(sum[1].at[i]);
        }
      }
      to += 4 * quads_at_once * op.y.step_pitch;
    }
  }

  // y = (sum + D x) silu(z), of two channels and four steps.
  __device__ __forceinline__ void gate(int stage, int q, Four (&sum)[2]) const {
    if (op.D != nullptr) {
      const Vec<float, 2> D = load_vec<2>(block.D() + 2 * pair);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> x_i = raw_pair(stage, 0, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          sum[c].at[i] = __fmaf_rn(D.at[c], to_float(x_i.at[c]), sum[c].at[i]);
        }
      }
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> z_i = raw_pair(stage, 2, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          sum[c].at[i] = __fmul_rn(sum[c].at[i], silu<T>(to_float(z_i.at[c])));
        }
      }
    }
  }

  // ---- in order ---------------------------------------------------------------------------------

  template <bool Summary>
  __device__ __forceinline__ void help() {
    const int tiles = block.tiles();
    for (int tile = 0; tile < stages - 2; ++tile) fill(tile, tile);
    copies_wait<stages - 4>();
    block_barrier();
    if (tiles > 0) prepare(0, 0);
    block_barrier();
    int stage = 0;  // of tile i
    const auto ring = [&](int ahead) {
      const int s = stage + ahead;
      return s >= stages ? s - stages : s;
    };
    for (int tile = 0; tile <= tiles; ++tile) {
      fill(tile + stages - 2, ring(stages - 2));
      if (!Summary && tile > 0) finish(tile - 1, ring(stages - 1), (tile - 1) & 1);
      if (tile + 1 < tiles) prepare(ring(1), (tile + 1) & 1);
      copies_wait<stages - 4>();
      block_barrier();
      stage = ring(1);
    }
  }
};

}  // namespace mamba::cuda
