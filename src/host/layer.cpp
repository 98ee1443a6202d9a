#include <mamba/layer.hpp>

namespace mamba {

namespace {

// The tensors that an option switches off must not be there: they would be silently unused.
void check_absent(const char* name, const Tensor& tensor, bool wanted) {
  if (!wanted && tensor) {
    throw ArgumentError("Layer", name, "none (the config has it off)", tensor.shape().to_string());
  }
}

}  // namespace

Layer::Layer(const LayerConfig& config, LayerWeights weights)
    : config_(config.resolved()), weights_(std::move(weights)) {
  check::storage("Layer", "in_proj.weight", weights_.in_proj);
  check_absent("in_proj.bias", weights_.in_proj_bias, config_.use_bias);
  check_absent("out_proj.bias", weights_.out_proj_bias, config_.use_bias);
  check_absent("conv1d.bias", weights_.conv_bias, config_.use_conv_bias);
  LayerWeights::each(weights_, config_, dtype(),
                     [&](const char* name, const Tensor& tensor, const Shape& shape, DType type) {
                       check::is("Layer", name, tensor, shape, type, device());
                     });
}

Layer Layer::random(const LayerConfig& config, std::uint64_t seed, DType dtype, Device device) {
  LayerWeights weights = random_layer_weights(config, dtype, seed);
  if (device.is_cuda()) {
    LayerWeights::each(
        weights, config.resolved(), dtype,
        [&](const char*, Tensor& tensor, const Shape&, DType) { tensor = tensor.to(device); });
  }
  return Layer(config, std::move(weights));
}

void Layer::check_state(const char* where, const MambaState& state, std::int64_t rows) const {
  const LayerConfig& c = config_;
  check::is(where, "state.conv", state.conv, {rows, c.d_inner, c.d_conv - 1}, dtype(), device());
  check::is(where, "state.ssm", state.ssm, {rows, c.d_inner, c.d_state}, DType::f32, device());
}

void Layer::check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                       const Stream& stream, const ForwardOptions& options) const {
  constexpr const char* where = "Layer::forward";
  check::rank(where, "x", x, 3);
  check::is(where, "x", x, x.shape().with(2, config_.d_model), dtype(), device());
  check::is(where, "y", y, x.shape(), dtype(), device());
  if (stream.device() != device()) {
    throw ArgumentError(where, "stream", device().name(), stream.device().name());
  }
  check_state(where, state, options.rows.read ? state.batch() : x.dim(0));
  if (options.reset) {
    check::is(where, "reset", options.reset, {x.dim(0), x.dim(1)}, DType::i32, device());
  }
}

Tensor Layer::forward(ConstTensorView x, MambaState& state) const {
  check::present("Layer::forward", "x", x);
  Tensor y(x.shape(), dtype(), device());
  Stream& stream = default_stream(device());
  forward(x, state, y, stream);
  stream.synchronize();
  return y;
}

Tensor Layer::forward(ConstTensorView x) const {
  check::rank("Layer::forward", "x", x, 3);
  MambaState state = make_state(x.dim(0));
  return forward(x, state);
}

}  // namespace mamba
