// The verbs of a state: each does what it says, touches nothing else, and refuses by name.
#include <mamba/state.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::Random;

LayerConfig small_config() {
  LayerConfig config;
  config.d_model = 6;
  config.d_state = 5;
  config.d_conv = 4;
  return config;
}

MambaState random_state(Device device, DType dtype, std::int64_t batch, std::uint64_t seed) {
  Random random(seed);
  MambaState state(small_config(), batch, dtype, device);
  state.conv = random.normal_tensor(state.conv.shape(), dtype).to(device);
  state.ssm = random.normal_tensor(state.ssm.shape()).to(device);
  return state;
}

Tensor int_list(const std::vector<std::int32_t>& values, Device device) {
  return Tensor::from(values, {static_cast<std::int64_t>(values.size())}).to(device);
}

void expect_same(const MambaState& a, const MambaState& b, const std::string& what) {
  EXPECT_EQ(a.conv.shape(), b.conv.shape()) << what;
  EXPECT_EQ(bits(a.conv), bits(b.conv)) << what;
  EXPECT_EQ(bits(a.ssm), bits(b.ssm)) << what;
}

void expect_row(const MambaState& a, std::int64_t row_a, const MambaState& b, std::int64_t row_b,
                const std::string& what) {
  EXPECT_EQ(bits(a.conv.view().rows(row_a, 1)), bits(b.conv.view().rows(row_b, 1))) << what;
  EXPECT_EQ(bits(a.ssm.view().rows(row_a, 1)), bits(b.ssm.view().rows(row_b, 1))) << what;
}

TEST_EACH(StateTest, IsZeroWhenMade, Device device, DType dtype) {
  const MambaState state(small_config(), 3, dtype, device);
  EXPECT_EQ(state.conv.shape(), (Shape{3, 12, 3}));
  EXPECT_EQ(state.ssm.shape(), (Shape{3, 12, 5}));
  EXPECT_EQ(state.conv.dtype(), dtype);
  EXPECT_EQ(state.ssm.dtype(), DType::f32);
  for (unsigned char byte : bits(state.conv)) ASSERT_EQ(byte, 0);
  for (unsigned char byte : bits(state.ssm)) ASSERT_EQ(byte, 0);
  EXPECT_EQ(state.batch(), 3);
  EXPECT_EQ(state.bytes(), 3 * 12 * (3 * size_of(dtype) + 5 * 4));
}

TEST(StateTest, EachNamesEveryTensorInOrder) {
  MambaState state(small_config(), 2, DType::bf16);
  std::vector<std::string> names;
  std::int64_t bytes = 0;
  state.each([&](const std::string& name, Tensor& tensor) {
    names.push_back(name);
    tensor = Tensor::zeros({1, 2, 3}, tensor.dtype());
  });
  EXPECT_EQ(names, (std::vector<std::string>{"conv", "ssm"}));
  EXPECT_EQ(state.conv.shape(), (Shape{1, 2, 3}));
  EXPECT_EQ(state.ssm.shape(), (Shape{1, 2, 3}));
  std::as_const(state).each([&](const char*, const Tensor& tensor) { bytes += tensor.bytes(); });
  EXPECT_EQ(bytes, 6 * 2 + 6 * 4);
  EXPECT_EQ(state.bytes(), bytes);
}

TEST_EACH(StateTest, CloneIsIndependent, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 2, 1);
  const MambaState original = random_state(device, dtype, 2, 1);
  MambaState snapshot = state.clone();
  expect_same(snapshot, original, "the clone equals");
  state.reset();
  expect_same(snapshot, original, "the clone is not touched by its source");
  snapshot.reset();
  const MambaState again = original.clone();
  expect_same(again, original, "cloning changes nothing");
}

TEST_EACH(StateTest, CopyFromPutsASnapshotBack, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 2, 1);
  const MambaState snapshot = random_state(device, dtype, 2, 2);
  const void* memory = state.ssm.view().data();
  state.copy_from(snapshot);
  expect_same(state, snapshot, "copied");
  EXPECT_EQ(memory, state.ssm.view().data()) << "copy_from allocates nothing";
}

TEST(StateTest, CopyFromRefusesWrongShapesNamingBoth) {
  MambaState state = random_state(Device::cpu(), DType::f32, 2, 1);
  const MambaState before = state.clone();
  const MambaState wrong = random_state(Device::cpu(), DType::f32, 3, 1);
  expect_error<ArgumentError>("MambaState::copy_from: conv: expected [2, 12, 3], got [3, 12, 3]",
                              [&] { state.copy_from(wrong); });
  const MambaState wrong_dtype = random_state(Device::cpu(), DType::bf16, 2, 1);
  expect_error<ArgumentError>("MambaState::copy_from: conv: expected f32, got bf16",
                              [&] { state.copy_from(wrong_dtype); });
  MambaState wrong_ssm = state.clone();
  wrong_ssm.conv.data<float>()[0] += 1;
  wrong_ssm.ssm = Tensor::zeros({2, 12, 4}, DType::f32);
  expect_error<ArgumentError>("MambaState::copy_from: ssm: expected [2, 12, 5], got [2, 12, 4]",
                              [&] { state.copy_from(wrong_ssm); });
  expect_same(state, before, "a refused state is as it was");
}

TEST_EACH(StateTest, ResetOfAMaskTouchesOnlyItsRowsAndOverwritesNaN, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 3, 1);
  MambaState poisoned = state.to(Device::cpu(), dtype);
  for (std::int64_t i = 0; i < 12 * 5; ++i) poisoned.ssm.data<float>()[12 * 5 + i] = NAN;
  state = poisoned.to(device, dtype);
  const MambaState before = state.clone();
  state.reset(int_list({0, 1, 0}, device));
  expect_row(state, 0, before, 0, "row 0 stays");
  expect_row(state, 1, MambaState(small_config(), 1, dtype, device), 0, "row 1 is zero");
  expect_row(state, 2, before, 2, "row 2 stays");
}

TEST(StateTest, ResetRefusesAMaskOfAnotherLength) {
  MambaState state = random_state(Device::cpu(), DType::f32, 3, 1);
  expect_error<ArgumentError>("MambaState::reset: mask: expected [3], got [2]", [&] {
    state.reset(int_list({1, 1}, Device::cpu()));
  });
}

TEST_EACH(StateTest, GatherTakesRowsInAnyOrderAndOften, Device device, DType dtype) {
  const MambaState state = random_state(device, dtype, 4, 1);
  const std::vector<std::int32_t> rows{3, 0, 3, 1, 2};
  const MambaState taken = state.gather(int_list(rows, device));
  ASSERT_EQ(taken.batch(), 5);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    expect_row(taken, static_cast<std::int64_t>(i), state, rows[i], "row " + std::to_string(i));
  }
  EXPECT_EQ(state.gather(int_list({}, device)).batch(), 0);
}

TEST(StateTest, GatherRefusesRowsThatAreNotThere) {
  const MambaState state = random_state(Device::cpu(), DType::f32, 4, 1);
  expect_error<ArgumentError>("copy_rows: from_rows: expected rows 0 to 3, got 4", [&] {
    state.gather(int_list({0, 4}, Device::cpu()));
  });
  expect_error<ArgumentError>("copy_rows: from_rows: expected rows 0 to 3, got -1",
                              [&] { state.gather(int_list({-1}, Device::cpu())); });
}

TEST_EACH(StateTest, RowsAreNamedByAListAsByATensor, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 4, 1);
  const MambaState before = state.clone();
  const MambaState taken = state.gather({3, 0, 3});
  ASSERT_EQ(taken.batch(), 3);
  expect_row(taken, 0, before, 3, "row 0");
  expect_row(taken, 1, before, 0, "row 1");
  expect_row(taken, 2, before, 3, "row 2");
  EXPECT_EQ(state.gather(std::vector<std::int32_t>()).batch(), 0);

  Stream stream(device);
  const std::vector<std::int32_t> rows{2, 0, 1};
  const MambaState turned = taken.gather(rows, stream);
  state.scatter(turned, {1, 3, 0}, stream);
  stream.synchronize();
  expect_row(state, 0, before, 0, "row 0 is source row 2");
  expect_row(state, 1, before, 3, "row 1 is source row 0");
  expect_row(state, 2, before, 2, "row 2 stays");
  expect_row(state, 3, before, 3, "row 3 is source row 1");

  state.copy_from(before);
  state.scatter(state.gather({0, 1}), {2, 3});
  for (std::int64_t i = 0; i < 4; ++i) expect_row(state, i, before, i % 2, "halves are equal");

  StackState stack;
  stack.layers.push_back(before.clone());
  stack.layers.push_back(state.clone());
  StackState chosen = stack.gather({1});
  expect_row(chosen.layers[1], 0, state, 1, "a row of every layer");
  stack.scatter(chosen, {2});
  expect_row(stack.layers[0], 2, before, 1, "into every layer");
}

// What a list says can be read before any work on every device.
TEST_EACH(StateTest, AListOfRowsThatAreNotThereIsRefusedByName, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 4, 1);
  StackState stack;
  for (int i = 0; i < 2; ++i) stack.layers.push_back(state.clone());
  const MambaState before = state.clone();
  const MambaState source = random_state(device, dtype, 2, 2);
  StackState sources;
  for (int i = 0; i < 2; ++i) sources.layers.push_back(source.clone());
  const auto refused = [](const char* text, const auto& call) {
    expect_error<ArgumentError>(text, call);
  };
  const char* taken = "copy_rows: from_rows: expected rows 0 to 3, got 4";
  refused(taken, [&] { state.gather({0, 4}); });
  refused(taken, [&] { stack.gather({0, 4}); });
  refused("copy_rows: from_rows: expected rows 0 to 3, got -1", [&] { state.gather({-1}); });
  const char* twice = "copy_rows: to_rows: expected every row at most once, got 3 twice";
  refused(twice, [&] { state.scatter(source, {3, 3}); });
  refused(twice, [&] { stack.scatter(sources, {3, 3}); });
  const char* put = "copy_rows: to_rows: expected rows 0 to 3, got 4";
  refused(put, [&] { state.scatter(source, {0, 4}); });
  refused(put, [&] { stack.scatter(sources, {0, 4}); });
  refused("MambaState::scatter: rows: expected [2], got [1]", [&] { state.scatter(source, {0}); });
  refused("StackState::scatter: rows: expected [2], got [3]", [&] {
    stack.scatter(sources, {0, 1, 2});
  });
  refused("MambaState::gather: conv: expected a tensor, got none",
          [] { MambaState().gather({0}); });
  refused("MambaState::scatter: conv: expected a tensor, got none",
          [&] { state.scatter(MambaState(), {0}); });
  refused("MambaState::scatter: conv: expected a tensor, got none", [&] {
    MambaState().scatter(source, {0, 1});
  });
  expect_same(state, before, "a refused scatter changes nothing");
  for (const MambaState& layer : stack.layers) expect_same(layer, before, "nor in a stack");
}

TEST(StateTest, ScatterTakesAnotherState) {
  LayerConfig small;
  small.d_model = 6;
  MambaState state(small, 2, DType::f32);
  testing::expect_error<ArgumentError>(
      "MambaState::scatter: source: expected another state, got this one", [&] {
        state.scatter(state, {1, 0});
      });
}

TEST_EACH(StateTest, ScatterPutsRowsAndLeavesTheOthers, Device device, DType dtype) {
  MambaState state = random_state(device, dtype, 4, 1);
  const MambaState before = state.clone();
  const MambaState source = random_state(device, dtype, 2, 2);
  state.scatter(source, int_list({3, 1}, device));
  expect_row(state, 0, before, 0, "row 0 stays");
  expect_row(state, 1, source, 1, "row 1 is source row 1");
  expect_row(state, 2, before, 2, "row 2 stays");
  expect_row(state, 3, source, 0, "row 3 is source row 0");
}

TEST(StateTest, ScatterRefusesWrongRowsAndChangesNothing) {
  MambaState state = random_state(Device::cpu(), DType::f32, 4, 1);
  const MambaState before = state.clone();
  const MambaState source = random_state(Device::cpu(), DType::f32, 2, 2);
  expect_error<ArgumentError>("copy_rows: to_rows: expected every row at most once, got 3 twice",
                              [&] {
                                state.scatter(source, int_list({3, 3}, Device::cpu()));
                              });
  expect_error<ArgumentError>("copy_rows: to_rows: expected rows 0 to 3, got 4", [&] {
    state.scatter(source, int_list({0, 4}, Device::cpu()));
  });
  expect_error<ArgumentError>("MambaState::scatter: rows: expected [2], got [1]",
                              [&] { state.scatter(source, int_list({0}, Device::cpu())); });
  expect_same(state, before, "a refused scatter changes nothing");
}

TEST_EACH(StateTest, RepeatBranchesEachRow, Device device, DType dtype) {
  const MambaState state = random_state(device, dtype, 2, 1);
  const MambaState branched = state.repeat(3);
  ASSERT_EQ(branched.batch(), 6);
  for (std::int64_t i = 0; i < 6; ++i) expect_row(branched, i, state, i / 3, "branch");
  EXPECT_EQ(state.repeat(0).batch(), 0);
  EXPECT_EQ(MambaState(small_config(), 0, dtype, device).repeat(3).batch(), 0);
}

TEST_EACH(StateTest, ConcatJoins, Device device, DType dtype) {
  const MambaState a = random_state(device, dtype, 2, 1);
  const MambaState b = random_state(device, dtype, 1, 2);
  const MambaState joined = MambaState::concat({&a, &b, &a});
  ASSERT_EQ(joined.batch(), 5);
  expect_row(joined, 1, a, 1, "first part");
  expect_row(joined, 2, b, 0, "second part");
  expect_row(joined, 4, a, 1, "third part");
}

TEST(StateTest, ConcatRefusesOtherShapes) {
  const MambaState a = random_state(Device::cpu(), DType::f32, 2, 1);
  const MambaState b = random_state(Device::cpu(), DType::bf16, 2, 1);
  expect_error<ArgumentError>("MambaState::concat: conv: expected f32, got bf16", [&] {
    MambaState::concat({&a, &b});
  });
  expect_error<ArgumentError>("MambaState::concat: parts: expected at least one state, got none",
                              [&] { MambaState::concat({}); });
}

TEST_EACH(StateTest, ToConvertsTheConvStateOnly, Device device, DType dtype) {
  const MambaState state = random_state(device, dtype, 2, 1);
  const MambaState moved = state.to(Device::cpu(), DType::f32);
  EXPECT_EQ(moved.conv.dtype(), DType::f32);
  EXPECT_EQ(testing::values(moved.conv), testing::values(state.conv)) << "widening is exact";
  EXPECT_EQ(bits(moved.ssm), bits(state.ssm));
  expect_same(moved.to(device, dtype), state, "there and back");
}

TEST_EACH(StateTest, ToAnotherDeviceAloneKeepsTheDtype, Device device, DType dtype) {
  const MambaState state = random_state(device, dtype, 2, 1);
  EXPECT_EQ(state.dtype(), dtype);
  const MambaState host = state.to(Device::cpu());
  EXPECT_EQ(host.device(), Device::cpu());
  EXPECT_EQ(host.dtype(), dtype);
  expect_same(host, state, "there");
  Stream stream(device);
  const MambaState back = host.to(device, stream);
  stream.synchronize();
  EXPECT_EQ(back.device(), device);
  expect_same(back, state, "and back");

  StackState stack;
  EXPECT_EQ(stack.dtype(), DType::f32) << "of no layers";
  stack.layers.push_back(state.clone());
  EXPECT_EQ(stack.dtype(), dtype);
  expect_same(stack.to(Device::cpu()).layers[0], state, "a stack");
}

TEST_EACH(StateTest, WideConvLayoutRoundTrips, Device device, DType dtype) {
  const MambaState state = random_state(device, dtype, 2, 1);
  const Tensor wide = to_wide_conv_state(state.conv);
  ASSERT_EQ(wide.shape(), (Shape{2, 12, 4}));
  EXPECT_EQ(bits(wide.view().columns(1, 3)), bits(state.conv)) << "newest last";
  EXPECT_EQ(bits(from_wide_conv_state(wide)), bits(state.conv));
}

TEST(StateTest, StackVerbsReachEveryLayerOrNone) {
  StackState stack(small_config(), 3, 2, DType::f32);
  for (std::size_t i = 0; i < 3; ++i) {
    stack.layers[i] = random_state(Device::cpu(), DType::f32, 2, 10 + i);
  }
  const StackState before = stack.clone();
  const auto expect_stack = [&](const StackState& other, const std::string& what) {
    ASSERT_EQ(stack.layers.size(), other.layers.size());
    for (std::size_t i = 0; i < stack.layers.size(); ++i) {
      expect_same(stack.layers[i], other.layers[i], what);
    }
  };
  stack.reset(int_list({0, 1}, Device::cpu()));
  for (std::size_t i = 0; i < 3; ++i) {
    expect_row(stack.layers[i], 0, before.layers[i], 0, "row 0 stays");
    expect_row(stack.layers[i], 1, MambaState(small_config(), 1, DType::f32), 0, "row 1 zero");
  }
  stack.copy_from(before);
  expect_stack(before, "copy_from");
  StackState wrong = before.clone();
  wrong.layers[2].ssm = Tensor::zeros({2, 12, 9}, DType::f32);
  wrong.layers[0].reset();
  EXPECT_THROW(stack.copy_from(wrong), ArgumentError);
  EXPECT_THROW(stack.scatter(wrong, int_list({0, 1}, Device::cpu())), ArgumentError);
  expect_stack(before, "a stack refused for its last layer keeps its first");
  wrong.layers.pop_back();
  expect_error<ArgumentError>("StackState::copy_from: layers: expected 3 layers, got 2",
                              [&] { stack.copy_from(wrong); });

  const StackState swapped = stack.gather(int_list({1, 0}, Device::cpu()));
  const StackState branched = stack.repeat(2);
  const StackState joined = StackState::concat({&stack, &swapped});
  for (std::size_t i = 0; i < 3; ++i) {
    expect_row(swapped.layers[i], 0, before.layers[i], 1, "gather");
    expect_row(branched.layers[i], 3, before.layers[i], 1, "repeat");
    expect_row(joined.layers[i], 2, before.layers[i], 1, "concat");
  }
  stack.scatter(swapped, int_list({0, 1}, Device::cpu()));
  expect_row(stack.layers[2], 0, before.layers[2], 1, "scatter");
  EXPECT_EQ(stack.bytes(), 3 * before.layers[0].bytes());
  stack.reset();
  EXPECT_EQ(bits(stack.layers[2].ssm),
            bits(StackState(small_config(), 3, 2, DType::f32).layers[2].ssm));
}

}  // namespace
}  // namespace mamba
