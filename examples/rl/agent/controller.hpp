// What remembers: a recurrent network between an agent's encoder and its heads.
#pragma once

#include <mamba/optimizer.hpp>
#include <mamba/state.hpp>
#include <mamba/stream.hpp>
#include <mamba/tape.hpp>
#include <mamba/tensor.hpp>

#include <memory>
#include <string>
#include <vector>

namespace mamba_rl {

struct ControllerConfig {
  std::string kind = "mamba";  // "mamba" (Mamba-1), "mamba2" or "gru"
  std::int64_t width = 64;     // of what comes in, of what goes out, and of a GRU's memory
  std::int64_t layers = 1;     // of mamba
  // Mamba as published: Mamba-1 without the norms before the recurrence and the gate, Mamba-2 with
  // its norm after the gate, and both with D = 1 and a bias in the convolution.
  bool published_block = false;
  // Steps that a fresh controller remembers, by unit: from few to about so many, evenly in the
  // logarithm. Mamba: dt_min is its inverse. GRU: the bias of z (Tallec & Ollivier 2018, with their
  // uniform distribution of times made that of Mamba's dt).
  float memory = 1000;
  std::uint64_t seed = 0;
};

// What backward needs of a forward run; of the controller that made it.
class ControllerTape {
 public:
  virtual ~ControllerTape() = default;
};

// The state is a StackState for every kind, so that all of its verbs serve: clone, gather, reset,
// checkpoints. A GRU keeps its h as `ssm` of one layer, [batch, width, 1].
class Controller {
 public:
  // "mamba", "mamba2" and "gru" are what there is; another kind is an ArgumentError.
  static std::unique_ptr<Controller> make(const ControllerConfig& config, mamba::Device device);
  virtual ~Controller() = default;

  // Nothing seen yet.
  virtual mamba::StackState make_state(std::int64_t batch) const = 0;
  virtual std::unique_ptr<ControllerTape> make_tape() const = 0;

  // x [batch, time, width] f32 -> y the same, from `state` on, which goes on. Any time: a step, a
  // chunk. `reset` [batch, time] i32, or absent: not 0 where the state becomes zero before the
  // step. `tape` may be nullptr. y is other memory than x.
  virtual void forward(mamba::ConstTensorView x, mamba::StackState& state,
                       mamba::ConstTensorView reset, mamba::TensorView y, ControllerTape* tape,
                       mamba::Stream& stream) const = 0;

  // dy [batch, time, width] of that run's y -> dx, and the gradients of the weights. `dstate`: in
  // that of the final state, out that of the initial one; or nullptr. dx is other memory than dy.
  virtual void backward(ControllerTape& tape, mamba::ConstTensorView dy, mamba::StackState* dstate,
                        mamba::TensorView dx, mamba::Stream& stream,
                        const mamba::BackwardOptions& options = {}) = 0;

  // Every weight with its gradient.
  virtual std::vector<mamba::Parameter> parameters() = 0;
};

}  // namespace mamba_rl
