#include "detail/mamba2_step.hpp"
#include "detail/profiler_range.hpp"
#include "host/model/mamba2/mamba2_mixer.hpp"
#include "host/model/step_operands.hpp"

namespace mamba {

bool Mamba2Mixer::step_at_once(const Stack& stack, float norm_epsilon, const ConstTensorView& x,
                               StackState& state, const TensorView& sum, const RowMap& rows,
                               const ConstTensorView& reset, Stream& stream) const {
  Mamba2Step step;
  if (!step_sizes(stack, x, stream, step)) return false;
  const LayerConfig& c = stack.layer(0).config();
  if (c.groups != 1 || !c.rmsnorm) return false;
  step.dt_rank = 0;
  step.heads = static_cast<int>(c.heads());
  step.d_state = static_cast<int>(c.d_state);
  step.gate_first = !c.norm_before_gate;
  step.gated_epsilon = c.gated_norm_epsilon;
  step.dt_low = c.dt_low;
  step.dt_high = c.dt_high;
  if (!cuda::takes(step, stream)) return false;

  step_operands(norm_epsilon, x, state, sum, rows, reset, step);
  for (std::size_t i = 0; i < stack.size(); ++i) {
    const LayerWeights& w = stack.layer(i).weights();
    if (w.in_proj.dtype() != Mamba2Step::dtype || w.out_proj.dtype() != Mamba2Step::dtype) {
      return false;
    }
    step.layers[i] = {step_floats(stack.norm(i)),
                      step_matrix(w.in_proj),
                      step_floats(w.conv_weight),
                      step_floats(w.conv_bias),
                      step_floats(w.dt_bias),
                      step_floats(w.A_log),
                      step_floats(w.D),
                      step_floats(w.gated_norm_weight),
                      step_matrix(w.out_proj),
                      state.layers[i].conv.view().data(),
                      state.layers[i].ssm.data<float>()};
  }
  const detail::ProfilerRange range("mamba2 step of all layers");
  cuda::run(step, stream);
  return true;
}

}  // namespace mamba
