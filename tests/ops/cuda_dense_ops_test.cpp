// What only CUDA has: values in device memory that the host has not seen, and several kernels
// behind one operation. Everything else about these operations is in their own tests, on every
// device.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>
#include <mamba/train_ops.hpp>

#include "each.hpp"
#include "ops/dense_reference.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

std::vector<std::int32_t> integers(ConstTensorView view) {
  const std::vector<unsigned char> bytes = bits(view);
  std::vector<std::int32_t> list(bytes.size() / 4);
  if (!list.empty()) std::memcpy(list.data(), bytes.data(), bytes.size());
  return list;
}

Tensor list(const std::vector<std::int32_t>& values, Device device) {
  return Tensor::from(values, {static_cast<std::int64_t>(values.size())}).to(device);
}

// The error is thrown once; then the stream works as before.
void expect_thrown_once(Stream& stream, const std::string& text) {
  expect_error<ArgumentError>(text, [&] { stream.synchronize(); });
  stream.synchronize();
}

// ---- bad values ---------------------------------------------------------------------------------

TEST_EACH(CudaBadValues, ATokenIdOutsideTheTableGivesNaN, CudaDevice device) {
  for (const std::int64_t width : {16, 5}) {
    Stream stream(device);
    const Tensor table = Random(1).normal_tensor({7, width}, DType::bf16).to(device);
    const Tensor ids = Tensor::from<std::int32_t>({6, 7, -1, 0}, {2, 2}).to(device);
    Tensor y({2, 2, width}, DType::bf16, device);
    Embedding op;
    op.ids = ids;
    op.table = table;
    op.y = y;
    run(op, stream);
    expect_thrown_once(stream, "embedding: ids: expected ids of the table, got one outside of it");
    const std::vector<double> got = values(y), all = values(table);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(width);
      const std::size_t column = i % static_cast<std::size_t>(width);
      if (row == 1 || row == 2) {
        EXPECT_TRUE(std::isnan(got[i])) << i;
      } else {
        EXPECT_EQ(got[i], all[(row == 0 ? 6u : 0u) * static_cast<std::size_t>(width) + column]);
      }
    }
  }
}

TEST_EACH(CudaBadValues, CopiedRowsOutOfRange, CudaDevice device, DType dtype) {
  for (const std::int64_t width : {8, 3, 3000}) {
    Stream stream(device);
    const Tensor from = Random(1).normal_tensor({3, width}, dtype).to(device);
    Tensor to = Random(2).normal_tensor({4, width}, dtype).to(device);
    const Tensor before = to.clone();
    const Tensor from_rows = list({2, 3, 1, -1}, device);
    const Tensor to_rows = list({0, 1, 4, 2}, device);
    CopyRows op;
    op.from = from;
    op.from_rows = from_rows;
    op.to = to;
    op.to_rows = to_rows;
    run(op, stream);
    expect_thrown_once(stream,
                       "copy_rows: rows: expected rows of the tensor, got one outside of it");
    EXPECT_EQ(bits(to.view().rows(0, 1)), bits(from.view().rows(2, 1)));
    EXPECT_EQ(bits(to.view().rows(3, 1)), bits(before.view().rows(3, 1)));
    for (const double value : values(to.view().rows(1, 2))) EXPECT_TRUE(std::isnan(value));
  }
}

TEST_EACH(CudaBadValues, AConvStateRowThatDoesNotExist, CudaDevice device) {
  for (const std::int64_t width : {4, 6}) {
    for (const std::int64_t channels : {16, 5}) {
      for (const std::int64_t time : {1, 2, 40}) {
        Stream stream(device);
        const Tensor x = Random(1).normal_tensor({3, time, channels}).to(device);
        const Tensor weight = Random(2).normal_tensor({channels, width}).to(device);
        Tensor state = Random(3).normal_tensor({3, channels, width - 1}).to(device);
        const Tensor before = state.clone();
        const Tensor read = list({0, 3, 1}, device), write = list({0, 1, 3}, device);
        Tensor y({3, time, channels}, DType::f32, device);
        CausalConv op;
        op.x = x;
        op.weight = weight;
        op.initial_state = state;
        op.final_state = state;
        op.rows = {read, write};
        op.y = y;
        run(op, stream);
        expect_thrown_once(
            stream, "rows: read or write: expected rows of the state, got one outside of it");
        EXPECT_EQ(bits(state.view().rows(1, 2)), bits(before.view().rows(1, 2)));
        EXPECT_NE(bits(state.view().rows(0, 1)), bits(before.view().rows(0, 1)));
        for (const double value : values(y.view().rows(0, 1))) EXPECT_TRUE(std::isfinite(value));
        for (const double value : values(y.view().rows(1, 2))) EXPECT_TRUE(std::isnan(value));
      }
    }
  }
}

TEST_EACH(CudaBadValues, AGradientOfATokenIdOutsideTheTableAddsNothing, CudaDevice device) {
  Stream stream(device);
  const Tensor dy = Random(1).normal_tensor({2, 2, 5}).to(device);
  const Tensor ids = Tensor::from<std::int32_t>({3, 4, -1, 3}, {2, 2}).to(device);
  Tensor dtable({4, 5}, DType::f32, device);
  EmbeddingGrad op;
  op.ids = ids;
  op.dy = dy;
  op.dtable = dtable;
  run(op, stream);
  expect_thrown_once(stream, "embedding: ids: expected ids of the table, got one outside of it");
  const std::vector<double> got = values(dtable), all = values(dy);
  for (std::size_t c = 0; c < 5; ++c) {
    EXPECT_EQ(got[15 + c], static_cast<float>(all[c]) + static_cast<float>(all[15 + c]));
    for (std::size_t row = 0; row < 3; ++row) EXPECT_EQ(got[row * 5 + c], 0);
  }
}

TEST_EACH(CudaBadValues, ATargetAboveTheVocabulary, CudaDevice device) {
  for (const std::int64_t vocab : {8, 5, 3000}) {
    Stream stream(device);
    const Tensor logits = Random(1).normal_tensor({3, vocab}).to(device);
    const Tensor targets = list({0, static_cast<std::int32_t>(vocab), -1}, device);
    Tensor loss({3}, DType::f32, device), dlogits({3, vocab}, DType::f32, device);
    CrossEntropy op;
    op.logits = logits;
    op.targets = targets;
    op.loss = loss;
    op.dlogits = dlogits;
    run(op, stream);
    expect_thrown_once(
        stream, "cross_entropy: targets: expected targets below the vocabulary, got one above");
    const std::vector<double> losses = values(loss);
    EXPECT_TRUE(std::isfinite(losses[0]));
    EXPECT_TRUE(std::isnan(losses[1]));
    EXPECT_EQ(losses[2], 0);
    for (const double value : values(dlogits.view().rows(0, 1))) EXPECT_TRUE(std::isfinite(value));
    for (const double value : values(dlogits.view().rows(1, 1))) EXPECT_TRUE(std::isnan(value));
    for (const double value : values(dlogits.view().rows(2, 1))) EXPECT_EQ(value, 0);
  }
}

TEST_EACH(CudaBadValues, AnActionOutOfRange, CudaDevice device) {
  const std::string text =
      "categorical: actions: expected actions of the distribution, got one outside of it";
  Stream stream(device);
  const Tensor logits = Random(1).normal_tensor({3, 4}).to(device);
  const Tensor actions = list({3, 4, -1}, device);
  Tensor log_prob({3}, DType::f32, device), entropy({3}, DType::f32, device);
  Categorical op;
  op.logits = logits;
  op.actions = actions;
  op.log_prob = log_prob;
  op.entropy = entropy;
  run(op, stream);
  expect_thrown_once(stream, text);
  EXPECT_TRUE(std::isfinite(values(log_prob)[0]));
  for (const std::size_t row : {1, 2}) EXPECT_TRUE(std::isnan(values(log_prob)[row]));
  for (const double value : values(entropy)) EXPECT_TRUE(std::isfinite(value));

  const Tensor ones = Tensor::from<float>({1, 1, 1}, {3}).to(device);
  Tensor dlogits({3, 4}, DType::f32, device);
  CategoricalGrad grad;
  grad.logits = logits;
  grad.actions = actions;
  grad.dlog_prob = ones;
  grad.dlogits = dlogits;
  run(grad, stream);
  expect_thrown_once(stream, text);
  for (const double value : values(dlogits.view().rows(0, 1))) EXPECT_TRUE(std::isfinite(value));
  for (const double value : values(dlogits.view().rows(1, 2))) EXPECT_TRUE(std::isnan(value));
}

TEST_EACH(CudaBadValues, ARowOfLogitsWithoutAFiniteLargest, CudaDevice device) {
  const float inf = std::numeric_limits<float>::infinity();
  Stream stream(device);
  const Tensor logits =
      Tensor::from<float>({1, 2, -inf, std::nanf(""), 3, inf, 5, 4}, {4, 2}).to(device);
  Tensor seed = Tensor::zeros({4, 2}, DType::i32, device);
  Tensor draws = Tensor::zeros({4}, DType::i32, device);
  Tensor seen = Tensor::zeros({4, 2}, DType::i32, device);
  Tensor ids = Tensor::zeros({4}, DType::i32, device);
  Sample op;
  op.logits = logits;
  op.seed = seed;
  op.draws = draws;
  op.seen = seen;
  op.ids = ids;
  op.temperature = 0.01f;
  run(op, stream);
  expect_thrown_once(stream,
                     "sample: logits: expected a finite largest value in each row, got none");
  EXPECT_EQ(integers(ids), (std::vector<std::int32_t>{1, -1, -1, 0}));
  EXPECT_EQ(integers(draws), (std::vector<std::int32_t>{1, 0, 0, 1}));
  EXPECT_EQ(integers(seen), (std::vector<std::int32_t>{0, 1, 0, 0, 0, 0, 1, 0}));
}

// ---- the convolution: vectors, single channels, tiles, steps, any width -------------------------

struct Conv {
  Tensor x, weight, bias, state, reset, read, write;
  std::int64_t time, channels, width;

  Conv(std::int64_t steps, std::int64_t d, std::int64_t w, DType dtype, Device device, bool resets)
      : time(steps), channels(d), width(w) {
    Random random(static_cast<std::uint64_t>(steps * 100 + d + w));
    x = random.normal_tensor({4, steps, d}, dtype).to(device);
    weight = random.normal_tensor({d, w}).to(device);
    bias = random.normal_tensor({d}).to(device);
    state = random.normal_tensor({5, d, w - 1}, dtype).to(device);
    if (resets) {
      std::vector<std::int32_t> flags(static_cast<std::size_t>(4 * steps));
      for (std::int32_t& flag : flags) flag = random.uniform(0, 1) < 0.15 ? 1 : 0;
      reset = Tensor::from(flags, {4, steps}).to(device);
    }
    read = list({4, -1, 2, -1}, device);
    write = list({4, 0, -1, -1}, device);
  }

  struct Result {
    std::vector<unsigned char> y, state, steps;
  };
  // The operands at element offset `shift` of rows that are `shift` longer: 0 takes vectors.
  Result result(std::int64_t shift, bool with_steps) const {
    const Device device = x.device();
    Stream& stream = default_stream(device);
    const auto moved = [&](ConstTensorView view) {
      Tensor wide({4, time, channels + shift}, view.dtype(), device);
      copy(view, wide.view().columns(shift, channels), stream);
      return wide;
    };
    const Tensor wide_x = moved(x);
    Tensor wide_y({4, time, channels + shift}, x.dtype(), device);
    Tensor pool = state.clone(stream);
    Tensor steps({4, time, channels, width - 1}, x.dtype(), device);
    CausalConv op;
    op.x = wide_x.view().columns(shift, channels);
    op.weight = weight;
    op.bias = bias;
    op.initial_state = pool;
    op.final_state = pool;
    op.rows = {read, write};
    op.reset = reset;
    if (with_steps) op.step_states = steps;
    op.y = wide_y.view().columns(shift, channels);
    run(op, stream);
    return {bits(op.y), bits(pool), with_steps ? bits(steps) : std::vector<unsigned char>()};
  }
};

TEST_EACH(CudaCausalConv, VectorsAndSingleChannelsGiveTheSameBits, CudaDevice device, DType dtype) {
  for (const std::int64_t width : {2, 3, 4}) {
    for (const std::int64_t time : {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 63, 64, 65, 131, 300}) {
      for (const std::int64_t channels : {8, 64, 520}) {
        for (const int choice : {0, 1, 2, 3}) {
          const Conv conv(time, channels, width, dtype, device, (choice & 1) != 0);
          const bool steps = (choice & 2) != 0;
          const Conv::Result vectors = conv.result(0, steps);
          const Conv::Result singles = conv.result(1, steps);
          const std::string what =
              conv.x.shape().to_string() + " width " + std::to_string(width) + " " + name_of(dtype);
          ASSERT_EQ(vectors.y, singles.y) << what;
          ASSERT_EQ(vectors.state, singles.state) << what;
          ASSERT_EQ(vectors.steps, singles.steps) << what;
        }
      }
    }
  }
}

// A width of 4 as a width of 5 whose oldest weight is zero: another kernel, the same sums.
TEST_EACH(CudaCausalConv, AnyWidthGivesTheSameBitsAsAFixedOne, CudaDevice device) {
  for (const std::int64_t time : {1, 5, 100, 700}) {
    const Tensor x = Random(1).normal_tensor({3, time, 24}, DType::bf16).to(device);
    const Tensor narrow = Random(2).normal_tensor({24, 4});
    Tensor wide = Tensor::zeros({24, 5}, DType::f32);
    copy(narrow, wide.view().columns(1, 4), default_stream());
    const Tensor weights[] = {narrow.to(device), wide.to(device)};
    std::vector<unsigned char> y[2];
    for (const int i : {0, 1}) {
      Tensor out({3, time, 24}, DType::bf16, device);
      CausalConv op;
      op.x = x;
      op.weight = weights[i];
      op.y = out;
      run(op, default_stream(device));
      y[i] = bits(out);
    }
    EXPECT_EQ(y[0], y[1]) << time;
  }
}

TEST_EACH(CudaCausalConv, MoreBatchRowsThanAGridDimensionMayHave, CudaDevice device) {
  const std::int64_t batch = 70000;
  const Tensor x = Random(1).normal_tensor({batch, 2, 1}).to(device);
  const Tensor weight = Tensor::from<float>({0.5f, 2}, {1, 2}).to(device);
  Tensor y({batch, 2, 1}, DType::f32, device);
  CausalConv op;
  op.x = x;
  op.weight = weight;
  op.y = y;
  op.silu = false;
  run(op, default_stream(device));
  const std::vector<double> in = values(x), out = values(y);
  for (std::size_t i = 0; i < in.size(); ++i) {
    const double expected = 2 * in[i] + (i % 2 == 1 ? 0.5 * in[i - 1] : 0);
    ASSERT_NEAR(out[i], expected, 1e-6 * (std::abs(in[i]) + std::abs(in[i - i % 2])) + 1e-30);
  }
}

// ---- norms of every length ----------------------------------------------------------------------

// So many channels that a tile has its full length, and so many steps that a block has not all of
// them. Nothing cancels where everything is positive: each sum is within as many roundings as it
// has terms on the CPU, and fewer on CUDA.
TEST_EACH(CudaCausalConvGrad, LongTilesAgreeWithTheCpu, CudaDevice device) {
  constexpr std::int64_t batch = 8, time = 4099, channels = 1024;
  Random random(6);
  const auto positive = [&](const Shape& shape) { return random.uniform_tensor(shape, 0.5, 1); };
  const Tensor x = positive({batch, time, channels}), dy = positive({batch, time, channels});
  const Tensor weight = positive({channels, 4}), state = positive({batch, channels, 3});
  const auto gradients = [&](Device where) {
    const Tensor there[] = {x.to(where), dy.to(where), weight.to(where), state.to(where)};
    Tensor dx({batch, time, channels}, DType::f32, where), dstate = state.to(where);
    Tensor dweight({channels, 4}, DType::f32, where), dbias({channels}, DType::f32, where);
    CausalConvGrad op;
    op.x = there[0];
    op.dy = there[1];
    op.weight = there[2];
    op.initial_state = there[3];
    op.dfinal_state = op.dinitial_state = dstate;
    op.dx = dx;
    op.dweight = dweight;
    op.dbias = dbias;
    op.silu = false;
    Stream stream(where);
    run(op, stream);
    stream.synchronize();
    return std::vector<std::vector<double>>{values(dx), values(dstate), values(dweight),
                                            values(dbias)};
  };
  const auto expected = gradients(Device::cpu());
  const double terms[] = {5, 5, batch * time, batch * time};
  const std::string names[] = {"dx", "dstate", "dweight", "dbias"};
  const auto got = gradients(device);
  for (std::size_t n = 0; n < 4; ++n) {
    for (std::size_t i = 0; i < got[n].size(); ++i) {
      const double bound = 2 * terms[n] * roundoff(DType::f32) * expected[n][i];
      ASSERT_LE(std::abs(got[n][i] - expected[n][i]), bound) << names[n] << " " << i;
    }
  }
}

TEST_EACH(CudaAddRmsNorm, EveryWayToSpreadARow, CudaDevice device, DType dtype) {
  for (const std::int64_t channels :
       {4,   8,    16,   20,   64,   124,  128,  132,  256,   260,   512,
        515, 1020, 1024, 2048, 2052, 4096, 4097, 8192, 16384, 16388, 20001}) {
    const Shape shape{5, channels};
    Random random(static_cast<std::uint64_t>(channels));
    const Tensor x = random.normal_tensor(shape, dtype), sum = random.normal_tensor(shape);
    const Tensor weight = random.normal_tensor({channels});
    const NormReference expected = norm_reference(x, sum, weight, 1e-5);
    for (const std::int64_t pad : {0, 3, 8}) {
      const Padded moved_x(x, device, pad), moved_sum(sum, device, pad);
      const Tensor moved_weight = weight.to(device);
      const Guarded y(shape, dtype, device, pad);
      AddRmsNorm op;
      op.x = moved_x.view();
      op.residual = moved_sum.view();
      op.weight = moved_weight;
      op.y = y.view();
      run(op, default_stream(device));
      const std::string what = shape.to_string() + " " + name_of(dtype);
      expect_within(moved_sum.view(), expected.sum, what + " sum");
      expect_within(y.view(), expected.y, what + " y");
      y.expect_untouched(what);
      moved_sum.expect_untouched(what);
    }
  }
}

// ---- rows ---------------------------------------------------------------------------------------

TEST_EACH(CudaRows, CopiesAndZeroesAsOnTheCpu, CudaDevice device, DType dtype) {
  Random random(5);
  for (const Shape& shape : {Shape{6}, Shape{6, 1}, Shape{6, 7}, Shape{6, 64}, Shape{6, 5, 3},
                             Shape{6, 40, 16}, Shape{6, 3, 1111}, Shape{6, 2, 5, 3}}) {
    const Tensor from = random.normal_tensor(shape, dtype);
    const std::vector<std::int32_t> sources = {5, 0, 0, 3}, targets = {1, 0, 4, 5};
    const std::vector<std::int32_t> mask = {0, 1, 0, 0, -1, 1};
    std::vector<unsigned char> results[2];
    for (const Device where : {Device::cpu(), Device(device)}) {
      Stream& stream = default_stream(where);
      const Tensor source = from.to(where);
      const Guarded target(shape, dtype, where);
      zero(target.view(), stream);
      const Tensor from_rows = list(sources, where), to_rows = list(targets, where);
      const Tensor chosen = list(mask, where);
      CopyRows copy_rows;
      copy_rows.from = source;
      copy_rows.from_rows = from_rows;
      copy_rows.to = target.view();
      copy_rows.to_rows = to_rows;
      run(copy_rows, stream);
      ZeroRows zero_rows;
      zero_rows.mask = chosen;
      zero_rows.view = target.view();
      run(zero_rows, stream);
      results[where.is_cuda()] = bits(target.view());
      target.expect_untouched(shape.to_string());
    }
    EXPECT_EQ(results[0], results[1]) << shape.to_string() << " " << name_of(dtype);
  }
}

TEST_EACH(CudaRows, ZeroesStridedRowsThatAMapCallsPadding, CudaDevice device) {
  for (const std::int64_t pad : {1, 4, 8}) {
    const Guarded view({4, 5, 24}, DType::bf16, device, pad);
    const Tensor read = list({-1, -1, 2, -2}, device), write = list({0, -1, -1, -1}, device);
    ZeroRows op;
    op.padding = {read, write};
    op.view = view.view();
    run(op, default_stream(device));
    const std::vector<double> got = values(view.view());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i] == 0, i / 120 == 1 || i / 120 == 3) << i;
    }
    view.expect_untouched("padding");
  }
}

// ---- the same tokens as the CPU ---------------------------------------------------------------

TEST_EACH(CudaSample, PicksTheTokensOfTheCpu, CudaDevice device) {
  Random random(3);
  for (const std::int64_t vocab : {1, 3, 33, 1000, 5001, 50280}) {
    const std::int64_t batch = vocab > 10000 ? 6 : 40;
    Tensor logits({batch, vocab}, DType::f32), seeds({batch, 2}, DType::i32);
    for (std::int64_t i = 0; i < batch * vocab; ++i) {
      const double v = random.normal(4);  // every other row with many ties
      logits.data<float>()[i] = static_cast<float>(i / vocab % 2 == 0 ? v : std::round(2 * v) / 2);
    }
    for (std::int64_t i = 0; i < 2 * batch; ++i) {
      seeds.data<std::int32_t>()[i] = static_cast<std::int32_t>(random.integer(-5000, 5000));
    }
    for (int choice = 0; choice < 32; ++choice) {
      std::vector<std::int32_t> results[2];
      for (const Device where : {Device::cpu(), Device(device)}) {
        const Tensor on_device = logits.to(where), seed = seeds.to(where);
        Tensor draws = Tensor::zeros({batch}, DType::i32, where);
        Tensor seen = Tensor::zeros({batch, vocab}, DType::i32, where);
        Tensor ids({batch}, DType::i32, where);
        Sample op;
        op.logits = on_device;
        op.seed = seed;
        op.draws = draws;
        op.seen = seen;
        op.ids = ids;
        op.temperature = choice & 1 ? 0.8f : 1.7f;
        if (choice & 2) op.top_k = 1 + vocab / 7;
        if (choice & 4) op.top_p = 0.85f;
        if (choice & 8) op.min_p = 0.013f;
        if (choice & 16) op.repetition_penalty = 1.3f;
        std::vector<std::int32_t>& all = results[where.is_cuda()];
        for (int i = 0; i < 4; ++i) {
          run(op, default_stream(where));
          for (const std::int32_t id : integers(ids)) all.push_back(id);
        }
        for (const std::int32_t n : integers(draws)) all.push_back(n);
        for (const std::int32_t mark : integers(seen)) all.push_back(mark);
      }
      EXPECT_EQ(results[0], results[1]) << vocab << " choice " << choice;
    }
  }
}

}  // namespace
}  // namespace mamba::testing
