#include "report.hpp"

#include <algorithm>

namespace {

constexpr double ln_2 = 0.6931471805599453;

}  // namespace

Report::Report(const std::string& path, std::int64_t first_step, std::int64_t steps,
               std::int64_t bytes_per_step)
    : metrics_("train-lm", path),
      progress_(first_step, steps),
      first_(first_step),
      bytes_per_step_(bytes_per_step) {
  // A run that was killed has written lines of steps after its last checkpoint, which come again;
  // and one that was done says its validation again.
  const bool done = first_step == steps;
  metrics_.drop_repeated("step", [&](std::int64_t step, const std::string& line) {
    return step > first_step ||
           (step == first_step && done && line.find("valid_bits_per_byte") != std::string::npos);
  });
}

void Report::step(std::int64_t step, double loss, double norm, double rate) {
  const double seconds = progress_.seconds();
  const double speed =
      static_cast<double>((step - first_) * bytes_per_step_) / std::max(seconds, 1e-9);
  metrics_.line(
      format("{\"step\": %lld, \"loss\": %.6f, \"bits_per_byte\": %.5f, \"gradient_norm\": %.5g, "
             "\"learning_rate\": %.5g, \"tokens\": %lld, \"tokens_per_second\": %.1f, "
             "\"seconds\": %.3f}",
             static_cast<long long>(step), loss, loss / ln_2, norm, rate,
             static_cast<long long>(step * bytes_per_step_), speed, seconds));
  smooth_ = step == first_ + 1 ? loss : 0.95 * smooth_ + 0.05 * loss;
  progress_.draw(step, format("%.3f bits/byte  %.0f tok/s", smooth_ / ln_2, speed));
}

void Report::validation(std::int64_t step, double bits_per_byte) {
  metrics_.line(format("{\"step\": %lld, \"valid_bits_per_byte\": %.5f}",
                       static_cast<long long>(step), bits_per_byte));
  say(format("step %lld: validation %.4f bits/byte", static_cast<long long>(step), bits_per_byte));
}
