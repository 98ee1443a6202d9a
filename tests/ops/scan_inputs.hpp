// Random operands of SelectiveScan as a layer would hold them.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba::testing {

// What the decays are made of: A_log, or A in its place, of both signs or of positive ones alone.
enum class ScanDecays { log, mixed, positive };

struct ScanCase {
  std::int64_t batch = 2, time = 9, channels = 17, d_state = 16;
  DType dtype = DType::f32;
  bool D = true, z = true, dt_bias = true, initial = true, reset = false;
  bool aligned = false;  // rows begin at multiples of 16 bytes, where the sizes allow
  double scale = 1;      // of x, dt, B, C and z
  ScanDecays decays = ScanDecays::log;
  bool softplus = true;  // false: deltas of both signs

  bool grows() const { return decays != ScanDecays::log || !softplus; }
  std::string name() const {
    return Shape{batch, time, channels, d_state}.to_string() + " " + name_of(dtype) +
           (D ? " D" : "") + (z ? " z" : "") + (dt_bias ? " bias" : "") +
           (initial ? " initial" : "") + (reset ? " reset" : "") + (aligned ? " aligned" : "") +
           (decays == ScanDecays::mixed      ? " A of both signs"
            : decays == ScanDecays::positive ? " A > 0"
                                             : "") +
           (softplus ? "" : " no softplus");
  }
};

// What A and delta are made of.
struct ScanForm {
  const char* name;
  ScanDecays decays;
  bool softplus;
};
template <>
struct Every<ScanForm> {
  static std::vector<ScanForm> all() {
    return {{"ALog", ScanDecays::log, true},
            {"A", ScanDecays::mixed, true},
            {"PositiveA", ScanDecays::positive, true},
            {"ALogNoSoftplus", ScanDecays::log, false},
            {"ANoSoftplus", ScanDecays::mixed, false}};
  }
  static std::string name(const ScanForm& form) { return form.name; }
};
inline ScanCase case_of(const ScanForm& form, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.decays = form.decays;
  c.softplus = form.softplus;
  return c;
}

// [batch, time], non-zero at these steps of the first batch row, five later in the next, and so on.
inline Tensor resets_at(const std::vector<std::int64_t>& steps, std::int64_t batch,
                        std::int64_t time) {
  std::vector<std::int32_t> flags(static_cast<std::size_t>(batch * time));
  for (std::int64_t b = 0; b < batch; ++b) {
    for (const std::int64_t t : steps) {
      if (t + 5 * b < time) flags[static_cast<std::size_t>(b * time + t + 5 * b)] = 1;
    }
  }
  return Tensor::from(flags, {batch, time});
}

// Resets at the first and the last step of chunks, of the rings' tiles and of the sequence, and
// long stretches without: a tile with a reset takes another way than one without.
inline Tensor rare_resets(const ScanCase& c) {
  return resets_at({16, 63, 64, 79, 128, 300, 512, c.time - 1}, c.batch, c.time);
}
inline ScanCase case_of_rare_resets(DType dtype, std::int64_t d_state, bool aligned, bool z) {
  ScanCase c;
  c.dtype = dtype;
  c.channels = 40;
  c.d_state = d_state;
  c.time = 700;
  c.aligned = aligned;
  c.z = z;
  return c;
}

// x and z are columns of one projection, dt, B and C of another.
struct ScanInputs {
  ScanCase shape;
  Tensor xz, dbc, A_log, A, D, dt_bias, initial, reset;

  explicit ScanInputs(const ScanCase& c, std::uint64_t seed = 1) : shape(c) {
    Random random(seed);
    const auto wide = [&] { return c.scale * random.normal(); };
    const std::int64_t odd = c.aligned ? 0 : 1;
    xz = random.tensor({c.batch, c.time, 2 * c.channels + 3 * odd}, c.dtype, wide);
    const std::int64_t columns = c.channels + 2 * c.d_state + odd;
    std::int64_t place = 0;
    dbc = random.tensor({c.batch, c.time, columns}, c.dtype, [&] {
      return !c.softplus && place++ % columns < c.channels ? 0.1 + random.normal(0.1) : wide();
    });
    std::int64_t i = 0;
    const auto state = [&] { return static_cast<double>(i++ % c.d_state); };
    // What grows does so by e^5 at most, however long the sequence is.
    const double largest = c.softplus ? c.d_state : 8;
    const double growing = (c.softplus ? 2 : 10) / (static_cast<double>(c.time) + 1);
    if (c.decays == ScanDecays::log) {
      A_log = random.tensor({c.channels, c.d_state}, DType::f32, [&] {
        return std::log(1.0 + std::fmod(state(), largest)) + random.normal(0.2);
      });
    } else {
      A = random.tensor({c.channels, c.d_state}, DType::f32, [&] {
        const bool grows = c.decays == ScanDecays::positive || random.integer(0, 1) != 0;
        return random.uniform(grows ? 0 : -largest, grows ? growing : 0);
      });
    }
    if (c.D) D = random.normal_tensor({c.channels});
    if (c.dt_bias) {
      dt_bias = random.uniform_tensor({c.channels}, c.softplus ? -7 : -0.05, c.softplus ? 1 : 0.1);
    }
    if (c.initial) initial = random.normal_tensor({c.batch, c.channels, c.d_state});
    if (c.reset) reset = random_resets(random);
  }

  Tensor random_resets(Random& random) const {
    std::vector<std::int32_t> flags(static_cast<std::size_t>(shape.batch * shape.time));
    for (std::int32_t& flag : flags) flag = random.uniform(0, 1) < 0.2 ? -7 : 0;
    return Tensor::from(flags, {shape.batch, shape.time});
  }

  ScanInputs to(Device device) const {
    ScanInputs moved(ScanCase{0, 0, 0, 1});
    moved.shape = shape;
    moved.xz = xz.to(device);
    moved.dbc = dbc.to(device);
    moved.A_log = A_log.to(device);
    moved.A = A.to(device);
    moved.D = D.to(device);
    moved.dt_bias = dt_bias.to(device);
    moved.initial = initial.to(device);
    moved.reset = reset.to(device);
    return moved;
  }

  SelectiveScan op() const {
    const ScanCase& c = shape;
    SelectiveScan scan;
    const std::int64_t odd = c.aligned ? 0 : 1;
    scan.x = xz.view().columns(odd, c.channels);
    scan.z = c.z ? xz.view().columns(c.channels + 2 * odd, c.channels) : ConstTensorView();
    scan.dt = dbc.view().columns(0, c.channels);
    scan.B = dbc.view().columns(c.channels, c.d_state);
    scan.C = dbc.view().columns(c.channels + c.d_state + odd, c.d_state);
    scan.A_log = A_log;
    scan.A = A;
    scan.softplus = c.softplus;
    scan.D = D;
    scan.dt_bias = dt_bias;
    scan.initial_state = initial;
    scan.reset = reset;
    return scan;
  }
  Shape state_shape() const { return {shape.batch, shape.channels, shape.d_state}; }
  Shape step_shape() const { return {shape.batch, shape.time, shape.channels, shape.d_state}; }
  Shape y_shape() const { return {shape.batch, shape.time, shape.channels}; }
};

}  // namespace mamba::testing
