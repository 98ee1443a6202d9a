#include <mamba/stack.hpp>

#include "detail/mamba1_step.hpp"
#include "host/model/mamba1/mamba1_mixer.hpp"

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
  if (stream.device().is_cpu() || x.dtype() != Mamba1Step::dtype) return false;
  if (x.dim(0) > Mamba1Step::most_rows || stack.size() > Mamba1Step::most_layers) return false;
  if (reinterpret_cast<std::uintptr_t>(x.data()) % 4 != 0 || x.row_pitch() % 2 != 0) return false;
  const LayerConfig& c = stack.layer(0).config();
  if (c.use_bias || c.norm_dt_b_c || c.gated_norm || c.d_state != Mamba1Step::d_state ||
      c.d_conv != Mamba1Step::d_conv) {
    return false;
  }
  Mamba1Step step;
  step.layer_count = static_cast<int>(stack.size());
  step.rows = static_cast<int>(x.dim(0));
  step.d_model = static_cast<int>(c.d_model);
  step.d_inner = static_cast<int>(c.d_inner);
  step.dt_rank = static_cast<int>(c.dt_rank);
  if (!cuda::takes(step, stream)) return false;

  step.state_rows = static_cast<int>(state.batch());
  step.epsilon = norm_epsilon;
  step.x = x.data();
  step.x_pitch = x.row_pitch();
  step.sum = sum.data<float>();
  const auto ids = [](const ConstTensorView& view) {
    return view ? view.data<std::int32_t>() : nullptr;
  };
  step.read = ids(rows.read);
  step.write = ids(rows.write);
  step.reset = ids(reset);
  step.reset_pitch = reset ? reset.row_pitch() : 0;
  for (std::size_t i = 0; i < stack.size(); ++i) {
    const LayerWeights& w = stack.layer(i).weights();
    if (!kernel_reads(w)) return false;
    const auto at = [](const Tensor& tensor) { return tensor.view().data(); };
    const auto f32 = [](const Tensor& tensor) { return tensor ? tensor.data<float>() : nullptr; };
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
  cuda::run(step, stream);
  return true;
}

}  // namespace mamba
