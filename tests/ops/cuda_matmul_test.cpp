// How a Matmul is computed on CUDA: each plan on every operand it can do, and which one is chosen.
// Its results under the chosen plan are in matmul_test.cpp, on every device.
#ifdef MAMBA_HAS_CUDA  // set by the build: the plans are in the library only then
#include <algorithm>
#include <cmath>

#include <mamba/detail/constant_weights.hpp>
#include <mamba/graph.hpp>
#include <mamba/ops.hpp>

#include "each.hpp"
#include "kernels/matmul/matmul.hpp"
#include "ops/dense_reference.hpp"
#include "ops/limited_devices.hpp"
#include "testing.hpp"

namespace mamba {

template <>
struct testing::Every<cuda::MatmulPlan> {
  using Plan = cuda::MatmulPlan;
  static std::vector<Plan> all() { return {Plan::gemv, Plan::skinny, Plan::blaslt, Plan::tiled}; }
  static std::string name(Plan plan) {
    return plan == Plan::gemv     ? "gemv"
           : plan == Plan::skinny ? "skinny"
           : plan == Plan::blaslt ? "blaslt"
                                  : "tiled";
  }
};

namespace {

using cuda::MatmulPlan;
using testing::bits;
using testing::expect_within;
using testing::Guarded;
using testing::Padded;
using testing::Random;

Matmul operation(ConstTensorView x, ConstTensorView weight, ConstTensorView bias, TensorView y) {
  Matmul op;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  return op;
}

// Shapes on both sides of every boundary: a tile of the GEMV's kernels (1, 2, 4 and 8 weight rows),
// what a warp takes of a row (32 to 256 elements), 16-byte alignment, several rounds of splits, and
// warps with one to three whole rows.
TEST_EACH(CudaMatmul, EveryPlanOnStridedOperands, testing::CudaDevice device, DType dtype,
          MatmulPlan plan) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes{
      {0, 5},    {1, 1},    {2, 3},     {3, 17},     {8, 9},     {48, 80},     {127, 15},  {64, 16},
      {256, 33}, {80, 700}, {1536, 16}, {768, 2050}, {5120, 24}, {2600, 2111}, {520, 5003}};
  Stream stream(device);
  std::size_t turn = 0;  // alternates bias and output dtype through the cases
  std::size_t taken = 0;
  for (const auto& [in, out] : shapes) {
    Random random(3);
    const Tensor x = random.normal_tensor({17, in}, dtype);
    const Tensor weight = random.normal_tensor({out, in}, dtype);
    const Tensor bias = random.normal_tensor({out}, dtype);
    const auto with = testing::matmul_reference(x, weight, bias);
    const auto without = testing::matmul_reference(x, weight, {});
    const Tensor moved_bias = bias.to(device);
    for (const std::int64_t pad : {0, 5, 8}) {
      const Padded weights(weight, device, pad);
      for (const std::int64_t rows : {1, 2, 3, 5, 8, 9, 17}) {
        const bool biased = ++turn % 2 == 0;
        const DType y_dtype = turn / 2 % 2 == 0 ? dtype : DType::f32;
        const Padded some(x.view().rows(0, rows), device, pad);
        auto expected = biased ? with : without;
        expected.resize(static_cast<std::size_t>(rows * out));
        Guarded y({rows, out}, y_dtype, device, pad);
        const Matmul op = operation(some.view(), weights.view(),
                                    biased ? moved_bias.view() : ConstTensorView(), y.view());
        if (!cuda::can_run(op, plan)) continue;
        ++taken;
        cuda::run(op, stream, plan);
        stream.synchronize();
        const std::string what = std::string(name_of(dtype)) + ", in " + std::to_string(in) +
                                 ", out " + std::to_string(out) + ", rows " + std::to_string(rows) +
                                 ", pad " + std::to_string(pad);
        expect_within(y.view(), expected, what);
        y.expect_untouched(what);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
  // The tensor cores take 16 bits.
  EXPECT_EQ(taken > 0, plan != MatmulPlan::skinny || dtype != DType::f32);
}

// One row of x and many weight rows: each depth of the warps' rings, with fewer rounds than that
// and with more, and blocks whose last warps have an odd row or none.
void expect_one_row_through_every_ring(Device device, DType dtype) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes{
      {24, 2048}, {1024, 4096}, {2600, 4201}, {2600, 2751}, {4104, 2560}, {5120, 2051}};
  for (const auto& [in, out] : shapes) {
    Random random(8);
    const Tensor x = random.normal_tensor({1, in}, dtype);
    const Tensor weight = random.normal_tensor({out, in}, dtype);
    const auto expected = testing::matmul_reference(x, weight, {});
    const Guarded y({1, out}, DType::f32, device, 5);
    const Tensor moved = x.to(device), moved_weight = weight.to(device);
    run(operation(moved, moved_weight, {}, y.view()), default_stream(device));
    const std::string what =
        std::string(name_of(dtype)) + ", in " + std::to_string(in) + ", out " + std::to_string(out);
    expect_within(y.view(), expected, what);
    y.expect_untouched(what);
  }
}
TEST_EACH(CudaMatmul, OneRowThroughEveryRing, testing::CudaDevice device, DType dtype) {
  expect_one_row_through_every_ring(device, dtype);
}

// One to four tiles of 16 rows of x, and tiles of 32 weight rows, full and not; a depth that ends
// inside a warp's piece, inside a stage, before the last block of a cluster and after more stages
// than the ring has, and that one block has alone (2056 x 1300 from 33 rows on), or two (from 17),
// four (up to 16) or eight share (10248 x 70). Time slices of a batch, unless the rows are prime;
// bias, accumulation and both dtypes of y in turn.
void expect_skinny_on_every_cut(Device device) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes{
      {8, 5},      {40, 83},   {48, 1536},  {136, 640},  {768, 3072}, {1288, 33},
      {10248, 70}, {1536, 80}, {1536, 768}, {520, 5003}, {5120, 192}, {2056, 1300}};
  Stream stream(device);
  std::size_t turn = 0, kind = 0;
  for (const auto& [in, out] : shapes) {
    const DType dtype = ++kind % 2 == 0 ? DType::bf16 : DType::f16;
    Random random(6);
    const Tensor all = random.normal_tensor({64, in}, dtype);
    const Tensor weight = random.normal_tensor({out, in}, dtype);
    const Tensor bias = kind % 3 == 0 ? random.normal_tensor({out}, dtype) : Tensor();
    const auto reference = testing::matmul_reference(all, weight, bias);
    const Padded weights(weight, device, 16);
    const Tensor x = all.to(device), moved_bias = bias ? bias.to(device) : Tensor();
    for (const std::int64_t rows : {1, 7, 9, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64}) {
      const DType y_dtype = ++turn / 2 % 2 == 0 ? dtype : DType::f32;
      const std::int64_t batch = rows % 3 == 0 ? 3 : rows % 2 == 0 ? 2 : 1;
      const std::int64_t time = rows / batch;
      const Tensor old = random.normal_tensor({rows, out}, y_dtype);
      const bool accumulate = turn % 5 == 0;
      auto expected = reference;
      expected.resize(static_cast<std::size_t>(rows * out));
      const std::vector<double> before = testing::values(old);
      for (std::size_t i = 0; accumulate && i < expected.size(); ++i) {
        expected[i].value += before[i];
        expected[i].bound +=
            testing::f32_roundoff * (std::abs(expected[i].value) + expected[i].bound);
      }
      const Guarded xs({batch, time + 1, in}, dtype, device, 8);
      const Guarded y({batch, time + 1, out}, y_dtype, device, 3);
      const Tensor moved_old = old.to(device);
      copy(x.view().rows(0, rows).reshape({batch, time, in}), xs.view().steps(0, time), stream);
      copy(moved_old.view().reshape({batch, time, out}), y.view().steps(1, time), stream);
      Matmul op = operation(xs.view().steps(0, time), weights.view(),
                            bias ? moved_bias.view() : ConstTensorView(), y.view().steps(1, time));
      op.accumulate = accumulate;
      ASSERT_TRUE(cuda::can_run(op, MatmulPlan::skinny));
      cuda::run(op, stream, MatmulPlan::skinny);
      stream.synchronize();
      const std::string what = std::string(name_of(dtype)) + ", in " + std::to_string(in) +
                               ", out " + std::to_string(out) + ", rows " + std::to_string(rows);
      expect_within(op.y, expected, what);
      y.expect_untouched(what);
      for (const double value : testing::values(y.view().steps(0, 1))) {
        ASSERT_TRUE(std::isnan(value)) << what;
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}
TEST_EACH(CudaMatmul, SkinnyOnEveryCut, testing::CudaDevice device) {
  expect_skinny_on_every_cut(device);
}

// Products that begin early, each of what the one before it left, with weights read before their
// turn: the bits of products that wait for each other. Four results take turns, so that one that is
// read too early or too late shows.
TEST_EACH(CudaMatmul, AChainGivesTheBitsOfSingleProducts, testing::CudaDevice device) {
  Random random(7);
  const std::int64_t widths[] = {768, 3072, 80, 1536, 768};
  for (const std::int64_t rows : {1, 4, 8, 16, 40, 64}) {
    std::vector<Tensor> weights, chained, single;
    const Tensor x = random.normal_tensor({rows, widths[0]}, DType::bf16).to(device);
    for (int i = 0; i < 16; ++i) {
      const Shape shape{widths[i % 4 + 1], widths[i % 4]};
      Tensor weight = random.normal_tensor(shape, DType::f32);
      for (std::int64_t k = 0; k < weight.count(); ++k) {
        weight.data<float>()[k] *= 1 / std::sqrt(static_cast<float>(shape[1]));
      }
      Tensor rounded(shape, DType::bf16);
      copy(weight, rounded, default_stream());
      weights.push_back(rounded.to(device));
      if (i >= 4) continue;
      chained.emplace_back(Shape{rows, shape[0]}, DType::bf16, device);
      single.emplace_back(Shape{rows, shape[0]}, DType::bf16, device);
    }
    Stream stream(device);
    const auto run_all = [&](std::vector<Tensor>& ys, Stream& on, bool waits) {
      for (std::size_t i = 0; i < weights.size(); ++i) {
        run(operation(i == 0 ? x : ys[(i - 1) % 4], weights[i], {}, ys[i % 4]), on);
        if (waits) on.synchronize();
      }
    };
    run_all(single, stream, true);
    const Graph graph = Graph::record(stream, [&](Stream& recorded) {
      const detail::ConstantWeights constant(recorded);
      for (int i = 0; i < 4; ++i) run_all(chained, recorded, false);
    });
    for (int replay = 0; replay < 8; ++replay) graph.replay();
    stream.synchronize();
    for (std::size_t i = 0; i < single.size(); ++i) {
      ASSERT_EQ(bits(chained[i]), bits(single[i])) << rows << " rows, result " << i;
    }
  }
}

TEST(CudaMatmul, ThePlanFollowsTheShape) {
  const auto plan_of = [](std::int64_t rows, std::int64_t in, std::int64_t out, DType dtype,
                          std::uintptr_t offset = 0) {
    const auto view = [&](const Shape& shape) {  // never read
      return TensorView(reinterpret_cast<void*>(4096 + offset), shape, dtype, Device::cuda());
    };
    return cuda::plan(operation(view({rows, in}), view({out, in}), {}, view({rows, out})));
  };
  EXPECT_EQ(plan_of(1, 768, 3072, DType::bf16), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(8, 48, 1536, DType::f16), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(9, 48, 1536, DType::f16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(64, 1536, 80, DType::bf16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(65, 1536, 80, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(64, 1536, 80, DType::f32), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(64, 1532, 80, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(64, 1536, 80, DType::bf16, 8), MatmulPlan::blaslt);
  // 128 tiles to the depth at which all that they fetch is too much for the skinny kernel.
  EXPECT_EQ(plan_of(16, 1560, 4096, DType::bf16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(16, 1568, 4096, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(17, 1560, 4096, DType::bf16), MatmulPlan::blaslt);
  // 200 tiles, in one to four rows of them, and the first that is too many.
  EXPECT_EQ(plan_of(16, 64, 6400, DType::bf16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(16, 64, 6401, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(32, 64, 3200, DType::bf16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(33, 64, 3200, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(64, 64, 1600, DType::bf16), MatmulPlan::skinny);
  EXPECT_EQ(plan_of(64, 64, 1601, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(64, 2560, 10240, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(9, 47, 1531, DType::f32), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(9, 0, 5, DType::f32), MatmulPlan::tiled);
  EXPECT_EQ(plan_of(2, 768, 50280, DType::bf16), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(3, 768, 50280, DType::bf16), MatmulPlan::blaslt);
  EXPECT_EQ(plan_of(8, 768, 50280, DType::f32), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(3, 768, 50280, DType::bf16, 2), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(3, 767, 50280, DType::bf16), MatmulPlan::gemv);
}

// The first product of a stream may be one that is being recorded, and gives the bits of any other.
TEST_EACH(CudaMatmul, AFirstCallCanBeRecorded, testing::CudaDevice device,
          testing::OneOf<DType::bf16, DType::f32> dtype) {
  Random random(4);
  const Tensor x = random.normal_tensor({300, 768}, DType::bf16).to(device);
  const Tensor weight = random.normal_tensor({80, 768}, DType::bf16).to(device);
  const Tensor bias = random.normal_tensor({80}, DType::bf16).to(device);
  for (const std::int64_t rows : {1, 5, 40, 300}) {
    Tensor eager({rows, 80}, dtype, device);
    Tensor replayed({rows, 80}, dtype, device);
    Stream first(device);
    Stream second(device);
    run(operation(x.view().rows(0, rows), weight, bias, eager), first);
    const Graph graph = Graph::record(second, [&](Stream& stream) {
      run(operation(x.view().rows(0, rows), weight, bias, replayed), stream);
    });
    graph.replay();
    first.synchronize();
    second.synchronize();
    EXPECT_EQ(bits(eager), bits(replayed)) << rows;
  }
}

// The same shape gives the same bits in a dense tensor and in a slice of a wider one of equal
// alignment.
TEST_EACH(CudaMatmul, ThePitchDoesNotMatter, testing::CudaDevice device, DType dtype) {
  Random random(5);
  Stream stream(device);
  const Tensor x = random.normal_tensor({130, 160}, dtype).to(device);
  const Tensor weight = random.normal_tensor({96, 160}, dtype).to(device);
  for (const std::int64_t rows : {1, 4, 8, 20, 64, 130}) {
    Tensor y({rows, 96}, dtype, device);
    run(operation(x.view().rows(0, rows), weight, {}, y), stream);
    const Padded wide(x.view().rows(0, rows), device, 32);
    Guarded y_wide({rows, 96}, dtype, device, 64);
    run(operation(wide.view(), weight, {}, y_wide.view()), stream);
    stream.synchronize();
    EXPECT_EQ(bits(y), bits(y_wide.view())) << rows << " " << name_of(dtype);
  }
}

TEST_EACH(CudaMatmulLimits, OneRowThroughEveryRing, testing::LesserDevice lesser,
          testing::CudaDevice device, DType dtype) {
  const cuda::LimitedDevices limited(lesser.limits);
  expect_one_row_through_every_ring(device, dtype);
}
TEST_EACH(CudaMatmulLimits, SkinnyOnEveryCut, testing::LesserDevice lesser,
          testing::CudaDevice device) {
  const cuda::LimitedDevices limited(lesser.limits);
  expect_skinny_on_every_cut(device);
}

}  // namespace
}  // namespace mamba
#endif
