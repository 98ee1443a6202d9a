// What Ssd and its gradient share: their sizes, how they are cut into items, and where a chunk
// ends.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host/ops/sequence.hpp"
#include "host/ops/ssd/ssd.hpp"

namespace mamba::host {

// Floats from row to row of a matrix with a channel or state in each column, and of one with a step
// in each: odd numbers of cache lines, so that rows do not compete for the same ones, and room for
// a whole vector behind the last column.
constexpr std::int64_t wide = 272;
constexpr std::int64_t narrow = 80;

// The most heads in an item of the gradient, and as many items as there are at least where there
// are as many heads.
constexpr std::int64_t ssd_grad_heads = 8;

struct SsdSizes {
  std::int64_t batch, time, heads, head_dim, groups, d_state;

  template <class Op>
  explicit SsdSizes(const Op& op)
      : batch(op.x.dim(0)),
        time(op.x.dim(1)),
        heads(op.A_log.dim(0)),
        head_dim(op.x.dim(2) / heads),
        groups(op.groups),
        d_state(op.B.dim(2) / op.groups) {}

  std::int64_t group_heads() const { return heads / groups; }
  std::int64_t state() const { return head_dim * d_state; }  // elements of a head
  std::int64_t work() const { return batch * time * heads * state(); }
};

// Neighbouring heads of one group in one batch row, walked in time: what their group shares is
// loaded and multiplied once for all of them.
struct SsdItem {
  std::int64_t b, group, head, heads;
};

class SsdItems {
 public:
  // As many as `wanted` or more, if there are as many heads, of at most `largest` heads.
  SsdItems(const SsdSizes& sizes, std::int64_t wanted, std::int64_t largest) : sizes_(sizes) {
    const std::int64_t groups = std::max<std::int64_t>(1, sizes.batch * sizes.groups);
    const std::int64_t most = sizes.group_heads();
    blocks_ = std::clamp((wanted + groups - 1) / groups, (most + largest - 1) / largest, most);
  }

  std::int64_t count() const { return sizes_.batch * sizes_.groups * blocks_; }
  std::int64_t blocks() const { return blocks_; }  // of a group
  std::int64_t most_heads() const { return (sizes_.group_heads() + blocks_ - 1) / blocks_; }
  SsdItem at(std::int64_t item) const {
    const std::int64_t block = item % blocks_, group = item / blocks_ % sizes_.groups;
    const std::int64_t most = sizes_.group_heads();
    const std::int64_t first = most * block / blocks_, last = most * (block + 1) / blocks_;
    return {item / blocks_ / sizes_.groups, group, group * most + first, last - first};
  }

 private:
  SsdSizes sizes_;
  std::int64_t blocks_;
};

// The end of the chunk that step t is in: chunks are counted from the call's first step, and anew
// from each of the states that are kept every `kept_steps` for a gradient (0: none).
inline std::int64_t ssd_chunk_end(std::int64_t t, std::int64_t time, std::int64_t kept_steps) {
  const std::int64_t first = kept_steps > 0 ? t / kept_steps * kept_steps : 0;
  std::int64_t end = first + ((t - first) / ssd_chunk + 1) * ssd_chunk;
  if (kept_steps > 0) end = std::min(end, first + kept_steps);
  return std::min(end, time);
}

}  // namespace mamba::host
