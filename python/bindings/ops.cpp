// The operations on whatever arrays Python has. Every function takes the
// tensors of its operation with the reset last, the options, then what it
// writes, which Python has made: so Python hands them on as they come. None is
// absent.
#include <mamba/check.hpp>
#include <mamba/detail/scan_chunk.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>

#include <algorithm>
#include <string>

#include "call.hpp"

namespace mamba::python {

namespace {

// [batch, time, m, n] as [batch, time, m n], whose last dimension is the two together.
template <class View>
View join(const char* where, const char* name, const View& view) {
  if (!view) return {};
  check::rank(where, name, view, 4);
  return {view.data(),
          {view.dim(0), view.dim(1), view.dim(2) * view.dim(3)},
          Pitches{view.row_pitch(), view.step_pitch()},
          view.dtype(),
          view.device()};
}

// [batch, heads, head_dim, d_state] as [batch, channels, d_state].
template <class View>
View join_state(const View& view) {
  if (!view) return {};
  return view.reshape({view.dim(0), view.dim(1) * view.dim(2), view.dim(3)});
}

// The library holds the final state against the initial one; here the caller made only the latter.
// Its width is that of `parameter` [channels, width] and `more`.
void check_state(const char* where, const ConstTensorView& state, const ConstTensorView& x,
                 const ConstTensorView& parameter, std::int64_t more) {
  if (!state || x.rank() != 3 || parameter.rank() != 2) return;  // refused in a moment
  check::shape(where, "initial_state", state, {x.dim(0), x.dim(2), parameter.dim(1) + more});
}

void causal_conv1d(Array x, Array weight, Array bias, Array initial_state, Array reset, bool silu,
                   Array y, Array final_state, CudaStream stream, int threads) {
  Call call("causal_conv1d", stream, threads);
  CausalConv op;
  op.x = call.in("x", x);
  op.weight = call.dense("weight", weight);
  op.bias = call.dense("bias", bias);
  op.initial_state = call.dense("initial_state", initial_state);
  op.reset = call.dense("reset", reset);
  check_state("causal_conv1d", op.initial_state, op.x, op.weight, -1);
  op.silu = silu;
  op.y = call.out("y", y);
  op.final_state = call.out("final_state", final_state);
  call.run(op);
}

void causal_conv1d_grad(Array x, Array weight, Array bias, Array initial_state, Array reset,
                        bool silu, Array dy, Array dfinal_state, Array dx, Array dweight,
                        Array dbias, Array dinitial_state, CudaStream stream, int threads) {
  Call call("causal_conv1d_grad", stream, threads);
  CausalConvGrad op;
  op.x = call.in("x", x);
  op.weight = call.dense("weight", weight);
  op.bias = call.dense("bias", bias);
  op.initial_state = call.dense("initial_state", initial_state);
  op.reset = call.dense("reset", reset);
  op.silu = silu;
  op.dy = call.in("dy", dy);
  op.dfinal_state = call.dense("dfinal_state", dfinal_state);
  op.dx = call.out("dx", dx);
  op.dweight = call.out("dweight", dweight);
  op.dbias = call.out("dbias", dbias);
  op.dinitial_state = call.out("dinitial_state", dinitial_state);
  call.run(op);
}

// What forward and backward take alike. (That of the initial state lies in the
// chunk states.)
template <class Op>
void selection(Call& call, Op& op, Array u, Array delta, Array A, Array B, Array C, Array D,
               Array z, Array delta_bias, bool softplus, bool A_is_log, Array reset) {
  op.x = call.in("u", u);
  op.dt = call.in("delta", delta);
  (A_is_log ? op.A_log : op.A) = call.dense("A", A);
  op.B = call.in("B", B);
  op.C = call.in("C", C);
  op.D = call.dense("D", D);
  op.z = call.in("z", z);
  op.dt_bias = call.dense("delta_bias", delta_bias);
  op.softplus = softplus;
  op.reset = call.dense("reset", reset);
}

void selective_scan(Array u, Array delta, Array A, Array B, Array C, Array D, Array z,
                    Array delta_bias, Array initial_state, Array reset, bool softplus,
                    bool A_is_log, Array y, Array final_state, Array chunk_states,
                    std::int64_t chunk_steps, CudaStream stream, int threads) {
  Call call("selective_scan", stream, threads);
  SelectiveScan op;
  selection(call, op, u, delta, A, B, C, D, z, delta_bias, softplus, A_is_log, reset);
  op.initial_state = call.dense("initial_state", initial_state);
  check_state("selective_scan", op.initial_state, op.x, A_is_log ? op.A_log : op.A, 0);
  op.y = call.out("y", y);
  op.final_state = call.out("final_state", final_state);
  op.chunk_states = call.out("chunk_states", chunk_states);
  op.chunk_steps = chunk_steps;
  call.run_renamed(op);
}

void selective_scan_grad(Array u, Array delta, Array A, Array B, Array C, Array D, Array z,
                         Array delta_bias, Array, Array reset, bool softplus, bool A_is_log,
                         Array chunk_states, std::int64_t chunk_steps, Array dy, Array dfinal_state,
                         Array du, Array ddelta, Array dA, Array dB, Array dC, Array dD, Array dz,
                         Array ddelta_bias, Array dinitial_state, CudaStream stream, int threads) {
  Call call("selective_scan_grad", stream, threads);
  SelectiveScanGrad op;
  selection(call, op, u, delta, A, B, C, D, z, delta_bias, softplus, A_is_log, reset);
  op.chunk_states = call.in("chunk_states", chunk_states);
  op.chunk_steps = chunk_steps;
  op.dy = call.in("dy", dy);
  op.dfinal_state = call.dense("dfinal_state", dfinal_state);
  op.dx = call.out("du", du);
  op.ddt = call.out("ddelta", ddelta);
  (A_is_log ? op.dA_log : op.dA) = call.out("dA", dA);
  op.dB = call.out("dB", dB);
  op.dC = call.out("dC", dC);
  op.dD = call.out("dD", dD);
  op.dz = call.out("dz", dz);
  op.ddt_bias = call.out("ddelta_bias", ddelta_bias);
  op.dinitial_state = call.out("dinitial_state", dinitial_state);
  call.run_renamed(op);
}

// What forward and backward take alike, of heads as a dimension: the library has them in the last.
template <class Op>
void duality(const char* where, Call& call, Op& op, Array x, Array dt, Array A_log, Array B,
             Array C, Array D, Array dt_bias, Array reset, bool softplus, float dt_low,
             float dt_high) {
  const ConstTensorView heads = call.in("x", x), b = call.in("B", B), c = call.in("C", C);
  op.x = join(where, "x", heads);
  op.dt = call.in("dt", dt);
  op.A_log = call.dense("A", A_log);
  check::shape(where, "A", op.A_log, {heads.dim(2)});
  op.B = join(where, "B", b);
  check::shape(where, "C", c, b.shape());
  op.C = join(where, "C", c);
  op.D = call.dense("D", D);
  op.dt_bias = call.dense("dt_bias", dt_bias);
  op.reset = call.dense("reset", reset);
  op.groups = b.dim(2);
  op.softplus = softplus;
  op.dt_low = dt_low;
  op.dt_high = dt_high;
}

void ssd(Array x, Array dt, Array A_log, Array B, Array C, Array D, Array dt_bias,
         Array initial_state, Array reset, bool softplus, float dt_low, float dt_high, Array y,
         Array final_state, Array chunk_states, std::int64_t chunk_steps, CudaStream stream,
         int threads) {
  const char* where = "ssd";
  Call call(where, stream, threads);
  Ssd op;
  duality(where, call, op, x, dt, A_log, B, C, D, dt_bias, reset, softplus, dt_low, dt_high);
  const ConstTensorView state = call.dense("initial_state", initial_state);
  const TensorView heads = call.out("y", y);
  if (state) {
    const std::int64_t d_state = op.B.dim(2) / std::max<std::int64_t>(op.groups, 1);
    check::shape(where, "initial_state", state,
                 {heads.dim(0), heads.dim(2), heads.dim(3), d_state});
  }
  op.initial_state = join_state(state);
  op.y = join(where, "y", heads);
  op.final_state = join_state(call.out("final_state", final_state));
  op.chunk_states = call.out("chunk_states", chunk_states);
  op.chunk_steps = chunk_steps;
  call.run(op);
}

void ssd_grad(Array x, Array dt, Array A_log, Array B, Array C, Array D, Array dt_bias, Array,
              Array reset, bool softplus, float dt_low, float dt_high, Array chunk_states,
              std::int64_t chunk_steps, Array dy, Array dfinal_state, Array dx, Array ddt,
              Array dA_log, Array dB, Array dC, Array dD, Array ddt_bias, Array dinitial_state,
              CudaStream stream, int threads) {
  const char* where = "ssd_grad";
  Call call(where, stream, threads);
  SsdGrad op;
  duality(where, call, op, x, dt, A_log, B, C, D, dt_bias, reset, softplus, dt_low, dt_high);
  op.chunk_states = call.in("chunk_states", chunk_states);
  op.chunk_steps = chunk_steps;
  op.dy = join(where, "dy", call.in("dy", dy));
  op.dfinal_state = join_state(call.dense("dfinal_state", dfinal_state));
  op.dx = join(where, "dx", call.out("dx", dx));
  op.ddt = call.out("ddt", ddt);
  op.dA_log = call.out("dA_log", dA_log);
  op.dB = join(where, "dB", call.out("dB", dB));
  op.dC = join(where, "dC", call.out("dC", dC));
  op.dD = call.out("dD", dD);
  op.ddt_bias = call.out("ddt_bias", ddt_bias);
  op.dinitial_state = join_state(call.out("dinitial_state", dinitial_state));
  call.run(op);
}

// What forward and backward take alike; without a weight there is no norm.
template <class Op>
void gated_norm(Call& call, Op& op, Array x, Array z, Array weight, std::int64_t groups,
                bool norm_before_gate, float epsilon) {
  op.x = call.in("x", x);
  op.z = call.in("z", z);
  op.weight = call.dense("weight", weight);
  op.groups = groups;
  op.norm = !weight.is_none();
  op.gate_first = !norm_before_gate;
  op.epsilon = epsilon;
}

void gated_rms_norm(Array x, Array z, Array weight, std::int64_t groups, bool norm_before_gate,
                    float epsilon, Array y, CudaStream stream, int threads) {
  Call call("gated_rms_norm", stream, threads);
  GatedRmsNorm op;
  gated_norm(call, op, x, z, weight, groups, norm_before_gate, epsilon);
  op.y = call.out("y", y);
  call.run(op);
}

void gated_rms_norm_grad(Array x, Array z, Array weight, std::int64_t groups, bool norm_before_gate,
                         float epsilon, Array dy, Array dx, Array dz, Array dweight,
                         CudaStream stream, int threads) {
  Call call("gated_rms_norm_grad", stream, threads);
  GatedRmsNormGrad op;
  gated_norm(call, op, x, z, weight, groups, norm_before_gate, epsilon);
  op.dy = call.in("dy", dy);
  op.dx = call.out("dx", dx);
  op.dz = call.out("dz", dz);
  op.dweight = call.out("dweight", dweight);
  call.run(op);
}

// Whether each of `tensors` is None or of one of two types, and not of one derived from it.
bool are_exactly(const nb::tuple& tensors, nb::handle type, nb::handle other) {
  for (const nb::handle tensor : tensors) {
    const nb::handle its = tensor.type();
    if (!tensor.is_none() && !its.is(type) && !its.is(other)) return false;
  }
  return true;
}

// The steps from one kept state to the next: the same for all shapes, so that
// whoever allocates chunk_states needs only to know the device.
std::int64_t chunk_steps(const std::string& op, nb::handle device_name) {
  const Device device = device_of(device_name);
  const Tensor sequence({1, 1, 1}, DType::f32, device);
  const Tensor matrix({1, 1}, DType::f32, device);
  const Tensor vector({1}, DType::f32, device);
  const Stream stream(device, 1);
  if (op == "ssd") {
    Ssd ssd;
    ssd.x = ssd.dt = ssd.B = ssd.C = sequence;
    ssd.A_log = vector;
    return detail::scan_chunk_steps(ssd, stream);
  }
  SelectiveScan scan;
  scan.x = scan.dt = scan.B = scan.C = sequence;
  scan.A = matrix;
  return detail::scan_chunk_steps(scan, stream);
}

}  // namespace

void bind_ops(nb::module_& m) {
  using namespace nb::literals;
  m.def("causal_conv1d", &causal_conv1d, "x"_a, "weight"_a, "bias"_a.none(),
        "initial_state"_a.none(), "reset"_a.none(), "silu"_a, "y"_a, "final_state"_a.none(),
        "stream"_a.none(), "threads"_a);
  m.def("causal_conv1d_grad", &causal_conv1d_grad, "x"_a, "weight"_a, "bias"_a.none(),
        "initial_state"_a.none(), "reset"_a.none(), "silu"_a, "dy"_a, "dfinal_state"_a.none(),
        "dx"_a, "dweight"_a, "dbias"_a.none(), "dinitial_state"_a.none(), "stream"_a.none(),
        "threads"_a);
  m.def("selective_scan", &selective_scan, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a, "D"_a.none(),
        "z"_a.none(), "delta_bias"_a.none(), "initial_state"_a.none(), "reset"_a.none(),
        "delta_softplus"_a, "A_is_log"_a, "y"_a, "final_state"_a.none(), "chunk_states"_a.none(),
        "chunk_steps"_a, "stream"_a.none(), "threads"_a);
  m.def("selective_scan_grad", &selective_scan_grad, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a,
        "D"_a.none(), "z"_a.none(), "delta_bias"_a.none(), "initial_state"_a.none(),
        "reset"_a.none(), "delta_softplus"_a, "A_is_log"_a, "chunk_states"_a, "chunk_steps"_a,
        "dy"_a, "dfinal_state"_a.none(), "du"_a, "ddelta"_a, "dA"_a, "dB"_a, "dC"_a, "dD"_a.none(),
        "dz"_a.none(), "ddelta_bias"_a.none(), "dinitial_state"_a.none(), "stream"_a.none(),
        "threads"_a);
  m.def("ssd", &ssd, "x"_a, "dt"_a, "A_log"_a, "B"_a, "C"_a, "D"_a.none(), "dt_bias"_a.none(),
        "initial_state"_a.none(), "reset"_a.none(), "dt_softplus"_a, "dt_low"_a, "dt_high"_a, "y"_a,
        "final_state"_a.none(), "chunk_states"_a.none(), "chunk_steps"_a, "stream"_a.none(),
        "threads"_a);
  m.def("ssd_grad", &ssd_grad, "x"_a, "dt"_a, "A_log"_a, "B"_a, "C"_a, "D"_a.none(),
        "dt_bias"_a.none(), "initial_state"_a.none(), "reset"_a.none(), "dt_softplus"_a, "dt_low"_a,
        "dt_high"_a, "chunk_states"_a, "chunk_steps"_a, "dy"_a, "dfinal_state"_a.none(), "dx"_a,
        "ddt"_a, "dA_log"_a, "dB"_a, "dC"_a, "dD"_a.none(), "ddt_bias"_a.none(),
        "dinitial_state"_a.none(), "stream"_a.none(), "threads"_a);
  m.def("gated_rms_norm", &gated_rms_norm, "x"_a, "z"_a, "weight"_a.none(), "groups"_a,
        "norm_before_gate"_a, "epsilon"_a, "y"_a, "stream"_a.none(), "threads"_a);
  m.def("gated_rms_norm_grad", &gated_rms_norm_grad, "x"_a, "z"_a, "weight"_a.none(), "groups"_a,
        "norm_before_gate"_a, "epsilon"_a, "dy"_a, "dx"_a, "dz"_a, "dweight"_a.none(),
        "stream"_a.none(), "threads"_a);
  m.def("are_exactly", &are_exactly, "tensors"_a, "type"_a, "other"_a);
  m.def("chunk_steps", &chunk_steps, "operation"_a, "device"_a);
}

}  // namespace mamba::python
