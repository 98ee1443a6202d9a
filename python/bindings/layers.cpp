// One layer on whatever arrays Python has: its run from x to y, and that run backward. Nothing is
// kept here: the weights, the states and what backward needs are arrays of the caller's.
#include <mamba/check.hpp>
#include <mamba/detail/constant_weights.hpp>
#include <mamba/detail/mixer.hpp>
#include <mamba/detail/scan_chunk.hpp>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "call.hpp"

namespace mamba::python {

namespace {

// Another's memory for the length of a call.
Tensor borrowed(const ConstTensorView& view, const Shape& shape) {
  if (!view) return {};
  return Tensor::adopt(const_cast<void*>(view.data()), shape, view.dtype(), view.device(), {});
}

// What the weights of a layer are in Python: a tuple in the order of LayerWeights::each, each of
// its published shape, and of any floating-point dtype. Of gradients some may be None.
struct Parameter {
  detail::LayerWeight weight;  // as the layer takes it
  TensorView seen;             // as it is in Python; of weights only read
};

template <class See>
std::vector<Parameter> parameters(const char* where, const LayerConfig& config, DType dtype,
                                  Device device, const nb::tuple& arrays, See&& see) {
  std::vector<Parameter> list;
  list.reserve(detail::LayerWeightList::most);
  for (const detail::LayerWeight& one : detail::layer_weights(config, dtype)) {
    if (!one.wanted) continue;
    if (list.size() == arrays.size()) break;
    const TensorView seen = see(one.name, arrays[list.size()]);
    if (seen) {
      check::shape(where, one.name, seen, one.published);
      check::storage(where, one.name, seen);
      check::device(where, one.name, seen, device);
    }
    list.push_back({one, seen});
  }
  if (list.size() != arrays.size() || list.empty()) {
    throw ArgumentError(where, "weights", std::to_string(list.size()),
                        std::to_string(arrays.size()));
  }
  return list;
}

TensorView unchecked_writable(const ConstTensorView& view) {
  if (!view) return {};
  return {const_cast<void*>(view.data()), view.shape(), view.dtype(), view.device()};
}

std::vector<Parameter> weights_in(const char* where, Call& call, const LayerConfig& config,
                                  const ConstTensorView& x, const nb::tuple& arrays) {
  return parameters(where, config, x.dtype(), x.device(), arrays,
                    [&](const char* name, nb::handle array) {
                      const ConstTensorView view = call.dense(name, array);
                      check::present(where, name, view);
                      return unchecked_writable(view);
                    });
}

// In the dtypes that the layer takes: in place, or rounded into scratch.
LayerWeights weights_of(const std::vector<Parameter>& list, Scratch& scratch, Stream& stream) {
  LayerWeights weights;
  for (const Parameter& one : list) {
    ConstTensorView view = one.seen;
    if (view.dtype() != one.weight.dtype) {
      const TensorView converted = scratch.take(view.shape(), one.weight.dtype);
      copy(view, converted, stream);
      view = converted;
    }
    weights.*one.weight.tensor = borrowed(view, one.weight.shape);
  }
  return weights;
}

StateTensors state_of(const char* where, const LayerConfig& config, const ConstTensorView& x,
                      const ConstTensorView& conv, const ConstTensorView& ssm) {
  StateTensors state;
  const ConstTensorView views[] = {conv, ssm};
  const ConstTensorView* view = views;
  for (const StateTensor& one : state_tensors) {
    if (*view) {
      const Shape shape = one.shape(config, x.dim(0));
      check::is(where, one.name, *view, shape, one.f32 ? DType::f32 : x.dtype(), x.device());
      if (view->count() > 0) state.*one.tensor = borrowed(*view, shape);
    }
    ++view;
  }
  return state;
}

// What a run keeps for backward, in the order of the mixer: channels of x's dtype, then states.
struct Kept {
  std::vector<Shape> shapes;
  std::vector<DType> dtypes;
  static constexpr std::int64_t alignment = 256;

  Kept(const LayerConfig& c, const ConstTensorView& x, const Stream& stream) {
    const auto add = [&](std::int64_t channels) {
      shapes.push_back(x.shape().with(2, channels));
      dtypes.push_back(x.dtype());
      return ConstTensorView(nullptr, shapes.back(), x.dtype(), x.device());
    };
    std::int64_t steps = 0;
    if (c.mixer == MixerKind::mamba1) {
      add(2 * c.d_inner);
      SelectiveScan scan;
      scan.x = add(c.d_inner);
      scan.A_log = ConstTensorView(nullptr, {c.d_inner, c.d_state}, DType::f32, x.device());
      add(c.dt_rank + 2 * c.d_state);
      add(c.d_inner);
      steps = detail::scan_chunk_steps(scan, stream);
    } else {
      const std::int64_t width = c.groups * c.d_state;
      const ConstTensorView projected = add(c.d_inner + c.conv_channels() + c.heads());
      const ConstTensorView convolved = add(c.conv_channels());
      Ssd scan;
      scan.x = convolved.columns(0, c.d_inner);
      scan.dt = projected.columns(c.d_inner + c.conv_channels(), c.heads());
      scan.A_log = ConstTensorView(nullptr, {c.heads()}, DType::f32, x.device());
      scan.B = convolved.columns(c.d_inner, width);
      scan.C = convolved.columns(c.d_inner + width, width);
      scan.groups = c.groups;
      add(c.d_inner);
      steps = detail::scan_chunk_steps(scan, stream);
    }
    shapes.push_back({x.dim(0), (x.dim(1) + steps - 1) / steps, c.d_inner, c.d_state});
    dtypes.push_back(DType::f32);
  }

  std::int64_t bytes_of(std::size_t i) const {
    const std::int64_t bytes = shapes[i].count() * size_of(dtypes[i]);
    return (bytes + alignment - 1) / alignment * alignment;
  }
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < shapes.size(); ++i) sum += bytes_of(i);
    return sum;
  }
  // Parts of `memory`.
  std::vector<Tensor> tensors(const char* where, const TensorView& memory) const {
    check::is(where, "kept", memory, {bytes() / size_of(DType::f32)}, DType::f32, memory.device());
    std::vector<Tensor> list;
    auto* next = static_cast<char*>(memory.data());
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      list.push_back(Tensor::adopt(next, shapes[i], dtypes[i], memory.device(), {}));
      next += bytes_of(i);
    }
    return list;
  }
};

// A mixer that asked for something else would have made it and lost it.
void check_kept(const char* where, const std::vector<Tensor>& list, const TensorView& memory) {
  const auto* first = static_cast<const char*>(memory.data());
  for (const Tensor& one : list) {
    const auto* at = static_cast<const char*>(one.view().data());
    if (at >= first && at < first + memory.count() * size_of(DType::f32)) continue;
    throw ArgumentError(where, "kept", "memory for all that the layer keeps", "less");
  }
}

void check_x(const char* where, const LayerConfig& config, const ConstTensorView& x) {
  check::rank(where, "x", x, 3);
  check::shape(where, "x", x, x.shape().with(2, config.d_model));
  check::storage(where, "x", x);
}

LayerConfig layer_config(bool mamba2, std::int64_t d_model, std::int64_t d_state,
                         std::int64_t d_conv, std::int64_t d_inner, std::int64_t dt_rank, bool bias,
                         bool conv_bias, std::int64_t head_dim, std::int64_t groups, bool rmsnorm,
                         bool norm_before_gate, float epsilon, float dt_low, float dt_high) {
  LayerConfig config;
  config.mixer = mamba2 ? MixerKind::mamba2 : MixerKind::mamba1;
  config.d_model = d_model;
  config.d_state = d_state;
  config.d_conv = d_conv;
  config.d_inner = d_inner;
  config.dt_rank = dt_rank;
  config.use_bias = bias;
  config.use_conv_bias = conv_bias;
  if (mamba2) {
    config.head_dim = head_dim;
    config.groups = groups;
    config.rmsnorm = rmsnorm;
    config.norm_before_gate = norm_before_gate;
    config.gated_norm_epsilon = epsilon;
    config.dt_low = dt_low;
    config.dt_high = dt_high;
  }
  return config.resolved();
}

// The size of `kept` for a run of these x, in f32 elements.
std::int64_t layer_kept(const LayerConfig& config, Array x, CudaStream stream, int threads) {
  Call call("layer", stream, threads);
  const ConstTensorView view = call.in("x", x);
  check_x("layer", config, view);
  return Kept(config, view, call.stream()).bytes() / size_of(DType::f32);
}

void layer(const LayerConfig& config, Array x, Array conv_state, Array ssm_state, Array reset,
           const nb::tuple& weights, Array y, Array final_conv, Array final_ssm, Array kept,
           CudaStream cuda_stream, int threads) {
  const char* where = "layer";
  Call call(where, cuda_stream, threads);
  const ConstTensorView seen = call.in("x", x);
  check_x(where, config, seen);
  const std::vector<Parameter> list = weights_in(where, call, config, seen, weights);
  const StateTensors initial = state_of(where, config, seen, call.dense("conv_state", conv_state),
                                        call.dense("ssm_state", ssm_state));
  StateTensors final_state = state_of(where, config, seen, call.out("final_conv_state", final_conv),
                                      call.out("final_ssm_state", final_ssm));
  const ConstTensorView resets = call.dense("reset", reset);
  if (resets) {
    check::is(where, "reset", resets, {seen.dim(0), seen.dim(1)}, DType::i32, seen.device());
  }
  const TensorView out = call.out("y", y);
  check::is(where, "y", out, seen.shape(), seen.dtype(), seen.device());
  const TensorView memory = call.out("kept", kept);
  Stream& stream = call.stream();
  const nb::gil_scoped_release others_may_run;
  std::vector<Tensor> parts;
  if (memory) parts = Kept(config, seen, stream).tensors(where, memory);
  Scratch scratch(stream);
  const LayerWeights w = weights_of(list, scratch, stream);
  const detail::ConstantWeights constant(stream);
  detail::mixer_of(config).forward(
      {config, w, seen, initial, final_state.ssm ? &final_state : nullptr, resets}, out,
      memory ? &parts : nullptr, stream);
  if (memory) check_kept(where, parts, memory);
}

// dconv_state and dssm_state come in as the gradients of the final state and go out as those of the
// initial one; both or neither.
void layer_grad(const LayerConfig& config, Array x, Array conv_state, Array reset,
                const nb::tuple& weights, Array kept, Array dy, Array dconv_state, Array dssm_state,
                Array dx, const nb::tuple& gradients, CudaStream cuda_stream, int threads) {
  const char* where = "layer_grad";
  Call call(where, cuda_stream, threads);
  const ConstTensorView seen = call.in("x", x);
  check_x(where, config, seen);
  const std::vector<Parameter> list = weights_in(where, call, config, seen, weights);
  const std::vector<Parameter> wanted =
      parameters(where, config, seen.dtype(), seen.device(), gradients,
                 [&](const char* name, nb::handle array) { return call.out(name, array); });
  const StateTensors initial =
      state_of(where, config, seen, call.dense("conv_state", conv_state), {});
  MambaState dstate;
  static_cast<StateTensors&>(dstate) =
      state_of(where, config, seen, call.out("dconv_state", dconv_state),
               call.out("dssm_state", dssm_state));
  const ConstTensorView resets = call.dense("reset", reset);
  const ConstTensorView out = call.in("dy", dy);
  check::is(where, "dy", out, seen.shape(), seen.dtype(), seen.device());
  const TensorView in = call.out("dx", dx);
  if (in) check::is(where, "dx", in, seen.shape(), seen.dtype(), seen.device());
  const TensorView memory = call.out("kept", kept);
  check::present(where, "kept", memory);
  Stream& stream = call.stream();
  const nb::gil_scoped_release others_may_run;
  std::vector<Tensor> parts = Kept(config, seen, stream).tensors(where, memory);
  Scratch scratch(stream);
  const LayerWeights w = weights_of(list, scratch, stream);
  LayerWeights sums;  // the library's are f32
  std::vector<std::pair<TensorView, TensorView>> rounded;
  for (const Parameter& one : wanted) {
    if (!one.seen) continue;
    TensorView sum = one.seen;
    if (sum.dtype() != DType::f32) {
      sum = scratch.take(sum.shape(), DType::f32);
      rounded.emplace_back(sum, one.seen);
    }
    sums.*one.weight.tensor = borrowed(sum, one.weight.shape);
  }
  const detail::MixerForward forward{config, w, seen, initial, nullptr, resets};
  detail::mixer_of(config).backward({forward, false, out, dstate.ssm ? &dstate : nullptr, in, sums},
                                    parts, stream);
  for (const auto& [sum, gradient] : rounded) copy(sum, gradient, stream);
}

}  // namespace

void bind_layers(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<LayerConfig>(m, "LayerConfig", "The sizes and options of a layer; see layer_config.");
  m.def("layer_config", &layer_config, nb::kw_only(), "mamba2"_a, "d_model"_a, "d_state"_a,
        "d_conv"_a, "d_inner"_a, "dt_rank"_a = 0, "bias"_a = false, "conv_bias"_a = true,
        "head_dim"_a = 0, "groups"_a = 0, "rmsnorm"_a = true, "norm_before_gate"_a = false,
        "epsilon"_a = 1e-5f, "dt_low"_a = 0.0f,
        "dt_high"_a = std::numeric_limits<float>::infinity());
  m.def("layer_kept", &layer_kept, "config"_a, "x"_a, "stream"_a.none(), "threads"_a);
  m.def("layer", &layer, "config"_a, "x"_a, "conv_state"_a.none(), "ssm_state"_a.none(),
        "reset"_a.none(), "weights"_a, "y"_a, "final_conv_state"_a.none(),
        "final_ssm_state"_a.none(), "kept"_a.none(), "stream"_a.none(), "threads"_a);
  m.def("layer_grad", &layer_grad, "config"_a, "x"_a, "conv_state"_a.none(), "reset"_a.none(),
        "weights"_a, "kept"_a, "dy"_a, "dconv_state"_a.none(), "dssm_state"_a.none(), "dx"_a.none(),
        "gradients"_a, "stream"_a.none(), "threads"_a);
}

}  // namespace mamba::python
