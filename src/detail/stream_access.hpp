// The kernels' side of a Stream.
#pragma once

#include <memory>

#include <mamba/stream.hpp>

#include "detail/team.hpp"

namespace mamba {

// What a kernel can find wrong with values that only the device has seen. It sets the flag, keeps
// within bounds, and the stream's next synchronize() throws.
enum class BadValue { logits, token_id, state_row, sampled_row, copied_row, target, action };
constexpr int bad_value_kinds = 7;

struct StreamAccess {
  // On the CPU: the stream's threads.
  static detail::Team& team(Stream& stream);
  // On CUDA: an int that kernels may set to 1, in memory that the host sees; nullptr on the CPU.
  static int* flag(Stream& stream, BadValue kind);
  // Whether a kernel may read weights before its turn (see detail::ConstantWeights).
  static bool constant_weights(const Stream& stream);
  // Asked for each kernel of a chain: whether it may begin before what is queued has ended. The
  // first one under a detail::ConstantWeights may not, so that all others find what was queued
  // before it done.
  static bool begins_early(Stream& stream);
  // While one lives, work on the stream is recorded and not queued.
  class Recording {
   public:
    explicit Recording(Stream& stream);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    Stream& stream_;
  };
  // What a call without a stream does for an operand: synchronize() for its device, or for all
  // devices where it is pinned host memory, to which they copy.
  static void wait_for(const ConstTensorView& operand);
  // A place for the matrix product's algorithms, kept as long as the stream.
  static std::shared_ptr<void>& matmul(Stream& stream);
  // At least `count` i32 for what the blocks of one kernel hand each other, kept as long as the
  // stream. Zeros at first; then what the kernel before has left there.
  static TensorView hand_over(Stream& stream, std::int64_t count);
};

}  // namespace mamba
