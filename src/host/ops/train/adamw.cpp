// SumSquares and AdamWStep: every element on its own, or in parts of a fixed size.
#include <algorithm>
#include <cmath>

#include "detail/backend.hpp"
#include "detail/stream_access.hpp"
#include "host/ops/storage.hpp"

namespace mamba::host {

namespace {

constexpr std::int64_t part_size = 1024;

// Sixteen sums that the compiler keeps in vectors, then those in pairs.
float part_squares(const float* x, std::int64_t count) {
  float sums[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    for (int k = 0; k < 16; ++k) sums[k] += x[i + k] * x[i + k];
  }
  for (int k = 0; i + k < count; ++k) sums[k] += x[i + k] * x[i + k];
  for (int half = 8; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

int useful_threads(const Stream& stream, std::int64_t count) {
  return static_cast<int>(std::clamp<std::int64_t>(count >> 16, 1, stream.threads()));
}

// What is the same for every element of a step.
struct Constants {
  float scale;         // of a gradient: clipped, and without the loss scale
  float m_correction;  // 1 / (1 - beta1^step)
  float v_correction;

  explicit Constants(const AdamWStep& op) {
    const auto power = static_cast<double>(op.step);
    const float largest = op.max_norm * op.loss_scale;
    const float norm = op.max_norm > 0 ? std::sqrt(op.squares.data<float>()[0]) : 0;
    scale = (norm > largest ? largest / norm : 1) / op.loss_scale;
    m_correction = static_cast<float>(1 / (1 - std::pow(double{op.beta1}, power)));
    v_correction = static_cast<float>(1 / (1 - std::pow(double{op.beta2}, power)));
  }
};

void step(const AdamWStep& op, const Constants& constants, std::int64_t first, std::int64_t last) {
  float* weight = op.weight.data<float>();
  float* m = op.m.data<float>();
  float* v = op.v.data<float>();
  const float* gradient = op.gradient.data<float>();
  for (std::int64_t i = first; i < last; ++i) {
    const float g = constants.scale * gradient[i];
    m[i] = op.beta1 * m[i] + (1 - op.beta1) * g;
    v[i] = op.beta2 * v[i] + (1 - op.beta2) * g * g;
    const float direction =
        m[i] * constants.m_correction / (std::sqrt(v[i] * constants.v_correction) + op.epsilon);
    weight[i] -= op.learning_rate * (direction + op.weight_decay * weight[i]);
  }
  if (!op.stored) return;
  auto* to = static_cast<char*>(op.stored.data()) + first * size_of(op.stored.dtype());
  narrow(weight + first, nullptr, DType::f32, to, op.stored.dtype(), last - first);
}

}  // namespace

void run(const SumSquares& op, Stream& stream) {
  const std::int64_t count = op.x.count();
  const std::int64_t parts = (count + part_size - 1) / part_size;
  const float* x = count > 0 ? op.x.data<float>() : nullptr;
  Scratch scratch(stream);
  float* sums = scratch.take({parts}, DType::f32).data<float>();
  const int threads = useful_threads(stream, count);
  StreamAccess::team(stream).run(threads, [&](int i) {
    for (std::int64_t p = parts * i / threads; p < parts * (i + 1) / threads; ++p) {
      sums[p] = part_squares(x + p * part_size, std::min(part_size, count - p * part_size));
    }
  });
  double total = op.accumulate ? op.y.data<float>()[0] : 0;
  for (std::int64_t p = 0; p < parts; ++p) total += sums[p];
  op.y.data<float>()[0] = static_cast<float>(total);
}

void run(const AdamWStep& op, Stream& stream) {
  if (op.squares && !std::isfinite(op.squares.data<float>()[0])) return;
  const Constants constants(op);
  const std::int64_t count = op.weight.count();
  const int threads = useful_threads(stream, count);
  StreamAccess::team(stream).run(
      threads, [&](int i) { step(op, constants, count * i / threads, count * (i + 1) / threads); });
}

}  // namespace mamba::host
