#include <mamba/ops.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::Guarded;
using testing::Random;

Embedding operation(ConstTensorView ids, ConstTensorView table, TensorView y) {
  Embedding op;
  op.ids = ids;
  op.table = table;
  op.y = y;
  return op;
}

// Rows are copied or widened, never rounded: equality, not a bound.
TEST_EACH(Embedding, RowsOfTheTable, Device device, DType dtype) {
  for (const DType y_dtype : {dtype, DType::f32}) {
    Random random(3);
    const Tensor table = random.normal_tensor({96, 17}, dtype);
    Tensor ids({3, 5}, DType::i32);
    for (int i = 0; i < 15; ++i) {
      ids.data<std::int32_t>()[i] = static_cast<std::int32_t>(random.integer(0, 95));
    }
    ids.data<std::int32_t>()[0] = 95;
    ids.data<std::int32_t>()[14] = 0;
    const Tensor moved = ids.to(device), moved_table = table.to(device);
    const Guarded y({3, 5, 17}, y_dtype, device, 4);
    run(operation(moved, moved_table, y.view()), default_stream(device));
    y.expect_untouched("embedding");
    const std::vector<double> got = testing::values(y.view());
    const std::vector<double> all = testing::values(table);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto id = static_cast<std::size_t>(ids.data<std::int32_t>()[i / 17]);
      ASSERT_EQ(got[i], all[id * 17 + i % 17]) << i;
    }
  }
}

TEST_EACH(Embedding, StridedIdsTableAndOutput, Device device) {
  Random random(4);
  const Tensor table = random.normal_tensor({10, 12}).to(device);
  const Tensor ids = Tensor::from<std::int32_t>({-1, 3, 4, -1, -1, 9, 0, -1}, {2, 4}).to(device);
  const Guarded y({2, 6, 5}, DType::f32, device);
  run(operation(ids.view().columns(1, 2), table.view().columns(3, 5), y.view().steps(2, 2)),
      default_stream(device));
  const std::vector<double> got = testing::values(y.view());
  const std::vector<double> all = testing::values(table);
  const int picked[] = {3, 4, 9, 0};
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t t = 0; t < 6; ++t) {
      for (std::size_t c = 0; c < 5; ++c) {
        const double value = got[(b * 6 + t) * 5 + c];
        if (t < 2 || t > 3) {
          ASSERT_TRUE(std::isnan(value));
        } else {
          ASSERT_EQ(value, all[static_cast<std::size_t>(picked[b * 2 + t - 2]) * 12 + 3 + c]);
        }
      }
    }
  }
}

TEST(Embedding, AnIdOutsideTheTableIsNamedBeforeAnythingIsWritten) {
  const Tensor table = Tensor::zeros({96, 4}, DType::f32);
  for (const auto& [id, text] : {std::pair<std::int32_t, const char*>{96, "96"}, {-1, "-1"}}) {
    const Tensor ids = Tensor::from<std::int32_t>({1, 2, id}, {1, 3});
    const Guarded y({1, 3, 4}, DType::f32);
    expect_error<ArgumentError>(std::string("embedding: ids: expected 0 to 95, got ") + text,
                                [&] { run(operation(ids, table, y.view()), default_stream()); });
    for (const double value : testing::values(y.view())) EXPECT_TRUE(std::isnan(value));
  }
  const Tensor ids = Tensor::from<std::int32_t>({0}, {1, 1});
  const Tensor empty({0, 4}, DType::f32);
  Tensor y({1, 1, 4}, DType::f32);
  expect_error<ArgumentError>("embedding: ids: expected no ids (empty table), got 0",
                              [&] { run(operation(ids, empty, y), default_stream()); });
}

TEST_EACH(Embedding, NothingToDoIsLegal, Device device) {
  const Tensor table = Tensor::zeros({7, 4}, DType::bf16, device);
  for (const auto& [batch, time] : {std::pair<std::int64_t, std::int64_t>{0, 3}, {2, 0}}) {
    const Tensor ids({batch, time}, DType::i32, device);
    Tensor y({batch, time, 4}, DType::bf16, device);
    run(operation(ids, table, y), default_stream(device));
  }
}

TEST(Embedding, WrongOperandsAreNamed) {
  Stream& stream = default_stream();
  const Tensor ids = Tensor::zeros({2, 3}, DType::i32);
  const Tensor table = Tensor::zeros({7, 4}, DType::bf16);
  Tensor y({2, 3, 4}, DType::bf16), wide({2, 3, 5}, DType::bf16), halves({2, 3, 4}, DType::f16);
  const Embedding good = operation(ids, table, y);
  const auto expect = [&](const std::string& text, auto change) {
    Embedding op = good;
    change(op);
    expect_error<ArgumentError>("embedding: " + text, [&] { run(op, stream); });
  };
  expect("ids: expected a tensor, got none", [](Embedding& op) { op.ids = {}; });
  expect("ids: expected 2 dimensions, got [2, 3, 4]", [&](Embedding& op) { op.ids = y; });
  expect("ids: expected i32, got bf16", [&](Embedding& op) { op.ids = table; });
  expect("table: expected 2 dimensions, got [2, 3, 4]", [&](Embedding& op) { op.table = y; });
  expect("table: expected f32 or bf16 or f16, got i32", [&](Embedding& op) { op.table = ids; });
  expect("y: expected [2, 3, 4], got [2, 3, 5]", [&](Embedding& op) { op.y = wide; });
  expect("y: expected bf16 or f32, got f16", [&](Embedding& op) { op.y = halves; });
}

}  // namespace
}  // namespace mamba
