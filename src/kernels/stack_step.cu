// One token of a few rows through all layers of a stack in one kernel.
//
// A step of a stack reads every weight once and computes next to nothing, but its layers are a
// chain of small dependent pieces: norm and in_proj, x_proj, the scan, out_proj, each of which
// needs all of what the one before it made. As kernels of their own, every one of them begins by
// waiting for memory and ends with the memory idle. Here one block stays on every multiprocessor
// for the whole step, and two things happen independently of each other:
//
//   * Every thread reads its share of the weights of all layers, in the order of their use, through
//     a ring in shared memory (cp.async). What it reads next depends on nothing but the sizes, so
//     the memory never waits for the chain as long as the rings are not full.
//   * Blocks hand each other what they have computed as words of 8 bytes in global memory, a value
//     and the number of the layer. Who needs a value looks at its word until the number is right.
//     One such word passes from store to load without a barrier, a fence or a counter, which would
//     be a further trip to L2 and back.
//
// The same words serve every layer. A block writes a layer's word only after it has read something
// that every reader of the word's last content has made since, so nothing is overwritten too early:
//
//   residual -> in_proj, conv -> u -> x_proj -> selection -> scan -> y -> out_proj -> residual
//
// Products are those of the tensor cores (m16n8k16) with weights as the 8 columns and the rows of
// the batch as the 16 rows, of which 8 are used; inputs are dealt to the 16 warps of a block in
// pieces of 32, and their sums are added up in shared memory.
#include <algorithm>
#include <climits>
#include <cstdlib>

#include "detail/stack_step.hpp"
#include "detail/stream_access.hpp"
#include "kernels/async_copy.cuh"
#include "kernels/chained.cuh"
#include "kernels/scan_math.cuh"
#include "kernels/tensor_core.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "Stack::forward";
using T = bf16;

constexpr int warps = 12, threads = warps * 32;
constexpr int piece = 32;            // inputs of a warp at a time
constexpr int span = warps * piece;  // of the block
constexpr int tile = 8;              // weight rows of a product
constexpr int unit = threads * 16;   // bytes of a ring's slot: 16 of each thread
constexpr int most_norms = 8;        // of a thread
constexpr int most_model = most_norms * threads;
constexpr int most_dt_rank = 192;
constexpr int channel_lanes = 8;  // of a channel in the scan
constexpr int lane_states = StackStep::d_state / channel_lanes;
constexpr int most_channels = threads / channel_lanes;  // of a block
constexpr int sum_pitch = warps;  // floats, so that eight rows lie in different banks

constexpr int d_state = StackStep::d_state, d_conv = StackStep::d_conv, past = d_conv - 1;

// What passes between blocks: a value and the layer it is of, counted from 1.
using Word = std::uint64_t;
using WordPair = ulonglong2;

__device__ __forceinline__ void give(Word* to, std::uint32_t value, int round) {
  const Word word = Word{static_cast<std::uint32_t>(round)} << 32 | value;
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ void look(const Word* from, WordPair& to) {
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(to.x), "=l"(to.y)
               : "l"(from)
               : "memory");
}
__device__ __forceinline__ std::uint32_t value_of(Word word) {
  return static_cast<std::uint32_t>(word);
}
__device__ __forceinline__ bool is_of(const WordPair& pair, int round) {
  return static_cast<int>(pair.x >> 32) == round && static_cast<int>(pair.y >> 32) == round;
}
__device__ __forceinline__ std::uint32_t pair_of(float low, float high) {
  const float both[2] = {low, high};
  return Packed<T, 2>::pack(both).words;
}

// Neighbouring rows of a matrix, or channels, of one block.
struct Share {
  int first, count;
  // The blocks' shares of `total`, a multiple of `together`, differ by `together` at most.
  __host__ __device__ static Share of(int total, int together, int block, int blocks) {
    const int units = total / together;
    const int first = static_cast<int>(std::int64_t{units} * block / blocks);
    const int end = static_cast<int>(std::int64_t{units} * (block + 1) / blocks);
    return {first * together, (end - first) * together};
  }
  static int most(int total, int together, int blocks) {
    return (total / together + blocks - 1) / blocks * together;
  }
};

// Inputs of the products lie warp by warp: a warp's pieces of a batch row are one run, in shared
// memory and among the words, so that a lane finds all of its own by constant steps.
struct Pieces {
  int most;  // of a warp
  __host__ __device__ explicit Pieces(int inputs) : most((inputs + span - 1) / span) {}
  // Where value k of batch row n of `rows` is.
  __device__ __forceinline__ int place(int k, int n, int rows) const {
    const auto at = static_cast<unsigned>(k);
    const auto warp = static_cast<int>(at / piece % warps), i = static_cast<int>(at / span);
    return ((warp * rows + n) * most + i) * piece + static_cast<int>(at % piece);
  }
  __host__ __device__ int values(int rows) const { return warps * rows * most * piece; }
};

// Where everything lies in a block's shared memory, in bytes, and among the words.
struct Plan {
  int blocks, selection;
  Pieces model, inner;
  int inputs, input_pitch;               // [warps][rows][input_pitch] T: a run of pieces
  int sums_A, pitch_A, sums_B, pitch_B;  // [rows][pitch][sum_pitch] f32: in_proj's; the others'
  int squares;                           // [rows][warps] f32
  int layers;                            // StackStep::Layer[layer_count]
  int norm;                              // [warps][a run of pieces] f32
  int own, own_pitch;                    // [rows][own_pitch] f32: the residual
  int selected;                          // [rows][selection] f32
  int u, gate, channel_pitch;            // [rows][channel_pitch] f32
  int bytes;
  int u_words, selection_words, y_words, residual_words, words;

  Plan(const StackStep& s, int ring_bytes, int most_blocks) : model(s.d_model), inner(s.d_inner) {
    blocks = std::min(most_blocks, s.d_inner / 2);  // a block without channels would have no say
    selection = s.dt_rank + 2 * d_state;
    const auto up = [](int count) { return (count + tile - 1) / tile * tile; };
    const int channels = Share::most(s.d_inner, 2, blocks);
    bytes = ring_bytes;
    const auto take = [&](int count, int size) {
      const int at = bytes;
      bytes += (count * size + 15) / 16 * 16;
      return at;
    };
    input_pitch = (std::max(model.most, inner.most) | 1) * piece;  // two rows in different banks
    pitch_A = up(2 * channels);
    own_pitch = Share::most(s.d_model, 1, blocks);
    pitch_B = up(std::max(own_pitch, Share::most(selection, 1, blocks)));
    channel_pitch = channels;
    inputs = take(warps * s.rows * input_pitch, sizeof(T));
    sums_A = take(s.rows * pitch_A * sum_pitch, sizeof(float));
    sums_B = take(s.rows * pitch_B * sum_pitch, sizeof(float));
    squares = take(warps * s.rows, sizeof(float));
    layers = take(s.layer_count, sizeof(StackStep::Layer));
    norm = take(model.values(1), sizeof(float));
    own = take(s.rows * own_pitch, sizeof(float));
    selected = take(s.rows * selection, sizeof(float));
    u = take(s.rows * channel_pitch, sizeof(float));
    gate = take(s.rows * channel_pitch, sizeof(float));
    u_words = inner.values(s.rows) / 2;
    y_words = u_words;
    selection_words = s.rows * selection;
    residual_words = model.values(s.rows);
    words = u_words + y_words + selection_words + residual_words;
  }
};

// Of a stream: two sets of words, of which a launch uses one and wipes the other for the next.
struct HandOver {
  static constexpr int turn_words = 32;  // of 4 bytes, so that the turn is alone in its line
  std::uint32_t* turn;                   // which set is used next
  Word* sets[2];
  std::int64_t words;  // of a set, even

  explicit HandOver(const TensorView& memory)
      : turn(reinterpret_cast<std::uint32_t*>(memory.data<std::int32_t>())),
        words((memory.count() - turn_words) / 8 * 2) {
    sets[0] = reinterpret_cast<Word*>(turn + turn_words);
    sets[1] = sets[0] + words;
  }
};

// Where a batch row's state comes from and goes to; -1: zeros, and nowhere.
struct StateRow {
  int read, write;
  bool padding, bad;
};

__device__ __forceinline__ StateRow state_row(const StackStep& s, int n) {
  StateRow row{n, n, false, false};
  if (s.read != nullptr) {
    row = {s.read[n], s.write[n], false, false};
    row.padding = row.read < 0 && row.write < 0;
    row.bad = row.read >= s.state_rows || row.write >= s.state_rows;
    if (row.bad) row.read = row.write = -1;
  }
  if (s.reset != nullptr && s.reset[n * s.reset_pitch] != 0) row.read = -1;
  return row;
}

struct Operands {
  StackStep step;
  Plan plan;
  HandOver words;
  bool constant_weights;
  int* bad_row;
};

enum Matrix { in_proj, x_proj, out_proj, matrices };

// What a block has of the three matrices of every layer.
struct Shares {
  Share channels, selection, outputs;
  __device__ explicit Shares(const Operands& op) {
    const auto block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    channels = Share::of(op.step.d_inner, 2, block, blocks);
    selection = Share::of(op.plan.selection, 1, block, blocks);
    outputs = Share::of(op.step.d_model, 1, block, blocks);
  }
  __device__ __forceinline__ int rows(int matrix) const {
    return matrix == in_proj  ? 2 * channels.count
           : matrix == x_proj ? selection.count
                              : outputs.count;
  }
};

// The weights on their way to one thread: of every tile of 8 rows, row lane / 4, and of every piece
// of its warp 8 inputs from 8 (lane % 4) on. Where it is wanted most is not where it waits for
// memory but where it has to catch up, so a request is a handful of instructions.
template <int Slots>
struct WeightStream {
  const StackStep& step;
  const StackStep::Layer* layers;  // in shared memory
  const Shares shares;
  unsigned ring, oldest;  // shared addresses: this thread's first slot, the one that is used next
  int warp, lane;
  int layer = 0, matrix = -1;                   // what is requested next
  int rows = 0, row = 0, inputs = 0, left = 0;  // left: pieces of the tile
  bool there = false;
  const T *base = nullptr, *from = nullptr;

  __device__ __forceinline__ WeightStream(const Operands& op, char* memory, int warp_, int lane_)
      : step(op.step),
        layers(reinterpret_cast<const StackStep::Layer*>(memory + op.plan.layers)),
        shares(op),
        ring(shared_address(memory) + threadIdx.x * 16),
        oldest(ring),
        warp(warp_),
        lane(lane_) {}

  __device__ __forceinline__ int pieces_of(int of_inputs) const {
    return (of_inputs / piece + warps - 1 - warp) / static_cast<unsigned>(warps);
  }
  __device__ __forceinline__ void next_matrix() {
    do {
      if (++matrix == matrices) {
        matrix = 0;
        ++layer;
      }
      if (layer == step.layer_count) {
        there = false;
        left = INT_MAX;
        return;
      }
      rows = shares.rows(matrix);
      inputs = matrix == in_proj ? step.d_model : step.d_inner;
    } while (rows == 0 || pieces_of(inputs) <= 0);
    const StackStep::Layer& weights = layers[layer];
    const void* all = matrix == in_proj  ? weights.in_proj
                      : matrix == x_proj ? weights.x_proj
                                         : weights.out_proj;
    base = static_cast<const T*>(all) + warp * piece + lane % 4 * 8;
    row = 0;
    aim();
  }
  // At the tile that begins with `row`.
  __device__ __forceinline__ void aim() {
    const int mine = row + lane / 4, channels = shares.channels.count;
    there = mine < rows;
    int of = mine;
    if (matrix == in_proj) {
      of += shares.channels.first + (mine < channels ? 0 : step.d_inner - channels);
    } else {
      of += matrix == x_proj ? shares.selection.first : shares.outputs.first;
    }
    from = base + std::int64_t{of} * inputs;
    left = pieces_of(inputs);
  }
  // Takes the oldest slot: a group of copies into it, even if there is nothing left.
  __device__ __forceinline__ void request() {
    if (there) copy_16_bytes(oldest, from);
    end_of_copies();
    from += span;
    oldest = next(oldest);
    if (--left == 0) {
      row += tile;
      row < rows ? aim() : next_matrix();
    }
  }
  __device__ __forceinline__ unsigned next(unsigned slot) const {
    return slot + unit == ring + Slots * unit ? ring : slot + unit;
  }
  __device__ __forceinline__ void begin() {
    next_matrix();
    for (int i = 0; i < Slots; ++i) request();
  }
};

// Single: one batch row.
template <int Slots, bool Single>
class Block {
 public:
  __device__ __forceinline__ Block(const Operands& operands, char* shared)
      : op_(operands),
        step_(operands.step),
        plan_(operands.plan),
        memory_(shared),
        warp_(__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        weights_(operands, shared, warp_, lane_) {}

  __device__ __forceinline__ void run() {
    copy_layers();
    wait_for_weights(op_.constant_weights);
    weights_.begin();
    wait_for_previous();
    begin();
    for (int l = 0; l < step_.layer_count; ++l) {
      const StackStep::Layer& layer = weights_.layers[l];
      project_in(layer, l);
      select(layer, l);
      scan(layer, l);
      project_out(l);
    }
    let_next_begin();
    if (blockIdx.x == 0 && threadIdx.x == 0) *op_.words.turn ^= 1u;  // all others have read it
  }

 private:
  __device__ __forceinline__ int batch() const { return Single ? 1 : step_.rows; }
  template <class U>
  __device__ __forceinline__ U* at(int offset) const {
    return reinterpret_cast<U*>(memory_ + offset);
  }

  // Parameters are read well by whole warps only, and where they have been read before.
  __device__ __forceinline__ void copy_layers() const {
    auto* to = at<StackStep::Layer>(plan_.layers);
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

  // Lanes of a batch row where a warp reads its inputs, as a power of two: a lane has values of one
  // row only.
  __device__ __forceinline__ int lane_bits() const {
    return batch() > 4 ? 2 : batch() > 2 ? 3 : batch() > 1 ? 4 : 5;
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
    const int lanes = 1 << lane_bits();
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
        const uint4 w0 = load_shared(weights_.oldest);
        const uint4 w1 = load_shared(weights_.next(weights_.oldest));
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
        add(even, *reinterpret_cast<const uint4*>(from), load_shared(weights_.oldest));
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

  // What a channel's convolution needs beside its product.
  struct Filter {
    Vec<float, d_conv> weight;
    float bias;
    T before[past];
    int write;  // the state row

    // Of channel r of the block.
    __device__ __forceinline__ void load(const Block& block, const StackStep::Layer& layer, int n,
                                         int r) {
      const int c = block.weights_.shares.channels.first + r;
      const StateRow row = state_row(block.step_, n);
      write = row.write;
      weight = load_vec<d_conv>(layer.conv_weight + c * d_conv);
      bias = layer.conv_bias != nullptr ? layer.conv_bias[c] : 0;
      const T* from = static_cast<const T*>(layer.conv) +
                      (std::int64_t{max(row.read, 0)} * block.step_.d_inner + c) * past;
#pragma unroll
      for (int k = 0; k < past; ++k) before[k] = row.read < 0 ? T{} : from[k];
    }
    // What the channel hands to the scan.
    __device__ __forceinline__ float convolve(T x) const {
      float sum = bias;
#pragma unroll
      for (int k = 0; k < past; ++k) sum = fmaf(weight.at[k], to_float(before[k]), sum);
      return silu<T>(fmaf(weight.at[past], to_float(x), sum));
    }
    // One step on.
    __device__ __forceinline__ void store(const Block& block, const StackStep::Layer& layer, int r,
                                          T x) const {
      const int c = block.weights_.shares.channels.first + r;
      if (write < 0) return;
      T* to = static_cast<T*>(layer.conv) + (std::int64_t{write} * block.step_.d_inner + c) * past;
#pragma unroll
      for (int k = 0; k + 1 < past; ++k) to[k] = before[k + 1];
      to[past - 1] = x;
    }
  };

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
    const int lanes = 1 << lane_bits(), n = lane_ / lanes;
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
      take<piece / 2>(
          residual_words_, p.model, step_.d_model, l, [&](int i, int row, const WordPair& pair) {
            float two[2] = {__uint_as_float(value_of(pair.x)), __uint_as_float(value_of(pair.y))};
            keep(i, row, two);
          });
    }
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
      squares += __shfl_xor_sync(~0u, squares, apart);
    }
    if (lane_ % lanes == 0 && n < batch()) at<float>(p.squares)[n * warps + warp_] = squares;
  }

  // norm, in_proj, convolution: u and the gate of this block's channels.
  __device__ __forceinline__ void project_in(const StackStep::Layer& layer, int l) {
    const Plan& p = plan_;
    const Share& channels = weights_.shares.channels;
    const int count = channels.count;
    // While the residual is on its way: what depends on nothing.
    Filter filter;
    const auto mine = static_cast<int>(threadIdx.x);  // the first of each()
    if (mine < count * batch()) filter.load(*this, layer, mine / count, mine % count);

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
        if (n * count + r != mine) filter.load(*this, layer, n, r);
        x = projected(n, r);
        u = to_float(from_float<T>(filter.convolve(x)));
      }
      const float next = __shfl_down_sync(~0u, u, 1);
      if (r >= count) return;
      if (r % 2 == 0) give(u_words_ + place / 2, pair_of(u, next), l + 1);
      at<float>(p.u)[n * p.channel_pitch + r] = u;
      filter.store(*this, layer, r, x);
    });
    // The gates, by other warps as long as there are some.
    for (int i = threads - 1 - mine; i < count * batch(); i += threads) {
      const int n = batch() == 1 ? 0 : i / count, r = i - n * count;
      at<float>(p.gate)[n * p.channel_pitch + r] = silu<T>(to_float(projected(n, count + r)));
    }
  }

  // u or y of all channels, for x_proj or out_proj.
  __device__ __forceinline__ void take_channels(const Word* words, int round) const {
    take<piece / 4>(words, plan_.inner, step_.d_inner, round,
                    [&](int i, int n, const WordPair& pair) {
                      const uint2 four = {value_of(pair.x), value_of(pair.y)};
                      *reinterpret_cast<uint2*>(inputs_of(n) + 4 * i) = four;
                    });
  }

  // What a lane of the scan has of its channel: lane p of it has four states and every fourth pair
  // of dt_proj's inputs. Read before u is there.
  static constexpr int dt_step = 2 * channel_lanes;
  struct Channel {
    std::uint32_t dt_weight[most_dt_rank / dt_step];
    float A[lane_states], D, dt_bias;
    Vec<float, lane_states> h;
    int write;  // the state row
  };
  __device__ __forceinline__ std::int64_t state_of(int row, int c, int p) const {
    return (std::int64_t{row} * step_.d_inner + c) * d_state + p * lane_states;
  }
  __device__ __forceinline__ void load_state(const StackStep::Layer& layer, int n, int c, int p,
                                             Channel& to) const {
    const StateRow row = state_row(step_, n);
    to.write = row.write;
    to.h = {};
    if (row.read >= 0) to.h = load_vec<lane_states>(layer.ssm + state_of(row.read, c, p));
  }
  __device__ __forceinline__ void load_channel(const StackStep::Layer& layer, int c, int p,
                                               Channel& to) const {
    const T* weight =
        static_cast<const T*>(layer.dt_proj) + std::int64_t{c} * step_.dt_rank + 2 * p;
#pragma unroll
    for (int i = 0; i < most_dt_rank / dt_step; ++i) {
      to.dt_weight[i] = dt_step * i < step_.dt_rank
                            ? *reinterpret_cast<const std::uint32_t*>(weight + dt_step * i)
                            : 0;
    }
    load_floats<lane_states>(layer.A_log + state_of(0, c, p), to.A);
    to.D = layer.D[c];
    to.dt_bias = layer.dt_bias[c];
    load_state(layer, 0, c, p, to);
  }

  // x_proj, and what the scan will need.
  __device__ __forceinline__ void select(const StackStep::Layer& layer, int l) {
    const int j = static_cast<int>(threadIdx.x) / channel_lanes;
    if (j < weights_.shares.channels.count) {
      load_channel(layer, weights_.shares.channels.first + j, lane_ % channel_lanes, channel_);
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
  __device__ __forceinline__ void scan(const StackStep::Layer& layer, int l) {
    const int count = weights_.shares.channels.count;
    const int j = static_cast<int>(threadIdx.x) / channel_lanes, p = lane_ % channel_lanes;
    if (warp_ * (32 / channel_lanes) >= count) return;
    const bool works = j < count;
    const int c = weights_.shares.channels.first + (works ? j : 0);
    const auto all_lanes_of = [](float part) {
#pragma unroll
      for (int apart = 1; apart < channel_lanes; apart *= 2) {
        part += __shfl_xor_sync(~0u, part, apart);
      }
      return part;
    };
    Channel& channel = channel_;
    for (int n = 0; n < batch(); ++n) {
      if (n > 0 && works) load_state(layer, n, c, p, channel);
      const float* selected = at<float>(plan_.selected) + n * plan_.selection;
      float dt = 0;
#pragma unroll
      for (int i = 0; i < most_dt_rank / dt_step; ++i) {
        if (dt_step * i >= step_.dt_rank) break;
        float weight[2], low[2];
        Packed<T, 2>{channel.dt_weight[i]}.unpack(weight);
        load_floats<2>(selected + 2 * p + dt_step * i, low);
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
      const float next = __shfl_down_sync(~0u, y, channel_lanes);
      if (works && p == 0 && j % 2 == 0) {
        give(y_words_ + plan_.inner.place(c, n, batch()) / 2, pair_of(y, next), l + 1);
      }
      if (works && channel.write >= 0) {
        store_vec(layer.ssm + state_of(channel.write, c, p), channel.h);
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
      const StateRow row = state_row(step_, n);
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

  const Operands& op_;
  const StackStep& step_;
  const Plan& plan_;
  char* memory_;
  int warp_, lane_;
  WeightStream<Slots> weights_;
  Word *u_words_, *y_words_, *selection_words_, *residual_words_;
  Channel channel_;
};

template <int Slots, bool Single>
__global__ void __launch_bounds__(threads, 1)
    stack_step_kernel(const __grid_constant__ Operands op) {
  extern __shared__ uint4 memory[];
  Block<Slots, Single>(op, reinterpret_cast<char*>(memory)).run();
}

constexpr int slot_counts[] = {32, 24, 16, 12};

// Slots of the rings that fit besides everything else; 0: not even the fewest.
int slots_of(const StackStep& step, Device device) {
  const int most = shared_memory(device, where), blocks = multiprocessors(device, where);
  for (const int slots : slot_counts) {
    if (Plan(step, slots * unit, blocks).bytes <= most) return slots;
  }
  return 0;
}

template <int Slots>
void launch(Operands& op, Stream& stream) {
  auto* kernel =
      op.step.rows == 1 ? stack_step_kernel<Slots, true> : stack_step_kernel<Slots, false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, op.plan.bytes),
        where);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  attributes[count].id = cudaLaunchAttributeCooperative;  // all blocks run, or none
  attributes[count++].val.cooperative = 1;
  if (StreamAccess::begins_early(stream)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(op.plan.blocks);
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<std::size_t>(op.plan.bytes);
  config.stream = handle(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, op), where);
}

}  // namespace

bool takes(const StackStep& s, const Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  int cooperates = 0, major = 0;
  check(cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device.index()), where);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index()), where);
  const bool sizes = s.d_model % piece == 0 && s.d_model <= most_model && s.d_inner % piece == 0 &&
                     s.dt_rank % 16 == 0 && s.dt_rank <= most_dt_rank;
  return cooperates != 0 && major >= 9 && sizes &&
         Share::most(s.d_inner, 2, multiprocessors(device, where)) <= most_channels &&
         slots_of(s, device) > 0;
}

void run(const StackStep& step, Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  const int slots = slots_of(step, device);
  const Plan plan(step, slots * unit, multiprocessors(device, where));
  // As many words as for the most rows, so that a stream needs no second place when they change.
  const std::int64_t most = std::int64_t{plan.words} / step.rows * StackStep::most_rows;
  const TensorView memory = StreamAccess::hand_over(
      stream, HandOver::turn_words + 2 * most * std::int64_t{sizeof(Word)} / 4);
  Operands op{step, plan, HandOver(memory), StreamAccess::constant_weights(stream),
              StreamAccess::flag(stream, BadValue::state_row)};
  switch (slots) {
    case 32:
      return launch<32>(op, stream);
    case 24:
      return launch<24>(op, stream);
    case 16:
      return launch<16>(op, stream);
    default:
      return launch<12>(op, stream);
  }
}

}  // namespace mamba::cuda
