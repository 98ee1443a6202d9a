// Many environments side by side. They write what is seen and what comes of an action straight
// into the trainer's buffers; on CUDA they run there.
#pragma once

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

#include "rl/env/environment.hpp"

namespace mamba_rl {

// One step of `batch` environments as the trainer sees it: views into its buffers, whose rows may
// lie any pitch apart.
struct StepViews {
  mamba::TensorView observations;  // [batch, 1, observation_size] f32
  mamba::TensorView begins;        // [batch, 1] i32: not 0 where an episode begins
  mamba::TensorView decisions;     // [batch, 1] i32: see Decision
  mamba::TensorView actions;       // [batch, 1] i32
  mamba::TensorView log_probs;     // [batch, 1] f32: of the actions
  mamba::TensorView rewards;       // [batch, 1] f32
  mamba::TensorView ends;          // [batch, 1] i32: not 0 where an episode ended
};

class Environments {
 public:
  // Environments `first` to first + count - 1 of all that there are: two sets that do not overlap
  // have nothing in common. Impossible settings are an ArgumentError.
  Environments(const EnvironmentConfig& config, std::int32_t count, std::int32_t first,
               mamba::Device device = mamba::Device::cpu());

  const EnvironmentConfig& config() const { return config_; }
  std::int32_t count() const { return static_cast<std::int32_t>(states_.dim(0)); }
  std::int32_t first() const { return first_; }

  // Fills observations, begins and decisions of the present step.
  void observe(const StepViews& step, mamba::Stream& stream) const;
  // Chooses actions by `logits` [batch, actions] f32 (see choose) and takes them: fills the rest.
  void act(mamba::ConstTensorView logits, bool greedy, const StepViews& step,
           mamba::Stream& stream);

  // From here on another delay; every environment begins another episode.
  void restart(std::int32_t delay, mamba::Stream& stream);

  // [count, 3] i32: EnvironmentState of each.
  const mamba::Tensor& states() const { return states_; }
  mamba::Tensor& states() { return states_; }

 private:
  EnvironmentConfig config_;
  std::int32_t first_;
  mamba::Tensor states_;
};

}  // namespace mamba_rl
