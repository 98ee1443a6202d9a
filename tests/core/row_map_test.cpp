// What a row map may not be, wherever one is taken: an error before any work, and the state as it
// was.
#include <algorithm>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>

#include "each.hpp"
#include "host/core/row_map.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

// Of the batch that a map is for.
struct Rows {
  int count;
};

}  // namespace

template <>
struct testing::Every<Rows> {
  static std::vector<Rows> all() { return {{1}, {2}, {3}, {4}, {5}}; }
  static std::string name(Rows rows) { return std::to_string(rows.count) + "rows"; }
};

namespace {

using testing::bits;
using testing::Random;

// Of a shape that a GPU of 9.0 takes in one kernel, in a step of one to four rows.
LanguageModel small_model(Device device) {
  LanguageModelConfig config;
  config.layer.d_model = 32;
  config.layer.d_inner = 64;
  config.layer.dt_rank = 16;
  config.n_layer = 2;
  config.vocab_size = 16;
  return LanguageModel::random(config, 1, DType::bf16, device);
}

StackState lively_state(const LanguageModel& model, std::int64_t rows) {
  Random random(2);
  StackState state = model.make_state(rows);
  for (MambaState& layer : state.layers) {
    layer.conv = random.normal_tensor(layer.conv.shape(), layer.conv.dtype()).to(model.device());
    layer.ssm = random.normal_tensor(layer.ssm.shape()).to(model.device());
  }
  return state;
}

struct WrongMap {
  std::string error;  // behind the name of the call
  Tensor read, write;
};

// `rows` distinct rows from `first` on.
Tensor some_rows(std::int64_t rows, std::int32_t first, Device device) {
  std::vector<std::int32_t> values;
  for (std::int64_t i = 0; i < rows; ++i) values.push_back(first + static_cast<std::int32_t>(i));
  return Tensor::from(values, {rows}).to(device);
}

std::vector<WrongMap> wrong_maps(std::int64_t rows, std::int64_t state_rows, Device device) {
  const auto map = [&](std::int64_t count) { return some_rows(count, 1, device); };
  const std::string shape = "[" + std::to_string(rows) + "]", one_more = std::to_string(rows + 1);
  std::vector<WrongMap> all;
  const auto add = [&](std::string error, Tensor read, Tensor write) {
    all.push_back({std::move(error), std::move(read), std::move(write)});
  };
  add("rows.write: expected a tensor, got none", map(rows), Tensor());
  add("rows.read: expected a tensor, got none", Tensor(), map(rows));
  add("rows.read: expected " + shape + ", got [" + one_more + "]", map(rows + 1), map(rows));
  add("rows.write: expected " + shape + ", got [" + one_more + "]", map(rows), map(rows + 1));
  add("rows.read: expected i32, got f32", Tensor::zeros({rows}, DType::f32, device), map(rows));
  add("rows.write: expected i32, got bf16", map(rows), Tensor::zeros({rows}, DType::bf16, device));
  if (device.is_cuda()) {
    const std::string wrong = ": expected " + device.name() + ", got cpu";
    add("rows.read" + wrong, map(rows).to(Device::cpu()), map(rows));
    add("rows.write" + wrong, map(rows), map(rows).to(Device::cpu()));
    return all;  // values are the kernels' to look at
  }
  const auto first = static_cast<std::int32_t>(state_rows - rows + 1);  // the last is one too many
  const std::string below =
      "expected rows below " + std::to_string(state_rows) + ", got " + std::to_string(state_rows);
  add("rows.read: " + below, some_rows(rows, first, device), map(rows));
  add("rows.write: " + below, map(rows), some_rows(rows, first, device));
  if (rows == 1) return all;
  std::vector<std::int32_t> twice(static_cast<std::size_t>(rows), -1);
  twice.front() = twice.back() = 3;
  const std::string nobody = "rows.write: expected no row that another batch row reads or writes, ";
  const Tensor none = Tensor::from(std::vector<std::int32_t>(twice.size(), -1), {rows});
  add(nobody + "got row 3 from batch row 0", none.clone(), Tensor::from(twice, {rows}));
  twice.front() = -1;
  std::vector<std::int32_t> reads(twice.size(), -1);
  reads.front() = 3;
  add(nobody + "got row 3 from batch row " + std::to_string(rows - 1), Tensor::from(reads, {rows}),
      Tensor::from(twice, {rows}));
  return all;
}

// call(state, map, stream) refuses every wrong map in the name of `where`, and touches nothing.
template <class Call>
void expect_refused(const LanguageModel& model, Rows batch, const std::string& where, Call call) {
  constexpr std::int64_t state_rows = 7;
  StackState state = lively_state(model, state_rows);
  const StackState before = state.clone();
  Stream stream(model.device());
  for (const WrongMap& map : wrong_maps(batch.count, state_rows, model.device())) {
    SCOPED_TRACE(map.error);
    testing::expect_error<ArgumentError>(where + ": " + map.error, [&] {
      call(state, RowMap{map.read, map.write}, stream);
    });
    stream.synchronize();  // nothing was queued that finds fault later
    for (std::size_t l = 0; l < state.layers.size(); ++l) {
      EXPECT_EQ(bits(state.layers[l].conv), bits(before.layers[l].conv));
      EXPECT_EQ(bits(state.layers[l].ssm), bits(before.layers[l].ssm));
    }
  }
}

TEST_EACH(WrongRowMap, IsRefusedByAStack, Device device, Rows batch) {
  for (const std::int64_t time : {1, 3}) {
    SCOPED_TRACE("time " + std::to_string(time));
    const LanguageModel model = small_model(device);
    const Tensor x = Tensor::zeros({batch.count, time, 32}, DType::bf16, device);
    Tensor y(x.shape(), DType::bf16, device);
    expect_refused(model, batch, "Stack::forward",
                   [&](StackState& state, const RowMap& rows, Stream& stream) {
                     StackOptions options;
                     options.rows = rows;
                     model.stack().forward(x, state, y, stream, options);
                   });
  }
}

TEST_EACH(WrongRowMap, IsRefusedByALanguageModel, Device device, Rows batch) {
  const LanguageModel model = small_model(device);
  const Tensor ids = Tensor::zeros({batch.count, 1}, DType::i32, device);
  expect_refused(model, batch, "LanguageModel::forward",
                 [&](StackState& state, const RowMap& rows, Stream& stream) {
                   LanguageModelOptions options;
                   options.rows = rows;
                   model.forward(ids, state, Logits::none(), stream, options);
                 });
}

TEST_EACH(WrongRowMap, IsRefusedByALayer, Device device, Rows batch) {
  const LanguageModel model = small_model(device);
  const Tensor x = Tensor::zeros({batch.count, 1, 32}, DType::bf16, device);
  Tensor y(x.shape(), DType::bf16, device);
  expect_refused(model, batch, "Layer::forward",
                 [&](StackState& state, const RowMap& rows, Stream& stream) {
                   LayerOptions options;
                   options.rows = rows;
                   model.stack().layer(0).forward(x, state.layers[0], y, stream, options);
                 });
}

// What the check says of random maps, against the rule as RowMap words it.
TEST(RowMap, IsRightExactlyIfNoRowIsWrittenThatAnotherReadsOrWrites) {
  Stream stream(Device::cpu(), 1);
  Random random(4);
  int right = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto batch = random.integer(1, 6), state_rows = random.integer(1, 70);
    std::vector<std::int32_t> read, write;
    for (std::int64_t b = 0; b < batch; ++b) {
      read.push_back(static_cast<std::int32_t>(random.integer(-1, state_rows - 1)));
      write.push_back(random.integer(0, 2) == 0
                          ? read.back()
                          : static_cast<std::int32_t>(random.integer(-1, state_rows - 1)));
    }
    std::string expected;
    for (std::size_t b = 0; b < read.size() && expected.empty(); ++b) {
      for (std::size_t other = 0; other < read.size() && write[b] >= 0; ++other) {
        if (other == b || (read[other] != write[b] && write[other] != write[b])) continue;
        expected =
            "here: rows.write: expected no row that another batch row reads or writes, got "
            "row " +
            std::to_string(write[b]) + " from batch row " + std::to_string(b);
        break;
      }
    }
    right += expected.empty();
    std::string got;
    try {
      const Tensor reads = Tensor::from(read, {batch}), writes = Tensor::from(write, {batch});
      check_rows("here", {reads, writes}, batch, state_rows, stream);
    } catch (const ArgumentError& error) {
      got = error.what();
    }
    ASSERT_EQ(got, expected) << i;
  }
  EXPECT_GT(right, 500);
  EXPECT_LT(right, 2500);
}

}  // namespace
}  // namespace mamba
