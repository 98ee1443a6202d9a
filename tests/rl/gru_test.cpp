// The GRU of the example library mamba_rl against loops in double, finite differences and PyTorch.
#include "rl/gru/gru.hpp"

#include <array>

#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>
#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "finite_differences.hpp"
#include "model/slopes.hpp"
#include "testing.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Shape;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::Bounded;
using mamba::testing::devices;
using mamba::testing::f32_roundoff;
using mamba::testing::Random;
using mamba::testing::relative_error;
using mamba::testing::values;

// Some forty roundings a step, each of a number of about one, and gates that shrink what came
// before: relative to the whole.
constexpr double bound = 100 * f32_roundoff;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// h after a step, of the arguments of r and z, the two parts of n's and h before it.
double next_h(const std::array<double, 5>& from) {
  const double z = sigmoid(from[1]);
  return (1 - z) * std::tanh(from[2] + sigmoid(from[0]) * from[3]) + z * from[4];
}

// On CUDA 16, 32 and 64 have kernels of their own.
constexpr std::int64_t sizes[] = {1, 6, 16, 32, 64};

struct Case {
  std::int64_t batch, time, hidden;
  std::vector<double> inputs, weight, bias, initial, reset, dy, dfinal;
  std::vector<double> input_bias;  // added to the inputs; zeros
  // What forward() meets on its way: h before each step, and the slopes of the one after it.
  mutable std::vector<double> before, slopes;

  Case(std::int64_t b, std::int64_t t, std::int64_t h, std::uint64_t seed)
      : batch(b), time(t), hidden(h) {
    Random random(seed);
    const auto draw = [&](std::int64_t count, double deviation) {
      std::vector<double> list;
      for (std::int64_t i = 0; i < count; ++i) {
        list.push_back(static_cast<float>(random.normal(deviation)));
      }
      return list;
    };
    inputs = draw(b * t * 3 * h, 1);
    weight = draw(3 * h * h, 1 / std::sqrt(static_cast<double>(h)));
    bias = draw(3 * h, 0.5);
    initial = draw(b * h, 1);
    dy = draw(b * t * h, 1);
    dfinal = draw(b * h, 1);
    input_bias.assign(static_cast<std::size_t>(3 * h), 0.0);
    for (std::int64_t i = 0; i < b * t; ++i) reset.push_back(random.integer(0, 5) == 0 ? 1 : 0);
  }

  // y, and the final state after it.
  std::vector<double> forward() const {
    const auto n = static_cast<std::size_t>(hidden);
    std::vector<double> y;
    std::vector<double> finals;
    before.clear();
    slopes.assign(static_cast<std::size_t>(batch * time) * 5 * n, 0.0);
    for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b) {
      const auto from = initial.begin() + static_cast<std::ptrdiff_t>(b * n);
      std::vector<double> h(from, from + static_cast<std::ptrdiff_t>(n));
      for (std::size_t t = 0; t < static_cast<std::size_t>(time); ++t) {
        const std::size_t step = b * static_cast<std::size_t>(time) + t;
        if (reset[step] != 0) h.assign(n, 0.0);
        before.insert(before.end(), h.begin(), h.end());
        std::vector<double> next(n);
        for (std::size_t c = 0; c < n; ++c) {
          double g[3], i[3];
          for (std::size_t k = 0; k < 3; ++k) {
            i[k] = inputs[step * 3 * n + k * n + c] + input_bias[k * n + c];
            g[k] = bias[k * n + c];
            for (std::size_t j = 0; j < n; ++j) g[k] += weight[(k * n + c) * n + j] * h[j];
          }
          std::array<double, 5> of = {i[0] + g[0], i[1] + g[1], i[2], g[2], h[c]};
          next[c] = next_h(of);
          for (std::size_t k = 0; k < 5; ++k) {
            constexpr double apart = 1e-5;
            of[k] += apart;
            const double above = next_h(of);
            of[k] -= 2 * apart;
            slopes[step * 5 * n + k * n + c] = (above - next_h(of)) / (2 * apart);
            of[k] += apart;
          }
        }
        h = next;
        y.insert(y.end(), h.begin(), h.end());
      }
      finals.insert(finals.end(), h.begin(), h.end());
    }
    y.insert(y.end(), finals.begin(), finals.end());
    return y;
  }
  double loss() const {
    const std::vector<double> y = forward();
    double sum = 0;
    for (std::size_t i = 0; i < dy.size(); ++i) sum += y[i] * dy[i];
    for (std::size_t i = 0; i < dfinal.size(); ++i) sum += y[dy.size() + i] * dfinal[i];
    return sum;
  }
};

// The same on a device.
struct There {
  Tensor inputs, weight, bias, initial, reset, dy, dfinal;
  Tensor y, final_state, before, slopes, dgates, dweight, dbias, dinput_bias, dinitial;

  There(const Case& c, Device device)
      : inputs(f32(c.inputs, {c.batch, c.time, 3 * c.hidden}, device)),
        weight(f32(c.weight, {3 * c.hidden, c.hidden}, device)),
        bias(f32(c.bias, {3 * c.hidden}, device)),
        initial(f32(c.initial, {c.batch, c.hidden}, device)),
        reset(Tensor::from(std::vector<std::int32_t>(c.reset.begin(), c.reset.end()),
                           {c.batch, c.time})
                  .to(device)),
        dy(f32(c.dy, {c.batch, c.time, c.hidden}, device)),
        dfinal(f32(c.dfinal, {c.batch, c.hidden}, device)),
        y(dy.shape(), DType::f32, device),
        final_state(initial.shape(), DType::f32, device),
        before(dy.shape(), DType::f32, device),
        slopes(dy.shape().with(2, 5 * c.hidden), DType::f32, device),
        dgates(dy.shape().with(2, 4 * c.hidden), DType::f32, device),
        dweight(weight.shape(), DType::f32, device),
        dbias(bias.shape(), DType::f32, device),
        dinput_bias(bias.shape(), DType::f32, device),
        dinitial(initial.shape(), DType::f32, device) {}

  static Tensor f32(const std::vector<double>& v, const Shape& shape, Device device) {
    return Tensor::from(std::vector<float>(v.begin(), v.end()), shape).to(device);
  }
  GruSequence forward() {
    GruSequence op;
    op.inputs = inputs;
    op.weight = weight;
    op.bias = bias;
    op.initial_state = initial;
    op.final_state = final_state;
    op.reset = reset;
    op.y = y;
    op.before = before;
    op.slopes = slopes;
    return op;
  }
  GruSequenceGrad backward() {
    GruSequenceGrad op;
    op.weight = weight;
    op.reset = reset;
    op.before = before;
    op.slopes = slopes;
    op.dy = dy;
    op.dfinal_state = dfinal;
    op.dinitial_state = dinitial;
    op.dgates = dgates;
    op.dweight = dweight;
    op.dbias = dbias;
    op.dinput_bias = dinput_bias;
    return op;
  }
  // Of the inputs, dense.
  Tensor dinputs() const {
    const std::int64_t hidden = dgates.dim(2) / 4;
    Stream stream(dgates.device());
    Tensor dense(dgates.shape().with(2, 3 * hidden), DType::f32, dgates.device());
    mamba::copy(dgates.view().columns(0, 3 * hidden), dense, stream);
    stream.synchronize();
    return dense;
  }
};

TEST_EACH(RlGru, IsTheFormula, Device device) {
  for (const std::int64_t hidden : sizes) {
    for (const std::int64_t time : {1, 2, 37}) {
      const Case c(5, time, hidden, 11);
      There there(c, device);
      Stream stream(device);
      run(there.forward(), stream);
      stream.synchronize();
      std::vector<double> got = values(there.y);
      const std::vector<double> finals = values(there.final_state);
      got.insert(got.end(), finals.begin(), finals.end());
      EXPECT_LE(relative_error(got, c.forward()), bound) << device.name() << " " << hidden;
    }
  }
}

// h before each step, and what h after it changes by (finite differences), with the gradient's
// operands and without.
TEST_EACH(RlGru, LeavesWhatTheGradientNeeds, Device device) {
  for (const std::int64_t hidden : sizes) {
    const Case c(3, 37, hidden, 16);
    There with(c, device), without(c, device);
    Stream stream(device);
    run(with.forward(), stream);
    GruSequence op = without.forward();
    op.before = op.slopes = {};
    run(op, stream);
    stream.synchronize();
    c.forward();
    EXPECT_LE(relative_error(values(with.before), c.before), bound) << device.name() << hidden;
    EXPECT_LE(relative_error(values(with.slopes), c.slopes), bound) << device.name() << hidden;
    EXPECT_EQ(mamba::testing::bits(with.y), mamba::testing::bits(without.y));
  }
}

TEST_EACH(RlGru, GradientsAreTheSlopes, Device device) {
  for (const std::int64_t hidden : sizes) {
    SCOPED_TRACE(device.name() + " hidden " + std::to_string(hidden));
    Case c(3, hidden == 16 ? 150 : 13, hidden, 12);  // sums over time are of 64 steps each
    There there(c, device);
    Stream stream(device);
    run(there.forward(), stream);
    run(there.backward(), stream);
    stream.synchronize();
    const auto loss = [&] { return c.loss(); };
    using mamba::testing::expect_slopes;
    expect_slopes("dinputs", c.inputs, there.dinputs(), loss, bound);
    expect_slopes("dweight", c.weight, there.dweight, loss, bound);
    expect_slopes("dbias", c.bias, there.dbias, loss, bound);
    expect_slopes("dinput_bias", c.input_bias, there.dinput_bias, loss, bound);
    expect_slopes("dinitial", c.initial, there.dinitial, loss, bound);
  }
}

// Two ways to the same numbers.
void expect_alike(const There& got, const There& expected) {
  for (const auto member :
       {&There::y, &There::dgates, &There::dweight, &There::dbias, &There::dinput_bias}) {
    EXPECT_LE(relative_error(values(got.*member), values(expected.*member)), bound);
  }
}

// Views of wider memory; on CUDA those that begin between multiples of 16 bytes have another
// kernel.
TEST_EACH(RlGru, SlicesAreTheSame, Device device) {
  for (const std::int64_t first : {1, 4}) {
    const Case c(3, 21, 64, 17);
    There dense(c, device), sliced(c, device);
    Stream stream(device);
    run(dense.forward(), stream);
    run(dense.backward(), stream);
    std::vector<Tensor> wide;
    for (Tensor* output : {&sliced.y, &sliced.before, &sliced.slopes, &sliced.dgates}) {
      mamba::zero(*output, stream);  // they are copied before they are written
    }
    const auto slice = [&](Tensor& tensor) {
      const std::int64_t width = tensor.dim(2);
      wide.emplace_back(tensor.shape().with(2, width + 8), DType::f32, device);
      const mamba::TensorView view = wide.back().view().columns(first, width);
      mamba::copy(tensor, view, stream);
      return view;
    };
    GruSequence op = sliced.forward();
    op.inputs = slice(sliced.inputs);
    const mamba::TensorView y = op.y = slice(sliced.y);
    op.before = slice(sliced.before);
    op.slopes = slice(sliced.slopes);
    run(op, stream);
    GruSequenceGrad grad = sliced.backward();
    grad.before = op.before;
    grad.slopes = op.slopes;
    grad.dy = slice(sliced.dy);
    const mamba::TensorView dgates = grad.dgates = slice(sliced.dgates);
    run(grad, stream);
    mamba::copy(y, sliced.y, stream);
    mamba::copy(dgates, sliced.dgates, stream);
    stream.synchronize();
    expect_alike(sliced, dense);
  }
}

TEST_EACH(RlGru, AbsentOperandsAreZeros, Device device) {
  for (const std::int64_t hidden : {6, 32}) {
    Case c(3, 21, hidden, 18);
    c.reset.assign(c.reset.size(), 0.0);
    c.dfinal.assign(c.dfinal.size(), 0.0);
    There zeros(c, device), absent(c, device);
    Stream stream(device);
    run(zeros.forward(), stream);
    run(zeros.backward(), stream);
    GruSequence op = absent.forward();
    op.reset = {};
    op.final_state = {};
    run(op, stream);
    GruSequenceGrad grad = absent.backward();
    grad.reset = grad.dfinal_state = {};
    grad.dinitial_state = grad.dinput_bias = {};
    run(grad, stream);
    stream.synchronize();
    using mamba::testing::bits;
    EXPECT_EQ(bits(zeros.y), bits(absent.y));
    EXPECT_EQ(bits(zeros.dgates), bits(absent.dgates));
    EXPECT_EQ(bits(zeros.dweight), bits(absent.dweight));
  }
}

TEST_EACH(RlGru, NoStepsChangeNothing, Device device) {
  for (const std::int64_t hidden : {6, 16}) {
    const Case c(3, 0, hidden, 19);
    There there(c, device);
    Stream stream(device);
    run(there.forward(), stream);
    run(there.backward(), stream);
    stream.synchronize();
    EXPECT_EQ(values(there.final_state), c.initial);
    EXPECT_EQ(values(there.dinitial), c.dfinal);
    for (const double v : values(there.dweight)) EXPECT_EQ(v, 0);
    for (const double v : values(there.dinput_bias)) EXPECT_EQ(v, 0);
  }
}

TEST_EACH(RlGru, CutAnywhereIsTheSame, Device device) {
  const Case c(4, 12, 64, 13);
  There whole(c, device), parts(c, device);
  Stream stream(device);
  run(whole.forward(), stream);
  run(whole.backward(), stream);
  for (const std::int64_t cut : {1, 5, 11}) {
    const auto forward = [&](mamba::ConstTensorView initial, std::int64_t from,
                             std::int64_t count) {
      GruSequence op = parts.forward();
      op.inputs = op.inputs.steps(from, count);
      op.reset = op.reset.columns(from, count);
      op.initial_state = initial;
      op.y = op.y.steps(from, count);
      op.before = op.before.steps(from, count);
      op.slopes = op.slopes.steps(from, count);
      run(op, stream);
    };
    forward(parts.initial, 0, cut);
    forward(parts.final_state, cut, 12 - cut);
    const auto back = [&](std::int64_t from, std::int64_t count) {
      GruSequenceGrad op = parts.backward();
      op.reset = op.reset.columns(from, count);
      op.before = op.before.steps(from, count);
      op.slopes = op.slopes.steps(from, count);
      op.dy = op.dy.steps(from, count);
      op.dgates = op.dgates.steps(from, count);
      op.accumulate = from == 0;
      if (from == 0) op.dfinal_state = parts.dinitial;
      run(op, stream);
    };
    back(cut, 12 - cut);
    back(0, cut);
    stream.synchronize();
    expect_alike(parts, whole);
    EXPECT_LE(relative_error(values(parts.dinitial), values(whole.dinitial)), bound);
  }
}

// A reset is a select: what was there, NaN included, is gone, and so is its gradient.
TEST_EACH(RlGru, NothingPassesAReset, Device device) {
  Case c(2, 3, 64, 14);
  c.reset = {0, 1, 0, 1, 0, 0};
  std::vector<double> poisoned = c.initial;
  for (std::size_t i = 64; i < 128; ++i) poisoned[i] = std::nan("");
  There there(c, device);
  there.initial = There::f32(poisoned, {2, 64}, device);
  Stream stream(device);
  run(there.forward(), stream);
  run(there.backward(), stream);
  stream.synchronize();
  for (const double v : values(there.final_state)) EXPECT_TRUE(std::isfinite(v));
  for (const double v : values(there.dweight)) ASSERT_TRUE(std::isfinite(v));
  const std::vector<double> dinitial = values(there.dinitial);
  for (std::size_t i = 64; i < 128; ++i) EXPECT_EQ(dinitial[i], 0);
}

TEST_EACH(RlGru, SameBitsTwice, Device device) {
  const Case c(9, 40, 64, 15);
  There first(c, device), second(c, device);
  Stream stream(device);
  for (There* run_of : {&first, &second}) {
    run(run_of->forward(), stream);
    run(run_of->backward(), stream);
  }
  stream.synchronize();
  using mamba::testing::bits;
  EXPECT_EQ(bits(first.y), bits(second.y));
  EXPECT_EQ(bits(first.dgates), bits(second.dgates));
  EXPECT_EQ(bits(first.dweight), bits(second.dweight));
}

// tests/golden/make_gru.py.
TEST_EACH(RlGru, IsPyTorchs, Device device) {
  const mamba::SafetensorsFile file(mamba::testing::golden_folder("gru.safetensors"));
  const auto read = [&](const std::string& name) { return file.read(file.entry(name)); };
  Stream stream(device);
  const Tensor x = read("x").to(device), weight_ih = read("weight_ih").to(device);
  const Tensor bias_ih = read("bias_ih").to(device);
  const std::int64_t batch = x.dim(0), time = x.dim(1), hidden = weight_ih.dim(0) / 3;
  There there(Case(batch, time, hidden, 1), device);
  there.weight = read("weight_hh").to(device);
  there.bias = read("bias_hh").to(device);
  there.initial = read("h0").to(device);
  there.reset = read("reset").to(device);
  there.dy = read("dy").to(device);
  there.dfinal = read("dfinal").to(device);
  mamba::Matmul project;
  project.x = x;
  project.weight = weight_ih;
  project.bias = bias_ih;
  project.y = there.inputs;
  run(project, stream);
  run(there.forward(), stream);
  run(there.backward(), stream);
  Tensor dx(x.shape(), DType::f32, device);
  Tensor dweight_ih(weight_ih.shape(), DType::f32, device);
  mamba::LinearGrad back;
  back.x = x;
  back.weight = weight_ih;
  back.dy = there.dgates.view().columns(0, 3 * hidden);
  back.dx = dx;
  back.dweight = dweight_ih;
  run(back, stream);
  stream.synchronize();
  EXPECT_LE(relative_error(values(there.y), values(read("y"))), bound);
  EXPECT_LE(relative_error(values(dx), values(read("dx"))), bound);
  EXPECT_LE(relative_error(values(there.dinitial), values(read("dh0"))), bound);
  EXPECT_LE(relative_error(values(dweight_ih), values(read("dweight_ih"))), bound);
  EXPECT_LE(relative_error(values(there.dinput_bias), values(read("dbias_ih"))), bound);
  EXPECT_LE(relative_error(values(there.dweight), values(read("dweight_hh"))), bound);
  EXPECT_LE(relative_error(values(there.dbias), values(read("dbias_hh"))), bound);
}

}  // namespace
}  // namespace mamba_rl
