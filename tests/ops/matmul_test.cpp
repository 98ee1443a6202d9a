#include <algorithm>
#include <limits>
#include <numeric>

#include <mamba/device.hpp>
#include <mamba/ops.hpp>

#include "detail/backend.hpp"
#include "each.hpp"
#include "host/ops/matmul/matmul.hpp"
#include "ops/dense_reference.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using host::MatmulPlan;

constexpr std::pair<MatmulPlan, const char*> all_plans[] = {
    {MatmulPlan::gemv, "gemv"},
    {MatmulPlan::gemm_few_rows, "gemm_few_rows"},
    {MatmulPlan::gemm_few_columns, "gemm_few_columns"},
    {MatmulPlan::gemm_columns, "gemm_columns"},
    {MatmulPlan::gemm_rows, "gemm_rows"}};

// A plan on the CPU, or a device that chooses one itself.
struct Planned {
  Device device;
  const std::pair<MatmulPlan, const char*>* plan;
};

}  // namespace

template <>
struct testing::Every<Planned> {
  static std::vector<Planned> all() {
    std::vector<Planned> list;
    for (const auto& plan : all_plans) list.push_back({Device::cpu(), &plan});
    for (const CudaDevice device : Every<CudaDevice>::all()) list.push_back({device, nullptr});
    return list;
  }
  static std::string name(const Planned& planned) {
    const std::string device = Every<Device>::name(planned.device);
    return planned.plan == nullptr ? device : device + "_" + planned.plan->second;
  }
};

namespace {

using host::Words;
using testing::Bounded;
using testing::each_backend;
using testing::expect_error;
using testing::expect_within;
using testing::Guarded;
using testing::Padded;
using testing::Random;

const std::vector<std::int64_t> sizes{1, 2, 3, 15, 16, 17, 48, 80, 127, 1536};
const std::vector<std::int64_t> row_counts{1, 2, 7, 8, 9, 33};

// Random operands on the CPU, and the result they should give.
struct Case {
  Tensor x, weight, bias;
  std::vector<Bounded> expected;

  Case(std::int64_t rows, std::int64_t in, std::int64_t out, DType dtype, bool with_bias,
       std::uint64_t seed = 1) {
    Random random(seed);
    x = random.normal_tensor({rows, in}, dtype);
    weight = random.normal_tensor({out, in}, dtype);
    if (with_bias) bias = random.normal_tensor({out}, dtype);
    expected = testing::matmul_reference(x, weight, bias);
  }
  std::vector<Bounded> first_rows(std::int64_t rows) const {
    return {expected.begin(), expected.begin() + rows * weight.dim(0)};
  }
  std::string name() const {
    return "x " + x.shape().to_string() + ", weight " + weight.shape().to_string() + ", " +
           name_of(x.dtype());
  }
};

Matmul operation(ConstTensorView x, ConstTensorView weight, ConstTensorView bias, TensorView y) {
  Matmul op;
  op.x = x;
  op.weight = weight;
  op.bias = bias;
  op.y = y;
  return op;
}

// Both output dtypes a Matmul of `dtype` can have.
std::vector<DType> outputs_of(DType dtype) {
  if (dtype == DType::f32) return {DType::f32};
  return {dtype, DType::f32};
}

// By this plan if it can, in words of every kind that it can.
template <class Check>
void run_planned(const Matmul& op, Stream& stream, const Planned& planned, Check check) {
  if (planned.plan == nullptr) {
    run(op, stream);
    stream.synchronize();
    return check("cuda");
  }
  const auto& [plan, name] = *planned.plan;
  for (const Words words : {Words::f32, Words::bf16_pairs}) {
    if (!host::can_run(op, plan) || !host::can_run(op, words)) continue;
    host::run(op, stream, plan, words);
    check(name + std::string(words == Words::f32 ? " in f32" : " in pairs"));
  }
}

// Every plan that can do it on the CPU; elsewhere the one that is chosen.
template <class Check>
void run_each_plan(const Matmul& op, Stream& stream, Check check) {
  for (const Planned& planned : testing::Every<Planned>::all()) {
    if (planned.device == stream.device()) run_planned(op, stream, planned, check);
  }
}

TEST_EACH(Matmul, MatchesTheReferenceInEveryShape, Device device, DType dtype) {
  std::size_t turn = 0;  // alternates bias and output dtype through the shapes
  for (const std::int64_t in : sizes) {
    for (const std::int64_t out : sizes) {
      if (in * out > 1536 * 127) continue;
      const Case c(33, in, out, dtype, ++turn % 2 == 0);
      each_backend(device, [&] {
        Stream stream(device, 1);  // the other tests cut the work over threads
        const Tensor x = c.x.to(device);
        const Tensor weight = c.weight.to(device);
        const Tensor bias = c.bias.to(device);
        for (const std::int64_t rows : row_counts) {
          const auto outputs = outputs_of(dtype);
          const DType y_dtype = outputs[turn / 2 % outputs.size()];
          const std::vector<Bounded> expected = c.first_rows(rows);
          Guarded y({rows, out}, y_dtype, device);
          const Matmul op = operation(x.view().rows(0, rows), weight, bias, y.view());
          run(op, stream);
          stream.synchronize();
          const std::string what = c.name() + ", rows " + std::to_string(rows);
          expect_within(y.view(), expected, what);
          y.expect_untouched(what);
        }
      });
      if (HasFatalFailure()) return;
    }
  }
}

TEST_EACH(Matmul, EveryPlanOnStridedOperands, Planned planned, DType dtype) {
  const Device device = planned.device;
  std::size_t taken = 0;
  for (const Shape& size : {Shape{1, 1}, {3, 17}, {48, 80}, {127, 15}, {80, 700}, {1536, 16}}) {
    const std::int64_t in = size[0];
    const std::int64_t out = size[1];
    for (const bool with_bias : {false, true}) {
      const Case c(33, in, out, dtype, with_bias);
      each_backend(device, [&] {
        for (const std::int64_t rows : row_counts) {
          for (const DType y_dtype : outputs_of(dtype)) {
            const Padded x(c.x.view().rows(0, rows), device, 5);
            const Padded weight(c.weight, device, 3);
            const Tensor bias = c.bias.to(device);
            Guarded y({rows, out}, y_dtype, device, 7);
            Stream stream(device, 3);
            const Matmul op = operation(x.view(), weight.view(), bias, y.view());
            run_planned(op, stream, planned, [&](const std::string& plan) {
              ++taken;
              expect_within(y.view(), c.first_rows(rows), c.name() + ", " + plan);
              y.expect_untouched(c.name() + ", " + plan);
              zero(y.view(), stream);  // the next plan must write everything again
            });
          }
        }
      });
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(taken, 0u);
}

TEST_EACH(Matmul, TimeSlicesOfABatch, Device device, DType dtype) {
  for (const std::int64_t time : {1, 3, 7}) {
    Random random(5);
    const std::int64_t batch = 3, in = 33, out = 20;
    const Tensor whole = random.normal_tensor({batch, 9, in + 4}, dtype);
    const ConstTensorView slice = whole.view().steps(1, time).columns(2, in);
    Tensor dense({batch, time, in}, dtype);
    copy(slice, dense, default_stream());
    const Tensor weight = random.normal_tensor({out, in}, dtype);
    Tensor rows({batch * time, in}, dtype);
    copy(dense.view().reshape({batch * time, in}), rows, default_stream());
    const auto expected = testing::matmul_reference(rows, weight, {});

    const Tensor moved = whole.to(device);
    const Tensor moved_weight = weight.to(device);
    const Guarded y({batch, 9, out}, dtype, device);
    Stream stream(device, 2);
    const Matmul op = operation(moved.view().steps(1, time).columns(2, in), moved_weight, {},
                                y.view().steps(2, time));
    run_each_plan(op, stream, [&](const std::string& plan) {
      expect_within(op.y, expected, plan);
      for (const auto& outside : {y.view().steps(0, 2), y.view().steps(2 + time, 7 - time)}) {
        for (const double value : testing::values(outside)) ASSERT_TRUE(std::isnan(value));
      }
    });
  }
}

TEST_EACH(Matmul, RankOneIsOneRow, Device device) {
  const Case c(1, 48, 31, DType::f32, true);
  const Tensor x = c.x.to(device), weight = c.weight.to(device), bias = c.bias.to(device);
  const Guarded y({31}, DType::f32, device);
  run(operation(x.view().reshape({48}), weight, bias, y.view()), default_stream(device));
  expect_within(y.view(), c.expected, "rank 1");
  y.expect_untouched("rank 1");
}

TEST_EACH(Matmul, ASumOfNothingIsTheBiasOrZero, Device device) {
  for (const std::int64_t rows : {1, 3, 8, 9, 20}) {
    const Tensor x({rows, 0}, DType::f32, device);
    const Tensor weight({5, 0}, DType::f32, device);
    const Tensor bias = Tensor::from<float>({1, 2, 3, 4, 5}, {5}).to(device);
    Stream stream(device, 2);
    for (const bool with_bias : {false, true}) {
      Guarded y({rows, 5}, DType::f32, device, 2);
      const Matmul op = operation(x, weight, with_bias ? bias.view() : ConstTensorView(), y.view());
      run_each_plan(op, stream, [&](const std::string& plan) {
        const std::vector<double> got = testing::values(y.view());
        for (std::size_t i = 0; i < got.size(); ++i) {
          ASSERT_EQ(got[i], with_bias ? static_cast<double>(i % 5 + 1) : 0.0) << plan;
        }
      });
      y.expect_untouched("in == 0");
    }
  }
}

TEST_EACH(Matmul, NoRowsAndNoColumnsAreLegal, Device device) {
  Stream& stream = default_stream(device);
  const Tensor x({0, 4}, DType::bf16, device), weight({3, 4}, DType::bf16, device);
  Tensor y({0, 3}, DType::bf16, device);
  run(operation(x, weight, {}, y), stream);
  const Tensor x2({2, 4}, DType::bf16, device), weight2({0, 4}, DType::bf16, device);
  Tensor y2({2, 0}, DType::bf16, device);
  run(operation(x2, weight2, {}, y2), stream);
}

TEST(Matmul, TheBoundRejectsSumsInBf16) {
  const Case c(4, 80, 16, DType::bf16, false);
  const std::vector<double> x = testing::values(c.x);
  const std::vector<double> weight = testing::values(c.weight);
  int outside = 0;
  for (std::size_t r = 0; r < 4; ++r) {
    for (std::size_t o = 0; o < 16; ++o) {
      bf16 sum(0.0f);
      for (std::size_t i = 0; i < 80; ++i) {
        const double next =
            static_cast<double>(static_cast<float>(sum)) + x[r * 80 + i] * weight[o * 80 + i];
        sum = bf16(static_cast<float>(next));
      }
      const Bounded& expected = c.expected[r * 16 + o];
      const double error = std::abs(static_cast<double>(static_cast<float>(sum)) - expected.value);
      outside += error > expected.bound + testing::f32_roundoff * std::abs(expected.value) ? 1 : 0;
    }
  }
  EXPECT_GE(outside, 60);  // of 64
}

TEST_EACH(Matmul, TheBiasIsAddedBeforeRounding, Device device) {
  // The sum 1 + 2^-8 lies half-way between two bf16 and would round to 1; the bias lifts it.
  for (const std::int64_t rows : {1, 8, 9, 40}) {
    const std::vector<float> ones(static_cast<std::size_t>(2 * rows), 1);
    const Tensor x = Tensor::from<float>(ones, {rows, 2}).to(device, DType::bf16);
    const Tensor weight = Tensor::from<float>({1, 0x1p-8f}, {1, 2}).to(device, DType::bf16);
    const Tensor bias = Tensor::from<float>({0x1p-9f}, {1}).to(device, DType::bf16);
    Tensor y({rows, 1}, DType::bf16, device);
    Stream stream(device, 2);
    run_each_plan(operation(x, weight, bias, y), stream, [&](const std::string& plan) {
      for (const double value : testing::values(y)) ASSERT_EQ(value, 1 + 0x1p-7) << plan;
    });
  }
}

TEST_EACH(Matmul, SameBitsTwiceAndInEveryPlace, Device device, DType dtype) {
  for (const std::int64_t rows : {1, 5, 40}) {
    const Case c(rows, 127, 77, dtype, true);
    const Tensor x = c.x.to(device), weight = c.weight.to(device), bias = c.bias.to(device);
    std::vector<unsigned char> first;
    for (int i = 0; i < 4; ++i) {
      Tensor y({rows, 77}, dtype, device);
      Stream stream(device, 2);
      run(operation(x, weight, bias, y), stream);
      stream.synchronize();
      if (i == 0) first = testing::bits(y);
      EXPECT_EQ(first, testing::bits(y));
    }
  }
}

// Our own kernel adds every row up in the same order, whoever else is there and however many
// threads.
TEST_EACH(Matmul, TheGemvGivesARowTheSameBitsInAnyCompany, DType dtype) {
  testing::for_each_target([&](const char*) {
    const Case c(8, 127, 77, dtype, true);
    std::vector<unsigned char> all;
    for (const int threads : {1, 3}) {
      for (const std::int64_t rows : {8, 7, 3, 2, 1}) {
        Tensor y({rows, 77}, dtype);
        Stream stream(Device::cpu(), threads);
        const Matmul op = operation(c.x.view().rows(0, rows), c.weight, c.bias, y);
        host::run(op, stream, MatmulPlan::gemv, Words::f32);
        const std::vector<unsigned char> got = testing::bits(y);
        if (all.empty()) all = got;
        EXPECT_TRUE(std::equal(got.begin(), got.end(), all.begin()));
      }
    }
  });
}

TEST_EACH(Matmul, ANonFiniteRowLeavesTheOthersAlone, Device device) {
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  const auto inf = std::numeric_limits<float>::infinity();
  each_backend(device, [&] {
    for (const std::int64_t rows : {2, 3, 8, 9, 33}) {
      for (const float bad : {nan, inf}) {
        Case c(rows, 50, 21, DType::f32, false);
        c.x.data<float>()[50 * (rows / 2) + 7] = bad;
        const Tensor x = c.x.to(device), weight = c.weight.to(device);
        Tensor y({rows, 21}, DType::f32, device);
        Stream stream(device, 2);
        run_each_plan(operation(x, weight, {}, y), stream, [&](const std::string& plan) {
          const std::vector<double> got = testing::values(y);
          for (std::size_t i = 0; i < got.size(); ++i) {
            const bool own = static_cast<std::int64_t>(i) / 21 == rows / 2;
            ASSERT_EQ(std::isfinite(got[i]), !own) << plan << ", element " << i;
            if (!own) {
              ASSERT_NEAR(got[i], c.expected[i].value, c.expected[i].bound + 1e-6) << plan;
            }
          }
        });
      }
    }
  });
}

TEST(Matmul, ThePlanFollowsTheShape) {
  const auto plan_of = [](std::int64_t rows, std::int64_t in, std::int64_t out) {
    Tensor x({rows, in}, DType::f32), weight({out, in}, DType::f32), y({rows, out}, DType::f32);
    return host::plan(operation(x, weight, {}, y));
  };
  EXPECT_EQ(plan_of(1, 768, 3072), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(8, 48, 1536), MatmulPlan::gemv);
  EXPECT_EQ(plan_of(9, 768, 3072), MatmulPlan::gemm_few_rows);
  EXPECT_EQ(plan_of(64, 1536, 80), MatmulPlan::gemm_few_rows);
  EXPECT_EQ(plan_of(4096, 128, 4), MatmulPlan::gemm_few_columns);
  EXPECT_EQ(plan_of(4096, 128, 9), MatmulPlan::gemm_rows);
  EXPECT_EQ(plan_of(512, 1536, 80), MatmulPlan::gemm_rows);
  EXPECT_EQ(plan_of(512, 48, 1536), MatmulPlan::gemm_columns);
}

// run() runs what plan() says: the GEMV and the others round differently, so the bits tell which
// one ran.
TEST(Matmul, ThePlannedKernelIsTheOneThatRuns) {
  for (const std::int64_t rows : {8, 9}) {
    const Case c(rows, 1536, 48, DType::f32, false);
    Stream stream(Device::cpu(), 2);
    Tensor y({rows, 48}, DType::f32);
    const Matmul op = operation(c.x, c.weight, {}, y);
    run(op, stream);
    const std::vector<unsigned char> chosen = testing::bits(y);
    for (const auto& [plan, name] : all_plans) {
      if (!host::can_run(op, plan)) continue;
      host::run(op, stream, plan, Words::f32);
      const bool both_gemm = plan != MatmulPlan::gemv && host::plan(op) != MatmulPlan::gemv;
      EXPECT_EQ(testing::bits(y) == chosen, both_gemm || plan == host::plan(op)) << rows << name;
    }
  }
  Tensor x({9, 4}, DType::f32), weight({3, 4}, DType::f32), y({9, 3}, DType::f32);
  EXPECT_FALSE(host::can_run(operation(x, weight, {}, y), MatmulPlan::gemv));
}

// Beyond the GEMV a row has the same bits whatever the other rows, the plan and the threads: in
// several pieces of the depth and blocks of columns and rows, with what is left over of each.
TEST_EACH(Matmul, AGemmGivesARowTheSameBitsInAnyCompany, DType dtype) {
  testing::for_each_target([&](const char*) {
    const Case c(130, 601, 301, dtype, true);
    for (const Words words : {Words::f32, Words::bf16_pairs}) {
      std::vector<unsigned char> all;
      for (const std::int64_t rows : {130, 101, 64, 33, 17, 9, 1}) {
        for (const auto& [plan, name] : all_plans) {
          if (plan == MatmulPlan::gemv) continue;
          for (const int threads : {1, 3}) {
            Tensor y({rows, 301}, dtype);
            Stream stream(Device::cpu(), threads);
            const Matmul op = operation(c.x.view().rows(0, rows), c.weight, c.bias, y);
            if (!host::can_run(op, words)) continue;
            host::run(op, stream, plan, words);
            const std::vector<unsigned char> got = testing::bits(y);
            if (all.empty()) {
              all = got;
              expect_within(y, c.expected, c.name());
            }
            EXPECT_TRUE(std::equal(got.begin(), got.end(), all.begin()))
                << c.name() << rows << name;
          }
        }
      }
    }
  });
}

// What the processor can do is used: no product falls to slower kernels because the processor is
// younger than they are.
TEST(Matmul, TheKernelsAreTheBestThatTheProcessorHas) {
  const std::string kernels = cpu_kernels();
  RecordProperty("kernels", kernels);
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
      __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16") != 0;
  const std::string target = kernels.substr(0, kernels.find(','));
  if (avx512) {
    EXPECT_EQ(target, "AVX3");
  } else if (avx2) {
    EXPECT_EQ(target, "AVX2");
  }
  const bool intel = __builtin_cpu_is("intel") != 0;
  EXPECT_EQ(kernels.substr(target.size()), pairs && !intel ? ", bf16 in pairs" : ", bf16 as f32");
  const Case c(9, 32, 32, DType::bf16, false);
  Tensor y({9, 32}, DType::bf16);
  const Matmul op = operation(c.x, c.weight, {}, y);
  EXPECT_EQ(host::can_run(op, Words::bf16_pairs), pairs);
  EXPECT_EQ(host::words_of(op), pairs && !intel ? Words::bf16_pairs : Words::f32);
#elif defined(__aarch64__)
  EXPECT_EQ(kernels, "NEON, bf16 as f32");
#endif
}

TEST(Matmul, WrongOperandsAreNamed) {
  Stream& stream = default_stream();
  Tensor x({2, 5, 8}, DType::bf16), weight({3, 8}, DType::bf16), bias({3}, DType::bf16);
  Tensor y({2, 5, 3}, DType::bf16);
  const Matmul good = operation(x, weight, bias, y);
  const auto expect = [&](const std::string& text, auto change) {
    Matmul op = good;
    change(op);
    expect_error<ArgumentError>("matmul: " + text, [&] { run(op, stream); });
  };
  Tensor other({2, 5, 7}, DType::bf16), f16s({3, 8}, DType::f16), f32s({2, 5, 3}, DType::f32);
  Tensor ids({2, 5, 8}, DType::i32), narrow({2}, DType::bf16), halves({2, 5, 3}, DType::f16);
  Tensor four({1, 2, 5, 8}, DType::bf16), four_y({1, 2, 5, 3}, DType::bf16);
  expect("weight: expected a tensor, got none", [](Matmul& op) { op.weight = {}; });
  expect("weight: expected 2 dimensions, got [3]", [&](Matmul& op) { op.weight = bias; });
  expect("x: expected a tensor, got none", [](Matmul& op) { op.x = {}; });
  expect("x: expected [2, 5, 8], got [2, 5, 7]", [&](Matmul& op) { op.x = other; });
  expect("x: expected f32 or bf16 or f16, got i32", [&](Matmul& op) { op.x = ids; });
  expect("weight: expected bf16, got f16", [&](Matmul& op) { op.weight = f16s; });
  expect("bias: expected [3], got [2]", [&](Matmul& op) { op.bias = narrow; });
  expect("y: expected a tensor, got none", [](Matmul& op) { op.y = {}; });
  expect("y: expected bf16 or f32, got f16", [&](Matmul& op) { op.y = halves; });
  expect("y: expected [2, 5, 3], got [2, 5, 7]", [&](Matmul& op) { op.y = other; });
  expect("x: expected at most 3 dimensions, got [1, 2, 5, 8]", [&](Matmul& op) {
    op.x = four;
    op.y = four_y;
  });
  Matmul wide = good;
  wide.y = f32s;
  run(wide, stream);
}

}  // namespace
}  // namespace mamba
