#include "detail/mamba1_step.hpp"
#include "detail/profiler_range.hpp"
#include "host/model/mamba1/mamba1_mixer.hpp"
#include "host/model/step_operands.hpp"

namespace mamba {

namespace {

bool kernel_reads(const LayerWeights& weights) {
  for (const Tensor* matrix :
       {&weights.in_proj, &weights.x_proj, &weights.dt_proj, &weights.out_proj}) {
    if (matrix->dtype() != Mamba1Step::dtype) return false;
  }
  return true;
}

}  // namespace

bool Mamba1Mixer::step_at_once(const Stack& stack, float norm_epsilon, const ConstTensorView& x,
                               StackState& state, const TensorView& sum, const RowMap& rows,
                               const ConstTensorView& reset, Stream& stream) const {
  Mamba1Step step;
  if (!step_sizes(stack, x, stream, step)) return false;
  const LayerConfig& c = stack.layer(0).config();
  if (c.norm_dt_b_c || c.gated_norm || c.d_state != Mamba1Step::d_state) return false;
  step.dt_rank = static_cast<int>(c.dt_rank);
  if (!cuda::takes(step, stream)) return false;

  step_operands(norm_epsilon, x, state, sum, rows, reset, step);
  for (std::size_t i = 0; i < stack.size(); ++i) {
    const LayerWeights& w = stack.layer(i).weights();
    if (!kernel_reads(w)) return false;
    const auto at = step_matrix;
    const auto f32 = step_floats;
    step.layers[i] = {f32(stack.norm(i)),
                      at(w.in_proj),
                      f32(w.conv_weight),
                      f32(w.conv_bias),
                      at(w.x_proj),
                      at(w.dt_proj),
                      f32(w.dt_bias),
                      f32(w.A_log),
                      f32(w.D),
                      at(w.out_proj),
                      state.layers[i].conv.view().data(),
                      state.layers[i].ssm.data<float>()};
  }
  const detail::ProfilerRange range("mamba1 step of all layers");
  cuda::run(step, stream);
  return true;
}

}  // namespace mamba
