// One token of a few rows through all layers of a stack in one kernel.
//
// A step of a stack reads every weight once and computes next to nothing, but its layers are a
// chain of small dependent pieces: norm and in_proj, x_proj, the scan, out_proj, each of which
// needs all of what the one before it made. As kernels of their own, every one of them begins by
// waiting for memory and ends with the memory idle. Here one block stays on every multiprocessor
// for the whole step, and two things happen independently of each other:
//
//   * Every thread reads its share of the weights of all layers, in the order of their use, through
//     a ring in shared memory (stack_weights.cuh). What it reads next depends on nothing but the
//     sizes, so the memory need not wait for the chain as long as the rings are not full.
//   * Blocks hand each other what they have computed as words of 8 bytes in global memory, a value
//     and the number of the layer (stack_words.cuh). Who needs a value looks at its word until the
//     number is right: one store and one load, where a barrier of all blocks would be a fence, a
//     counter, and a further trip to L2 for the values.
//
// The same words serve every layer. A block writes a layer's word only after it has read something
// that every reader of the word's last content has made since, so nothing is overwritten too early:
//
//   residual -> in_proj, conv -> u -> x_proj -> selection -> scan -> y -> out_proj -> residual
//
// Where the time goes (130m, one row, clocks of a layer's 15 000): about 1900 for each of the four
// hand-overs, so what can be done early is done between giving and taking; 1900 for in_proj's
// products, 1100 for out_proj's, 900 for the scan, the rest for sums.
#include "detail/stream_access.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/step/stack_channel.cuh"
#include "kernels/step/stack_products.cuh"
#include "kernels/step/stack_step.hpp"

namespace mamba::cuda {

namespace stack {

namespace {

constexpr const char* where = "Stack::forward";
constexpr int most_norms = 8;  // of a thread
constexpr int most_model = most_norms * threads;

template <int Slots, bool Single>
class Block : Products<Slots, Single> {
  using Base = Products<Slots, Single>;
  using Base::batch, Base::each, Base::inputs_of, Base::lanes_of_row, Base::multiply, Base::total;
  using Base::lane_, Base::op_, Base::plan_, Base::step_, Base::warp_, Base::weights_;

 public:
  __device__ __forceinline__ Block(const Operands& operands, char* shared)
      : Base(operands, shared) {}

  __device__ __forceinline__ void run() {
    copy_layers();
    wait_for_weights(op_.constant_weights);
    weights_.begin();
    wait_for_previous();
    begin();
    for (int l = 0; l < step_.layer_count; ++l) {
      const Mamba1Step::Block& layer = weights_.layers[l];
      project_in(layer, l);
      select(layer, l);
      scan(layer, l);
      project_out(l);
    }
    let_next_begin();
    if (blockIdx.x == 0 && threadIdx.x == 0) *op_.words.turn ^= 1u;  // all others have read it
  }

 private:
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return Base::template at<U>(offset);
  }
  // Parameters are read well by whole warps only, and where they have been read before.
  __device__ __forceinline__ void copy_layers() const {
    auto* to = at<Mamba1Step::Block>(plan_.layers);
    for (int l = warp_; l < step_.layer_count; l += warps) to[l] = step_.layers[l];
    __syncthreads();
  }

  __device__ __forceinline__ void begin() {
    const std::uint32_t turn = __ldcg(op_.words.turn);
    const Plan& p = plan_;
    u_words_ = op_.words.sets[turn];
    y_words_ = u_words_ + p.u_words;
    selection_words_ = y_words_ + p.y_words;
    residual_words_ = selection_words_ + p.selection_words;
    auto* next = reinterpret_cast<ulonglong2*>(op_.words.sets[turn ^ 1]);
    for (std::int64_t i = blockIdx.x * std::int64_t{threads} + threadIdx.x; i < op_.words.words / 2;
         i += std::int64_t{gridDim.x} * threads) {
      next[i] = {0, 0};
    }
    const auto* x = static_cast<const T*>(step_.x);
    each(weights_.shares.outputs.count, [&](int n, int r) {
      at<float>(p.own)[n * p.own_pitch + r] =
          to_float(x[n * step_.x_pitch + weights_.shares.outputs.first + r]);
    });
    const auto n = static_cast<int>(threadIdx.x);
    if (blockIdx.x == 0 && n < batch() && op_.bad_row != nullptr && state_row(step_, n).bad) {
      *op_.bad_row = 1;
    }
    float norm[most_norms];
    load_norm(0, norm);
    keep_norm(norm);
    __syncthreads();
  }

  // The next layer's norm, by way of registers: a warp has that of its own inputs.
  __device__ __forceinline__ void load_norm(int l, float (&norm)[most_norms]) const {
    const float* from = weights_.layers[l].norm + threadIdx.x;
#pragma unroll
    for (int i = 0; i < most_norms; ++i) {
      norm[i] = i * threads + static_cast<int>(threadIdx.x) < step_.d_model ? from[i * threads] : 0;
    }
  }
  __device__ __forceinline__ void keep_norm(const float (&norm)[most_norms]) const {
    float* to = at<float>(plan_.norm) + warp_ * plan_.model.most * piece + lane_;
#pragma unroll
    for (int i = 0; i < most_norms; ++i) {
      if (i < plan_.model.most) to[i * piece] = norm[i];
    }
  }

  // The residual, times the norm's weight, as inputs, and its squares. That of the first layer is
  // x.
  __device__ __forceinline__ void take_residual(int l) const {
    const Plan& p = plan_;
    const float* norm = at<float>(p.norm) + warp_ * p.model.most * piece;
    float squares = 0;
    const auto keep = [&](int i, int n, float(&two)[2]) {
      squares = fmaf(two[0], two[0], squares);
      squares = fmaf(two[1], two[1], squares);
      float weight[2];
      load_floats<2>(norm + 2 * i, weight);
      two[0] *= weight[0];
      two[1] *= weight[1];
      Packed<T, 2>::pack(two).store(inputs_of(n) + 2 * i);
    };
    const int lanes = lanes_of_row(), n = lane_ / lanes;
    if (l == 0) {
      const int count = weights_.pieces_of(step_.d_model) * (piece / 2);
      const T* x = static_cast<const T*>(step_.x) + n * step_.x_pitch;
      for (int i = lane_ % lanes; i < count && n < batch(); i += lanes) {
        const int k = (i / (piece / 2) * warps + warp_) * piece + 2 * i % piece;
        float two[2];
        load_floats<2>(x + k, two);
        keep(i, n, two);
      }
      __syncwarp();
    } else {
      Base::template take<piece / 2>(
          residual_words_, p.model, step_.d_model, l, [&](int i, int row, const WordPair& pair) {
            float two[2] = {__uint_as_float(value_of(pair.x)), __uint_as_float(value_of(pair.y))};
            keep(i, row, two);
          });
    }
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
      squares += __shfl_xor_sync(all_lanes, squares, apart);
    }
    if (lane_ % lanes == 0 && n < batch()) at<float>(p.squares)[n * warps + warp_] = squares;
  }

  // norm, in_proj, convolution: u and the gate of this block's channels.
  __device__ __forceinline__ void project_in(const Mamba1Step::Block& layer, int l) {
    const Plan& p = plan_;
    const Share& channels = weights_.shares.channels;
    const int count = channels.count;
    // While the residual is on its way: what depends on nothing.
    Filter filter;
    const auto mine = static_cast<int>(threadIdx.x);  // the first of each()
    if (mine < count * batch())
      filter.load(step_, layer, mine / count, channels.first + mine % count);

    take_residual(l);
    auto* sums = at<float>(p.sums_A);
    multiply(step_.d_model, 2 * count, sums, p.pitch_A);
    __syncthreads();

    const auto projected = [&](int n, int row) {
      const float square = total(at<float>(p.squares) + n * warps);
      const float sum = total(sums + (n * p.pitch_A + row) * sum_pitch);
      const float mean = fmaf(square, 1 / static_cast<float>(step_.d_model), step_.epsilon);
      return from_float<T>(sum * rsqrtf(mean));
    };
    each<true>(count, [&](int n, int r) {
      T x{};
      float u = 0;
      const int place = p.inner.place(channels.first + r, n, batch());
      if (r < count) {
        if (n * count + r != mine) filter.load(step_, layer, n, channels.first + r);
        x = projected(n, r);
        u = to_float(from_float<T>(filter.convolve(x)));
      }
      const float next = __shfl_down_sync(all_lanes, u, 1);
      if (r >= count) return;
      if (r % 2 == 0) give(u_words_ + place / 2, pair_of(u, next), l + 1);
      at<float>(p.u)[n * p.channel_pitch + r] = u;
      filter.store(step_, layer, channels.first + r, x);
    });
    // The gates, by other warps as long as there are some.
    for (int i = threads - 1 - mine; i < count * batch(); i += threads) {
      const int n = batch() == 1 ? 0 : i / count, r = i - n * count;
      at<float>(p.gate)[n * p.channel_pitch + r] =
          silu_of_scan<T>(to_float(projected(n, count + r)));
    }
  }

  // u or y of all channels, for x_proj or out_proj.
  __device__ __forceinline__ void take_channels(const Word* words, int round) const {
    Base::template take<piece / 4>(words, plan_.inner, step_.d_inner, round,
                                   [&](int i, int n, const WordPair& pair) {
                                     const uint2 four = {value_of(pair.x), value_of(pair.y)};
                                     *reinterpret_cast<uint2*>(inputs_of(n) + 4 * i) = four;
                                   });
  }

  // x_proj, and what the scan will need.
  __device__ __forceinline__ void select(const Mamba1Step::Block& layer, int l) {
    const int j = static_cast<int>(threadIdx.x) / channel_lanes;
    if (j < weights_.shares.channels.count) {
      channel_.load(step_, layer, weights_.shares.channels.first + j, lane_ % channel_lanes);
    }
    if (weights_.shares.selection.count > 0) {
      take_channels(u_words_, l + 1);
      auto* sums = at<float>(plan_.sums_B);
      multiply(step_.d_inner, weights_.shares.selection.count, sums, plan_.pitch_B);
      __syncthreads();
      each(weights_.shares.selection.count, [&](int n, int r) {
        const float value = total(sums + (n * plan_.pitch_B + r) * sum_pitch);
        give(selection_words_ + n * plan_.selection + weights_.shares.selection.first + r,
             __float_as_uint(value), l + 1);
      });
    }
    for (float& A : channel_.A) A = scaled_A(A);
    auto* selected = at<float>(plan_.selected);
    for (int i = 2 * static_cast<int>(threadIdx.x); i < batch() * plan_.selection;
         i += 2 * threads) {
      WordPair pair;
      do look(selection_words_ + i, pair);
      while (!is_of(pair, l + 1));
      const float two[2] = {__uint_as_float(value_of(pair.x)), __uint_as_float(value_of(pair.y))};
      store_floats<2>(selected + i, two);
    }
    __syncthreads();  // u, the gates and the selection are there, sums_B is free
  }

  // dt_proj and the scan: y of this block's channels.
  __device__ __forceinline__ void scan(const Mamba1Step::Block& layer, int l) {
    const int count = weights_.shares.channels.count;
    const int j = static_cast<int>(threadIdx.x) / channel_lanes, p = lane_ % channel_lanes;
    if (warp_ * (32 / channel_lanes) >= count) return;
    const bool works = j < count;
    const int c = weights_.shares.channels.first + (works ? j : 0);
    const auto all_lanes_of = [](float part) {
#pragma unroll
      for (int apart = 1; apart < channel_lanes; apart *= 2) {
        part += __shfl_xor_sync(all_lanes, part, apart);
      }
      return part;
    };
    Channel& channel = channel_;
    for (int n = 0; n < batch(); ++n) {
      if (n > 0 && works) channel.load_state(step_, layer, n, c, p);
      const float* selected = at<float>(plan_.selected) + n * plan_.selection;
      float dt = 0;
#pragma unroll
      for (int i = 0; i < most_dt_rank / Channel::dt_step; ++i) {
        if (Channel::dt_step * i >= step_.dt_rank) break;
        float weight[2], low[2];
        Packed<T, 2>{channel.dt_weight[i]}.unpack(weight);
        load_floats<2>(selected + 2 * p + Channel::dt_step * i, low);
        dt = fmaf(weight[0], low[0], dt);
        dt = fmaf(weight[1], low[1], dt);
      }
      float B[lane_states], C[lane_states];
      load_floats<lane_states>(selected + step_.dt_rank + p * lane_states, B);
      load_floats<lane_states>(selected + step_.dt_rank + d_state + p * lane_states, C);
      const float u = works ? at<float>(plan_.u)[n * plan_.channel_pitch + j] : 0;
      const float gate = works ? at<float>(plan_.gate)[n * plan_.channel_pitch + j] : 0;
      const float delta = softplus(all_lanes_of(dt) + channel.dt_bias);
      const float delta_u = delta * u;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < lane_states; ++k) {
        float& h = channel.h.at[k];
        h = advance(h, delta, channel.A[k], delta_u, B[k]);
        sum = fmaf(C[k], h, sum);
      }
      const float y = fmaf(channel.D, u, all_lanes_of(sum)) * gate;
      const float next = __shfl_down_sync(all_lanes, y, channel_lanes);
      if (works && p == 0 && j % 2 == 0) {
        give(y_words_ + plan_.inner.place(c, n, batch()) / 2, pair_of(y, next), l + 1);
      }
      if (works && channel.write >= 0) {
        store_vec(layer.ssm + Channel::place(step_, channel.write, c, p), channel.h);
      }
    }
  }

  // out_proj: the residual of this block's outputs.
  __device__ __forceinline__ void project_out(int l) {
    const Plan& p = plan_;
    const bool last = l + 1 == step_.layer_count;
    float norm[most_norms];  // of the next layer
    if (!last) load_norm(l + 1, norm);
    take_channels(y_words_, l + 1);
    const Share& outputs = weights_.shares.outputs;
    auto* sums = at<float>(p.sums_B);
    multiply(step_.d_inner, outputs.count, sums, p.pitch_B);
    if (!last) keep_norm(norm);
    __syncthreads();
    each(outputs.count, [&](int n, int r) {
      const StateRow<int> row = state_row(step_, n);
      float& own = at<float>(p.own)[n * p.own_pitch + r];
      if (!row.padding) own += total(sums + (n * p.pitch_B + r) * sum_pitch);
      if (row.bad) own = __int_as_float(0x7fffffff);
      const int k = outputs.first + r;
      if (last) {
        step_.sum[n * step_.d_model + k] = own;
      } else {
        give(residual_words_ + p.model.place(k, n, batch()), __float_as_uint(own), l + 1);
      }
    });
  }

  Word *u_words_, *y_words_, *selection_words_, *residual_words_;
  Channel channel_;
};

template <int Slots, bool Single>
__global__ void __launch_bounds__(threads, 1)
    stack_step_kernel(const __grid_constant__ Operands op) {
  extern __shared__ uint4 memory[];
  Block<Slots, Single>(op, reinterpret_cast<char*>(memory)).run();
}

constexpr int slot_counts[] = {32, 24, 16};

// Slots of the rings that fit besides everything else; 0: not even the fewest.
int slots_of(const Mamba1Step& step, Device device) {
  const int most = shared_memory(device, where), blocks = multiprocessors(device, where);
  for (const int slots : slot_counts) {
    if (Plan(step, slots * unit, blocks).bytes <= most) return slots;
  }
  return 0;
}

using StepKernel = void (*)(Operands);
template <int Slots>
StepKernel kernel_of(int rows) {
  return rows == 1 ? stack_step_kernel<Slots, true> : stack_step_kernel<Slots, false>;
}
StepKernel kernel_of(int slots, int rows) {
  switch (slots) {
    case 32:
      return kernel_of<32>(rows);
    case 24:
      return kernel_of<24>(rows);
    default:
      return kernel_of<16>(rows);
  }
}

}  // namespace

bool takes(const Mamba1Step& s, const Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  const bool sizes = s.d_model % piece == 0 && s.d_model <= most_model && s.d_inner % piece == 0 &&
                     s.dt_rank % 16 == 0 && s.dt_rank <= most_dt_rank;
  const Limits most = limits(device, where);
  if (!most.cooperative || !sizes ||
      Share::most(s.d_inner, 2, most.multiprocessors) > most_channels) {
    return false;
  }
  const int slots = slots_of(s, device);
  return slots > 0 && capability_of(kernel_of(slots, s.rows), device, where) >= sm_90;
}

void run(const Mamba1Step& step, Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  const int slots = slots_of(step, device);
  const Plan plan(step, slots * unit, multiprocessors(device, where));
  // As many words as for the most rows, so that a stream needs no second place when they change.
  const std::int64_t most = std::int64_t{plan.words} / step.rows * most_rows;
  const TensorView memory = StreamAccess::hand_over(
      stream, HandOver::turn_words + 2 * most * std::int64_t{sizeof(Word)} / 4);
  const Operands op{step, plan, HandOver(memory), StreamAccess::constant_weights(stream),
                    StreamAccess::flag(stream, BadValue::state_row)};
  launch_together(kernel_of(slots, step.rows), static_cast<unsigned>(plan.blocks), threads,
                  static_cast<std::size_t>(plan.bytes), stream, where, op);
}

}  // namespace stack

}  // namespace mamba::cuda
