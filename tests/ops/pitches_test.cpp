// Sequences that someone else has laid out: time before batch, and one row that stands for all.
#include <mamba/detail/scan_chunk.hpp>
#include <mamba/grad_ops.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using namespace testing;

constexpr std::int64_t batch = 3, time = 70, channels = 64, d_state = 16, heads = 4, width = 4;

// [batch, time, n] in memory as it comes, or with time first.
class Sequence {
 public:
  Sequence(std::int64_t n, bool time_first, Device device)
      : memory_(time_first ? Tensor::zeros({time, batch, n}, DType::f32, device)
                           : Tensor::zeros({batch, time, n}, DType::f32, device)),
        view_(memory_.view().data(), {batch, time, n},
              time_first ? Pitches{n, batch * n} : Pitches{time * n, n}, DType::f32, device) {}
  Sequence(const Tensor& values, bool time_first, Device device)
      : Sequence(values.dim(2), time_first, device) {
    const Tensor there = values.to(device);
    Stream& stream = default_stream(device);
    copy(there, view_, stream);
    stream.synchronize();
  }
  TensorView view() const { return view_; }

 private:
  Tensor memory_;
  TensorView view_;
};

// Everything that forward and backward give, of operands with time first or not.
struct Results {
  std::vector<std::vector<double>> values;
  void add(ConstTensorView view) { values.push_back(testing::values(view)); }
};

void expect_same(const Results& a, const Results& b) {
  ASSERT_EQ(a.values.size(), b.values.size());
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    EXPECT_LT(relative_error(a.values[i], b.values[i]), 1e-6) << "result " << i;
  }
}

Tensor draw(const Shape& shape, Device device, std::uint64_t seed, double low = -1,
            double high = 1) {
  return Random(seed).uniform_tensor(shape, low, high).to(device);
}

Sequence draw_sequence(std::int64_t n, bool time_first, Device device, std::uint64_t seed) {
  return {Random(seed).normal_tensor({batch, time, n}), time_first, device};
}

Results convolve(bool time_first, Device device) {
  const Sequence x = draw_sequence(channels, time_first, device, 1);
  const Sequence dy = draw_sequence(channels, time_first, device, 2);
  const Sequence y(channels, time_first, device), dx(channels, time_first, device);
  const Tensor weight = draw({channels, width}, device, 3), bias = draw({channels}, device, 4);
  Tensor dweight({channels, width}, DType::f32, device), dbias({channels}, DType::f32, device);
  Stream stream(device);
  CausalConv conv;
  conv.x = x.view();
  conv.weight = weight;
  conv.bias = bias;
  conv.y = y.view();
  run(conv, stream);
  CausalConvGrad grad;
  grad.x = x.view();
  grad.weight = weight;
  grad.bias = bias;
  grad.dy = dy.view();
  grad.dx = dx.view();
  grad.dweight = dweight;
  grad.dbias = dbias;
  run(grad, stream);
  stream.synchronize();
  Results results;
  results.add(y.view());
  results.add(dx.view());
  results.add(dweight);
  results.add(dbias);
  return results;
}

// Of a scan or of ssd, whose operands have the same names.
template <class Op, class Grad>
Results recur(bool time_first, Device device, std::int64_t dts, const Tensor& A_log) {
  const auto in = [&](std::int64_t n, std::uint64_t seed) {
    return draw_sequence(n, time_first, device, seed);
  };
  const auto out = [&](std::int64_t n) { return Sequence(n, time_first, device); };
  const Sequence x = in(channels, 1), dt = in(dts, 2), B = in(d_state, 3), C = in(d_state, 4);
  const Sequence dy = in(channels, 5), y = out(channels), dx = out(channels), ddt = out(dts);
  const Sequence dB = out(d_state), dC = out(d_state);
  Tensor final_state({batch, channels, d_state}, DType::f32, device);
  Tensor dA_log(A_log.shape(), DType::f32, device);
  Stream stream(device);
  Op op;
  op.x = x.view();
  op.dt = dt.view();
  op.A_log = A_log;
  op.B = B.view();
  op.C = C.view();
  op.y = y.view();
  op.final_state = final_state;
  const std::int64_t steps = op.chunk_steps = detail::scan_chunk_steps(op, stream);
  Tensor chunk_states({batch, (time + steps - 1) / steps, channels, d_state}, DType::f32, device);
  op.chunk_states = chunk_states;
  run(op, stream);
  Grad grad;
  grad.x = x.view();
  grad.dt = dt.view();
  grad.A_log = A_log;
  grad.B = B.view();
  grad.C = C.view();
  grad.chunk_states = chunk_states;
  grad.chunk_steps = steps;
  grad.dy = dy.view();
  grad.dx = dx.view();
  grad.ddt = ddt.view();
  grad.dB = dB.view();
  grad.dC = dC.view();
  grad.dA_log = dA_log;
  run(grad, stream);
  stream.synchronize();
  Results results;
  for (const Sequence* one : {&y, &dx, &ddt, &dB, &dC}) results.add(one->view());
  results.add(final_state);
  results.add(dA_log);
  return results;
}

TEST_EACH(Pitches, AConvolutionWithTimeBeforeBatch, Device device) {
  expect_same(convolve(true, device), convolve(false, device));
}

TEST_EACH(Pitches, AScanWithTimeBeforeBatch, Device device) {
  const auto run_it = [&](bool time_first) {
    return recur<SelectiveScan, SelectiveScanGrad>(time_first, device, channels,
                                                   draw({channels, d_state}, device, 6, 0, 1));
  };
  expect_same(run_it(true), run_it(false));
}

TEST_EACH(Pitches, SsdWithTimeBeforeBatch, Device device) {
  const auto run_it = [&](bool time_first) {
    return recur<Ssd, SsdGrad>(time_first, device, heads, draw({heads}, device, 6, 0, 1));
  };
  expect_same(run_it(true), run_it(false));
}

TEST_EACH(Pitches, ARowThatStandsForAll, Device device) {
  const Tensor B = draw({1, time, d_state}, device, 3);
  const auto scan_with = [&](ConstTensorView b) {
    const Sequence x = draw_sequence(channels, false, device, 1);
    const Sequence dt = draw_sequence(channels, false, device, 2);
    const Tensor A_log = draw({channels, d_state}, device, 6, 0, 1);
    const Sequence y(channels, false, device);
    Stream stream(device);
    SelectiveScan scan;
    scan.x = x.view();
    scan.dt = dt.view();
    scan.A_log = A_log;
    scan.B = scan.C = b;
    scan.y = y.view();
    run(scan, stream);
    stream.synchronize();
    return values(y.view());
  };
  const ConstTensorView one(B.view().data(), {batch, time, d_state}, Pitches{0, d_state},
                            DType::f32, device);
  Tensor each({batch, time, d_state}, DType::f32, device);
  Stream& stream = default_stream(device);
  copy(one, each, stream);
  stream.synchronize();
  EXPECT_LT(relative_error(scan_with(one), scan_with(each)), 1e-6);
}

}  // namespace
}  // namespace mamba
