// Bad calls of states.
#include "bad_calls.hpp"
#include "each.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST_EACH(BadCalls, States, Device device) {
  const LayerConfig config = small().layer;
  MambaState state(config, 2, DType::f32, device);
  const MambaState three(config, 3, DType::f32, device);
  const MambaState bf16_state(config, 2, DType::bf16, device);
  StackState stack(config, 2, 2, DType::f32, device);
  StackState uneven(config, 2, 2, DType::f32, device);
  uneven.layers[1] = MambaState(config, 1, DType::f32, device);
  StackState half(config, 2, 2, DType::f32, device);
  half.layers[1].ssm = Tensor();
  const StackState one_layer(config, 1, 2, DType::f32, device);
  MambaState absent;
  const auto list = [&](std::vector<std::int32_t> rows) {
    const auto count = static_cast<std::int64_t>(rows.size());
    return Tensor::from(rows, {count}).to(device);
  };
  const Tensor rows = list({0, 1}), one = list({0}), wrong = Tensor::zeros({2}, DType::f32, device);
  const Tensor mask = Tensor::from<std::int32_t>({1, 1}, {2}).to(device);
  // So that a write is seen.
  for (StackState* of : {&stack, &uneven, &half}) {
    for (MambaState& layer : of->layers) {
      for (Tensor* tensor : {&layer.conv, &layer.ssm}) {
        if (!*tensor) continue;
        const Tensor ones = Tensor::from(
            std::vector<float>(static_cast<std::size_t>(tensor->count()), 1), tensor->shape());
        *tensor = ones.to(device);
      }
    }
  }
  Stream& stream = default_stream(device);
  LayerSteps steps;
  steps.prepare(state, 2, 3);
  StackSteps stack_steps;
  stack_steps.layers.resize(2);
  for (LayerSteps& layer : stack_steps.layers) layer.prepare(state, 2, 3);
  const std::string d = device.name();
  LayerConfig bad = config;
  bad.d_model = 0;
  const std::vector<const StackState*> differing{&stack, &one_layer};
  expect_refused(
      {
          {"LayerConfig: d_model: expected 1 to 2147483647, got 0",
           [&] { MambaState(bad, 1, DType::f32, device); }},
          {"MambaState: dtype: expected f32, bf16 or f16, got i32",
           [&] { MambaState(config, 1, DType::i32, device); }},
          {"MambaState: batch: expected 0 to 2147483647, got -1",
           [&] { MambaState(config, -1, DType::f32, device); }},
          {"MambaState: batch: expected 0 to 2147483647, got 4611686018427387904",
           [&] { MambaState(config, huge, DType::f32, device); }},
          {"StackState: n_layer: expected 0 to 1048576, got -1",
           [&] { StackState(config, -1, 1, DType::f32, device); }},
          {"StackState: n_layer: expected 0 to 1048576, got 4611686018427387904",
           [&] { StackState(config, huge, 1, DType::f32, device); }},
          {"MambaState: dtype: expected f32, bf16 or f16, got i32",
           [&] { StackState(config, 1, 1, DType::i32, device); }},
          {"MambaState: batch: expected 0 to 2147483647, got -5",
           [&] { StackState(config, 1, -5, DType::f32, device); }},
          {"MambaState::copy_from: conv: expected [2, 16, 3], got [3, 16, 3]",
           [&] { state.copy_from(three); }},
          {"MambaState::copy_from: conv: expected f32, got bf16",
           [&] { state.copy_from(bf16_state); }},
          {"MambaState::copy_from: conv: expected a tensor, got none",
           [&] { state.copy_from(absent); }},
          {"MambaState::copy_from: conv: ...", [&] { absent.copy_from(state); }},
          {"MambaState::reset: conv: expected a tensor, got none", [&] { absent.reset(); }},
          {"MambaState::reset: mask: expected a tensor, got none",
           [&] { state.reset(ConstTensorView()); }},
          {"MambaState::reset: mask: expected [2], got [1]", [&] { state.reset(one); }},
          {"MambaState::reset: mask: expected i32, got f32", [&] { state.reset(wrong); }},
          {"MambaState::to: dtype: expected f32, bf16 or f16, got i32",
           [&] { state.to(device, DType::i32); }},
          {"MambaState::gather: rows: expected a tensor, got none",
           [&] { state.gather(ConstTensorView()); }},
          {"MambaState::gather: rows: expected 1 dimensions, got [2, 16, 3]",
           [&] { state.gather(state.conv); }},
          {"copy_rows: from_rows: expected i32, got f32", [&] { state.gather(wrong); }},
          {"MambaState::gather: conv: expected a tensor, got none", [&] { absent.gather(rows); }},
          {"MambaState::scatter: rows: expected [3], got [2]", [&] { state.scatter(three, rows); }},
          {"MambaState::scatter: conv: expected f32, got bf16",
           [&] { state.scatter(bf16_state, rows); }},
          {"MambaState::scatter: conv: expected a tensor, got none",
           [&] { state.scatter(absent, rows); }},
          {"MambaState::scatter: conv: expected a tensor, got none",
           [&] { absent.scatter(state, rows); }},
          {"MambaState::scatter: rows: expected a tensor, got none",
           [&] { state.scatter(bf16_state.to(device, DType::f32), ConstTensorView()); }},
          {"MambaState::repeat: k: expected 0 to 2147483648, got -1", [&] { state.repeat(-1); }},
          {"MambaState::repeat: k: expected 0 to 2147483648, got 4611686018427387904",
           [&] { state.repeat(huge); }},
          {"MambaState::repeat: conv: expected a tensor, got none", [&] { absent.repeat(2); }},
          {"MambaState::concat: parts: expected at least one state, got none",
           [] { MambaState::concat({}); }},
          {"MambaState::concat: parts: expected states, got a null pointer",
           [] { MambaState::concat({nullptr}); }},
          {"MambaState::concat: parts: expected states, got a null pointer",
           [&] {
             MambaState::concat({&state, nullptr}, stream);
           }},
          {"MambaState::concat: conv: expected f32, got bf16",
           [&] {
             MambaState::concat({&state, &bf16_state});
           }},
          {"MambaState::concat: conv: expected a tensor, got none",
           [&] {
             MambaState::concat({&state, &absent});
           }},
          {"MambaState::concat: conv: expected a tensor, got none",
           [&] { MambaState::concat({&absent}); }},
          {"StackState::concat: parts: expected at least one state, got none",
           [] { StackState::concat({}); }},
          {"StackState::concat: parts: expected states, got a null pointer",
           [] { StackState::concat({nullptr}); }},
          {"StackState::concat: parts: expected states, got a null pointer",
           [&] {
             StackState::concat({&stack, nullptr}, stream);
           }},
          {"StackState::concat: layers: expected 2 layers, got 1",
           [&] { StackState::concat(differing); }},
          {"StackState::copy_from: layers: expected 2 layers, got 1",
           [&] { stack.copy_from(one_layer); }},
          {"StackState::copy_from: conv: expected [2, 16, 3], got [1, 16, 3]",
           [&] { stack.copy_from(uneven); }},
          {"StackState::reset: ssm: expected a tensor, got none", [&] { half.reset(); }},
          {"StackState::reset: ssm: expected a tensor, got none", [&] { half.reset(mask); }},
          {"StackState::reset: ssm: expected [2, 16, 4], got [1, 16, 4]", [&] { uneven.reset(); }},
          {"StackState::reset: mask: expected [2], got [1]", [&] { stack.reset(one); }},
          {"StackState::scatter: layers: expected 2 layers, got 1",
           [&] { stack.scatter(one_layer, rows); }},
          {"StackState::scatter: ...", [&] { half.scatter(stack, rows); }},
          {"StackState::scatter: ...", [&] { stack.scatter(half, rows); }},
          {"StackState::scatter: ...", [&] { uneven.scatter(stack, rows); }},
          {"MambaState::to: dtype: expected f32, bf16 or f16, got i32",
           [&] { stack.to(device, DType::i32); }},
          {"MambaState::repeat: k: expected 0 to 2147483648, got -1", [&] { stack.repeat(-1); }},
          {"LayerSteps::restore: t: expected 0 to 2, got 3",
           [&] { steps.restore(3, state, stream); }},
          {"LayerSteps::restore: t: expected 0 to 2, got -1",
           [&] { steps.restore(-1, state, stream); }},
          {"LayerSteps::restore: steps.conv: expected a tensor, got none",
           [&] { LayerSteps().restore(0, state, stream); }},
          {"LayerSteps::restore: conv: expected a tensor, got none",
           [&] { steps.restore(0, absent, stream); }},
          {"StackSteps::restore: layers: expected 2 layers, got 0",
           [&] {
             StackState none;
             stack_steps.restore(0, none, stream);
           }},
          {"StackSteps::restore: conv: expected [2, 16, 3], got [1, 16, 3]",
           [&] { stack_steps.restore(0, uneven, stream); }},
          {"StackSteps::restore: ssm: expected a tensor, got none",
           [&] { stack_steps.restore(0, half, stream); }},
          {"LayerSteps::prepare: batch: expected 0 to 2147483647, got -1",
           [&] { steps.prepare(state, -1, 1); }},
          {"LayerSteps::prepare: time: expected 0 to 9223372036854775807, got -1",
           [&] { steps.prepare(state, 1, -1); }},
          {"LayerSteps::prepare: conv: expected a tensor, got none",
           [&] { steps.prepare(absent, 1, 1); }},
          {"to_wide_conv_state: conv: expected a tensor, got none",
           [] { to_wide_conv_state(Tensor()); }},
          {"from_wide_conv_state: width: expected 1 to 1048576, got 0",
           [&] {
             from_wide_conv_state(Tensor({1, 1, 0}, DType::f32, device));
           }},
      },
      [&] {
        return bytes(stack) + bytes(uneven) + bytes(half) + bytes(state.conv) + bytes(state.ssm);
      });
}

}  // namespace
}  // namespace mamba
