// An SsdGrad as its kernels see it: raw pointers and pitches, passed by value, and how time is cut.
//
// Time is cut into chunks of 64 steps, anew from each of the states that the forward run kept. In a
// chunk, E[i] is the decay from its start to step i (included), L[i, j] that from step j to step
// i >= j, S the state before its first step and G the adjoint of the state after its last one:
//   Z[i, j]  = (dy[i] . x[j]) L[i, j] delta[j]
//   dC[i]    = sum over j of Z[i, j] B[j] + E[i] S^T dy[i]
//   dB[j]    = sum over i of Z[i, j] C[i] + delta[j] L[last, j] G^T x[j]
//   q[j]     = sum over i of L[i, j] (C[i] . B[j]) dy[i] + L[last, j] G B[j]
//   dx[j]    = delta[j] q[j] + D dy[j]
//   dlog_a[k]  = sum over j < k <= i of Z[i, j] (C[i] . B[j])
//              + sum over i >= k of E[i] C[i] . S^T dy[i]
//              + sum over j < k of delta[j] L[last, j] x[j] . G B[j] + E[last] <G, S>
//   ddelta[k]  = x[k] . q[k] + A dlog_a[k]
// Each sum of dlog_a[k] has only terms that depend on a[k]: nothing cancels that was never in it.
#pragma once

#include <cstdint>

#include "kernels/scan/scan_operands.cuh"
#include "kernels/ssd/ssd_operands.cuh"
#include "kernels/ssd_grad/ssd_grad.hpp"

namespace mamba::cuda {

constexpr int ssd_most_heads = 16;      // of a block
constexpr float ssd_reset_decay = 256;  // what a reset adds to -log a: exp(-128) is zero already

// Of one head in one chunk, 64 floats each. Behind the last step delta, weight and slope are zero,
// and the sums stay as they are.
struct SsdGradSteps {
  enum Array { deltas, ends, weights, starts, sums, rests, slopes, arrays };
  static constexpr int floats = arrays * ssd_chunk;
  const float* at;

  __device__ float get(Array array, int i) const { return at[array * ssd_chunk + i]; }
  __device__ float delta(int i) const { return get(deltas, i); }
  __device__ float to_end(int i) const { return get(ends, i); }        // L[last, i]
  __device__ float weight(int i) const { return get(weights, i); }     // delta[i] L[last, i]
  __device__ float from_start(int i) const { return get(starts, i); }  // E
  __device__ float sum(int i) const { return get(sums, i); }           // of -log a, 0 to i
  __device__ float sum_rest(int i) const { return get(rests, i); }     // what f32 left out
  __device__ float slope(int i) const { return get(slopes, i); }       // d delta / d dt
  // -log L[i, j]: a difference of sums that have twice the digits, so that it has all of its own.
  __device__ float way(int i, int j) const { return way(sum(i), sum_rest(i), sum(j), sum_rest(j)); }
  static __device__ float way(float sum_i, float rest_i, float sum_j, float rest_j) {
    return fmaxf((sum_i - sum_j) + (rest_i - rest_j), 0.0f);
  }
};

struct SsdGradChunk {
  std::int64_t start;  // in time
  int steps;
};

struct SsdGradOperands {
  std::int64_t batch, time, chunks;  // chunks of a batch row
  std::int64_t kept_steps, kept;     // between kept states, and how many there are
  int per_kept;                      // chunks
  int heads, head_dim, groups, d_state;
  int head_blocks;  // of a group; a block of the chunk kernel has the heads of one
  ScanTrack x, dt, B, C, dy, dx, ddt, dB, dC;
  const float *A_log, *D, *dt_bias;  // the last two and reset may be absent
  const std::int32_t* reset;
  std::int64_t reset_pitch;
  bool softplus;
  float dt_low, dt_high;
  const float *chunk_states, *dfinal;  // dfinal and dinitial may be absent
  float* dinitial;
  std::int64_t first_row, rows;  // of the batch that are computed now; scratch has only these
  float* steps;                  // [rows, chunks, heads] SsdGradSteps
  int* parted;                   // [rows, chunks]: whether a step is a reset
  int buffers = 2;               // SsdGradPlan::mma: for tiles, so that a head's arrive early
  void *states, *adjoints;       // see SsdPlain and SsdMma
  float* sums;                   // [batch, chunks, 3, heads]: of dA_log, dD, ddt_bias
  float* dBC;                    // [2, head blocks, rows, time, groups d_state]; with one: absent

  explicit SsdGradOperands(const SsdGrad& op);

  __device__ int group_heads() const { return heads / groups; }
  __device__ std::int64_t channels() const { return std::int64_t{heads} * head_dim; }
  __device__ std::int64_t state_size() const { return std::int64_t{head_dim} * d_state; }
  __device__ SsdGradChunk chunk(std::int64_t c) const {
    const std::int64_t k = c / per_kept;
    return chunk(k, static_cast<int>(c - k * per_kept));
  }
  // Chunk n of those between kept states k and k + 1.
  __device__ SsdGradChunk chunk(std::int64_t k, int n) const {
    const std::int64_t inner = std::int64_t{n} * ssd_chunk, start = k * kept_steps + inner;
    return {start,
            static_cast<int>(min(min(kept_steps - inner, time - start), std::int64_t{ssd_chunk}))};
  }
  // Rows in scratch are counted from first_row.
  __device__ std::int64_t at_head(std::int64_t row, std::int64_t c, int head) const {
    return (row * chunks + c) * heads + head;
  }
  __device__ SsdGradSteps steps_of(std::int64_t row, std::int64_t c, int head) const {
    return {steps + at_head(row, c, head) * SsdGradSteps::floats};
  }
  // The state that the forward run kept before chunk c, where it kept one there.
  __device__ const float* kept_state(std::int64_t row, std::int64_t c, int head) const {
    return chunk_states + (((first_row + row) * kept + c / per_kept) * heads + head) * state_size();
  }
};

// The heads of a block of the chunk kernel.
struct SsdHeads {
  int first, count;

  __device__ SsdHeads(const SsdGradOperands& op, int group, int block) {
    const int all = op.group_heads();
    const int begin = static_cast<int>(std::int64_t{all} * block / op.head_blocks);
    count = static_cast<int>(std::int64_t{all} * (block + 1) / op.head_blocks) - begin;
    first = group * all + begin;
  }
};

// Where a block of the chunk kernel leaves a step of dB or dC, from a column on: in place, or where
// the sums over blocks are taken from.
template <class T>
class PutStates {
 public:
  __device__ PutStates(const SsdGradOperands& op, bool is_dC, std::int64_t row, std::int64_t t,
                       int head_block, std::int64_t column) {
    if (op.head_blocks == 1) {
      to_ = (is_dC ? op.dC : op.dB).template out<T>(op.first_row + row, t) + column;
    } else {
      const std::int64_t part = (is_dC ? op.head_blocks : 0) + head_block;
      const std::int64_t step = (part * op.rows + row) * op.time + t;
      part_ = op.dBC + step * op.groups * op.d_state + column;
    }
  }
  __device__ void operator()(int column, float value) const {
    if (part_ == nullptr) {
      to_[column] = from_float<T>(value);
    } else {
      part_[column] = value;
    }
  }

 private:
  T* to_ = nullptr;
  float* part_ = nullptr;
};

// SsdGradPlan::mma: the buffers and heads that a block with so much memory has room for, and
// op.rows rows.
struct MmaRoom {
  int buffers, heads;
  explicit MmaRoom(int shared_memory);
};
void run_mma_rows(const SsdGradOperands& op, Stream& stream);

}  // namespace mamba::cuda
