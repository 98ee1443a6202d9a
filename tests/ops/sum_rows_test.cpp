// SumRows and EmbeddingGrad against loops in double.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include <mamba/grad_ops.hpp>

#include "each.hpp"
#include "ops/dense_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {
namespace {

TEST_EACH(SumRows, MatchesTheReference, Device device, DType dtype) {
  for (const Shape& shape :
       {Shape{2, 5, 17}, Shape{7}, Shape{9, 1}, Shape{3000, 70}, Shape{2, 0, 4}}) {
    Random random(1);
    const Tensor host = random.normal_tensor(shape, dtype);
    const auto channels = static_cast<std::size_t>(shape.back());
    const std::vector<double> x = values(host);
    std::vector<TrackedSum> sums(channels);
    for (std::size_t i = 0; i < x.size(); ++i) sums[i % channels].add(x[i]);
    const Padded padded(host, device, shape.rank() > 1 ? 3 : 0);
    const Guarded y({shape.back()}, DType::f32, device);
    SumRows op;
    op.x = padded.view();
    op.y = y.view();
    Stream stream(device, 2);
    run(op, stream);
    stream.synchronize();
    expect_within(y.view(), bounded(sums), shape.to_string());
    y.expect_untouched(shape.to_string());
    const std::vector<double> once = values(y.view());
    op.accumulate = true;
    run(op, stream);
    stream.synchronize();
    const std::vector<double> twice = values(y.view());
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], 2 * once[i]);
  }
}

struct EmbeddingCase {
  std::int64_t batch, time, vocab, width;
};

TEST_EACH(EmbeddingGrad, MatchesTheReferenceWithManyEqualIds, Device device, DType dtype) {
  for (const EmbeddingCase& c : {EmbeddingCase{2, 5, 3, 17},
                                 {1, 1, 1, 1},
                                 {4, 700, 11, 130},
                                 {2, 9, 500, 4},
                                 {0, 3, 5, 8}}) {
    Random random(1);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(c.batch * c.time));
    for (auto& id : ids) id = static_cast<std::int32_t>(random.integer(0, c.vocab - 1));
    const Tensor dy = random.normal_tensor({c.batch, c.time, c.width}, dtype);
    const Tensor before = random.normal_tensor({c.vocab, c.width});
    const std::vector<double> dys = values(dy), old = values(before);
    const Tensor id_tensor = Tensor::from(ids, {c.batch, c.time}).to(device);
    const auto width = static_cast<std::size_t>(c.width);
    for (const bool accumulate : {false, true}) {
      std::vector<TrackedSum> sums(old.size());
      for (std::size_t i = 0; i < old.size() && accumulate; ++i) sums[i].add(old[i]);
      for (std::size_t i = 0; i < dys.size(); ++i) {
        sums[static_cast<std::size_t>(ids[i / width]) * width + i % width].add(dys[i]);
      }
      const Padded from(dy, device, 3);
      const Padded table(before, device, 5);
      EmbeddingGrad op;
      op.ids = id_tensor;
      op.dy = from.view();
      op.dtable = table.view();
      op.accumulate = accumulate;
      Stream stream(device, 2);
      run(op, stream);
      stream.synchronize();
      expect_within(table.view(), bounded(sums), "dtable");
      table.expect_untouched("dtable");
      const Padded again(before, device, 5);
      op.dtable = again.view();
      run(op, stream);
      stream.synchronize();
      EXPECT_EQ(bits(again.view()), bits(table.view()));
    }
  }
}

TEST(EmbeddingGrad, AnIdOutsideTheTableIsNamedBeforeAnythingIsWritten) {
  const Tensor ids = Tensor::from<std::int32_t>({0, 3}, {1, 2});
  const Tensor dy = Tensor::zeros({1, 2, 4}, DType::f32);
  Random random(1);
  Tensor table = random.normal_tensor({3, 4});
  const auto before = bits(table);
  EmbeddingGrad op;
  op.ids = ids;
  op.dy = dy;
  op.dtable = table;
  expect_error<ArgumentError>("embedding_grad: ids: expected 0 to 2, got 3",
                              [&] { run(op, default_stream()); });
  EXPECT_EQ(bits(table), before);
}

}  // namespace
}  // namespace mamba::testing
