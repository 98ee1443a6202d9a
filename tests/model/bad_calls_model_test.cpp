// Bad calls of configurations, layers, models, losses and the optimiser.
#include "bad_calls.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST(BadCalls, ModelsAndTraining) {
  const TemporaryFolder folder;
  for (const Device device : devices()) {
    SCOPED_TRACE(device.name());
    LanguageModel model = LanguageModel::random(small(), 1, DType::f32, device);
    LanguageModel gone = LanguageModel::random(small(), 1, DType::f32, device);
    const LanguageModel taken = std::move(gone);
    const Layer& layer = model.stack().layer(0);
    const Stack& stack = model.stack();
    StackState state = model.make_state(2);
    StackState no_layers;
    const Tensor ids = Tensor::zeros({2, 3}, DType::i32, device);
    const Tensor x = Tensor::zeros({2, 3, 8}, DType::f32, device);
    Tensor y = Tensor::zeros({2, 3, 8}, DType::f32, device);
    Tensor logits = Tensor::zeros({2, 16}, DType::f32, device);
    const Tensor wrong = Tensor::zeros({2, 3}, DType::f32, device);
    Tensor every = Tensor::zeros({2, 3, 16}, DType::f32, device);
    Tensor wide = Tensor::zeros({2, 20}, DType::f32, device);
    const TensorView strided = wide.view().columns(0, 16);
    Tensor whole_numbers = Tensor::zeros({2, 16}, DType::i32, device);
    const Tensor no_ids = Tensor::zeros({2, 0}, DType::i32, device);
    Tensor narrow = Tensor::zeros({2, 3}, DType::f32, device);
    Stream& stream = default_stream(device);
    LanguageModelWeights gradients = zero_gradients(model.config(), device);
    LanguageModelWeights fewer = zero_gradients(model.config(), device);
    fewer.stack.layers.pop_back();
    fewer.stack.norms.pop_back();
    LanguageModelWeights no_norm = zero_gradients(model.config(), device);
    no_norm.stack.norms.pop_back();
    LanguageModelWeights bad_head = zero_gradients(model.config(), device);
    bad_head.embedding = Tensor::zeros({3, 8}, DType::f32, device);
    AdamW optimizer(parameters(model, gradients));
    AdamW spent(parameters(model, gradients));
    const AdamW kept = std::move(spent);
    LossScale scale;
    TokenLoss loss;
    LayerTape layer_tape;
    StackTape stack_tape;
    LanguageModelTape tape;
    const auto with = [](auto change) {
      LanguageModelConfig config = small();
      change(config);
      return config;
    };
    const auto refuse = [&](auto change) { LanguageModel::random(with(change), 1); };
    LanguageModelOptions reset_wrong;
    reset_wrong.reset = wrong;
    LanguageModelOptions negative;
    negative.piece_tokens = -1;
    const Tensor dlogits = Tensor::zeros({2, 3, 16}, DType::f32, device);
    const auto parameter = [&](const char* name, const TensorView& weight,
                               const ConstTensorView& gradient) {
      return std::vector<Parameter>{{name, weight, gradient, true}};
    };
    const std::string long_name(5000, 'x');
    expect_refused(
        {
            {"LanguageModelConfig: n_layer: expected 1 to 65536, got 0",
             [&] { refuse([](LanguageModelConfig& c) { c.n_layer = 0; }); }},
            {"LanguageModelConfig: n_layer: expected 1 to 65536, got -1",
             [&] { refuse([](LanguageModelConfig& c) { c.n_layer = -1; }); }},
            {"LanguageModelConfig: d_model: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.d_model = huge; }); }},
            {"LanguageModelConfig: d_state: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.d_state = 257; }); }},
            {"LanguageModelConfig: d_conv: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.d_conv = 0; }); }},
            {"LanguageModelConfig: expand: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.expand = -1; }); }},
            {"LanguageModelConfig: dt_rank: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.dt_rank = -1; }); }},
            {"LanguageModelConfig: dt_min: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.layer.dt_min = nan; }); }},
            {"LanguageModelConfig: vocab_size: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.vocab_size = 0; }); }},
            {"LanguageModelConfig: vocab_rows: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.vocab_rows = 15; }); }},
            {"LanguageModelConfig: norm_epsilon: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.norm_epsilon = 0; }); }},
            {"LanguageModelConfig: eos_token_ids: ...",
             [&] { refuse([](LanguageModelConfig& c) { c.eos_token_ids = {-1}; }); }},
            {"random weights: dtype: expected f32, bf16 or f16, got i32",
             [] { LanguageModel::random(small(), 1, DType::i32); }},
            {"random weights: dtype: expected f32, bf16 or f16, got i32",
             [] { Layer::random(small().layer, 1, DType::i32); }},
            {"random weights: n_layer: expected 1 to 2147483647, got 0",
             [] { random_layer_weights(small().layer, DType::f32, 1, 0); }},
            {"Layer: in_proj.weight: expected a tensor, got none",
             [] { Layer(small().layer, LayerWeights()); }},
            {"Stack: norm_f.weight: expected a tensor, got none",
             [] { Stack(small(), StackWeights()); }},
            {"LanguageModel::load: ...", [&] { LanguageModel::load(folder.file("none")); }},
            {"LanguageModel::load: ...", [&] { LanguageModel::load(long_name); }},
            {"LanguageModel::load: dtype: expected f32, bf16 or f16, got i32",
             [&] { LanguageModel::load(folder.file("none"), DType::i32); }},
            {"LanguageModel::save: ...", [&] { model.save(long_name); }},
            {"Stack: layer: expected a number below 2, got 2", [&] { stack.layer(2); }},
            {"Stack: norm: expected a number below 3, got 3", [&] { stack.norm(3); }},
            {"Stack: layer: expected a number below 0, got 0", [&] { gone.stack().layer(0); }},
            {"Stack: norm: ...", [&] { gone.stack().device(); }},
            {"Stack: norm: ...", [&] { gone.fingerprint(); }},
            {"Stack: norm: ...",
             [&] { gone.each_weight([](const std::string&, const Tensor&) {}); }},
            {"...", [&] { gone.forward(ids, state, Logits::none(), stream); }},
            {"...", [&] { gone.forward(ids, no_layers, Logits::none(), stream); }},
            {"...", [&] { gone.stack().forward(x, no_layers, y, stream); }},
            {"MambaState: batch: expected 0 to 2147483647, got -1", [&] { model.make_state(-1); }},
            {"MambaState: batch: expected 0 to 2147483647, got -1", [&] { layer.make_state(-1); }},
            {"LanguageModel::forward: ids: expected a tensor, got none",
             [&] { model.forward({}, state, Logits::last(logits), stream); }},
            {"LanguageModel::forward: ids: expected 2 dimensions, got [2, 3, 8]",
             [&] { model.forward(x, state, Logits::last(logits), stream); }},
            {"LanguageModel::forward: ids: expected i32, got f32",
             [&] { model.forward(wrong, state, Logits::last(logits), stream); }},
            {"LanguageModel::forward: state: expected 2 layers, got 0",
             [&] { model.forward(ids, no_layers, Logits::last(logits), stream); }},
            {"LanguageModel::forward: Logits::last: expected [2, 16], got [2, 3]",
             [&] { model.forward(ids, state, Logits::last(narrow), stream); }},
            {"LanguageModel::forward: Logits::last: expected [2, 16], got [2, 3, 16]",
             [&] { model.forward(ids, state, Logits::last(every), stream); }},
            {"LanguageModel::forward: Logits::last: expected a tensor, got none",
             [&] { model.forward(ids, state, Logits::last({}), stream); }},
            {"LanguageModel::forward: Logits::last: expected f32, got i32",
             [&] { model.forward(ids, state, Logits::last(whole_numbers), stream); }},
            {"LanguageModel::forward: Logits::last: expected a time of at least 1, got 0",
             [&] { model.forward(no_ids, state, Logits::last(logits), stream); }},
            {"LanguageModel::forward: Logits::last: expected a dense tensor, got a strided view",
             [&] { model.forward(ids, state, Logits::last(strided), stream); }},
            {"LanguageModel::forward: Logits::all: expected [2, 3, 16], got [2, 3, 8]",
             [&] { model.forward(ids, state, Logits::all(y), stream); }},
            {"LanguageModel::forward: Logits::all: expected [2, 3, 16], got [2, 16]",
             [&] { model.forward(ids, state, Logits::all(logits), stream); }},
            {"LanguageModel::forward: Logits::all: expected a tensor, got none",
             [&] { model.forward(ids, state, Logits::all({}), stream); }},
            {"LanguageModel::forward: reset: expected i32, got f32",
             [&] { model.forward(ids, state, Logits::last(logits), stream, reset_wrong); }},
            {"LanguageModel::forward: piece_tokens: ...",
             [&] { model.forward(ids, state, Logits::last(logits), stream, negative); }},
            {"Layer::forward: x: expected a tensor, got none",
             [&] { layer.forward(ConstTensorView(), state.layers[0], y, stream); }},
            {"Layer::forward: x: expected a tensor, got none",
             [&] { layer.forward(ConstTensorView()); }},
            {"Layer::forward: x: expected 3 dimensions, got [2, 3]", [&] { layer.forward(wrong); }},
            {"Layer::forward: y: expected a tensor, got none",
             [&] { layer.forward(x, state.layers[0], {}, stream); }},
            {"Layer::forward: state.conv: expected a tensor, got none",
             [&] {
               MambaState none;
               layer.forward(x, none, y, stream);
             }},
            {"Stack::forward: x: expected a tensor, got none",
             [&] { stack.forward({}, state, y, stream); }},
            {"Stack::forward: y: expected [2, 3, 8], got [2, 16]",
             [&] { stack.forward(x, state, logits, stream); }},
            {"Layer::backward: tape: expected a forward run that no backward has used, got none",
             [&] {
               layer.backward(layer_tape, x, nullptr, {}, gradients.stack.layers[0], stream);
             }},
            {"Stack::backward: tape: expected a forward run that no backward has used, got none",
             [&] { stack.backward(stack_tape, x, nullptr, {}, gradients.stack, stream); }},
            {"LanguageModel::backward: tape: ...",
             [&] { model.backward(tape, dlogits, nullptr, gradients, stream); }},
            {"parameters: gradients: expected 2 layers and as many norms, got 1 and 1",
             [&] { parameters(model, fewer); }},
            {"parameters: gradients: expected 2 layers and as many norms, got 2 and 1",
             [&] { parameters(model, no_norm); }},
            {"parameters: gradients.embeddings.weight: expected [16, 8], got [3, 8]",
             [&] { parameters(model, bad_head); }},
            {"StackWeights: norms: expected 2 (one for each layer), got 1",
             [&] { tensors(no_norm, model.config()); }},
            {"StackWeights: norms: expected 2 (one for each layer), got 1",
             [&] { tensors(no_norm.stack, model.config()); }},
            {"AdamW: parameters: expected at least one, got none", [] { AdamW({}); }},
            {"AdamW: w: expected a tensor, got none", [&] { AdamW(parameter("w", {}, x)); }},
            {"AdamW: gradient of w: expected a tensor, got none",
             [&] { AdamW(parameter("w", y, {})); }},
            {"AdamW: gradient of w: expected [2, 3, 8], got [2, 3]",
             [&] { AdamW(parameter("w", y, wrong)); }},
            {"AdamW::step: loss_scale: expected a finite number above 0, got 0",
             [&] { optimizer.step(0.1f, stream, 0); }},
            {"AdamW::step: loss_scale: expected a finite number above 0, got nan",
             [&] { optimizer.step(0.1f, stream, nan); }},
            {"adamw_step: learning_rate: ...", [&] { optimizer.step(nan, stream); }},
            {"adamw_step: learning_rate: ...", [&] { optimizer.step(-1, stream); }},
            {"AdamW::step: optimizer: expected a tensor, got none",
             [&] { spent.step(0.1f, stream); }},
            {"AdamW::gradient_norm: optimizer: ...", [&] { spent.gradient_norm(stream); }},
            {"AdamW::gradient_norm: optimizer: ...",
             [&] { spent.update_loss_scale(scale, stream); }},
            {"AdamW::first_not_finite: optimizer: ...", [&] { spent.first_not_finite(stream); }},
            {"AdamW::set_steps: steps: ...", [&] { optimizer.set_steps(-1); }},
            {"AdamW::set_steps: steps: ...", [&] { optimizer.set_steps(huge); }},
            {"TokenLoss::mean: run: expected a tensor, got none", [&] { loss.mean(stream); }},
            {"TokenLoss::run: targets: expected a tensor, got none",
             [&] { loss.run(dlogits, {}, {1}, stream); }},
            {"TokenLoss::run: counted: ...", [&] { loss.run(dlogits, ids, {}, stream); }},
            {"cross_entropy: logits: ...", [&] { loss.run({}, ids, {1}, stream); }},
            {"cross_entropy: dlogits: ...",
             [&] {
               loss.run(dlogits, ids, {1, y}, stream);
             }},
            {"cross_entropy: targets: ...", [&] { loss.run(dlogits, wrong, {1}, stream); }},
            {"cross_entropy: scale: ...",
             [&] {
               loss.run(dlogits, ids, {1, {}, nan}, stream);
             }},
            {"save_training: positions: expected 0 to 2^40, got -1",
             [&] {
               TrainingProgress progress;
               progress.positions = {-1};
               save_training(folder.file("t"), optimizer, nullptr, progress);
             }},
            {"...", [&] { load_training(folder.file("none"), optimizer, nullptr); }},
        },
        [&] {
          return bytes(state) + bytes(y) + bytes(logits) + bytes(model.embedding()) +
                 bytes(gradients.embedding) + std::to_string(optimizer.steps()) +
                 (std::filesystem::is_empty(folder.path()) ? "" : "a file");
        });
  }
}

}  // namespace
}  // namespace mamba
