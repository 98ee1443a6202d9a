#include "report.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <mamba/error.hpp>

namespace {

constexpr double ln_2 = 0.6931471805599453;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class... Values>
std::string format(const char* text, Values... values) {
  char buffer[512];
  std::snprintf(buffer, sizeof(buffer), text, values...);
  return buffer;
}

}  // namespace

Report::Report(const std::string& path, std::int64_t first_step, std::int64_t steps,
               std::int64_t bytes_per_step)
    : file_(std::fopen(path.c_str(), "a"), std::fclose),
      path_(path),
      terminal_(isatty(STDERR_FILENO) != 0),
      first_(first_step),
      steps_(steps),
      bytes_per_step_(bytes_per_step),
      start_(std::chrono::steady_clock::now()) {
  if (!file_) {
    throw mamba::Error("train-lm", path, "a file that can be written", std::strerror(errno));
  }
}

void Report::step(std::int64_t step, double loss, double norm, double rate) {
  const double seconds = seconds_since(start_);
  const double speed =
      static_cast<double>((step - first_) * bytes_per_step_) / std::max(seconds, 1e-9);
  line(
      format("{\"step\": %lld, \"loss\": %.6f, \"bits_per_byte\": %.5f, \"gradient_norm\": %.5g, "
             "\"learning_rate\": %.5g, \"tokens\": %lld, \"tokens_per_second\": %.1f, "
             "\"seconds\": %.3f}",
             static_cast<long long>(step), loss, loss / ln_2, norm, rate,
             static_cast<long long>(step * bytes_per_step_), speed, seconds));
  smooth_ = step == first_ + 1 ? loss : 0.95 * smooth_ + 0.05 * loss;
  draw(step, smooth_ / ln_2, speed);
}

void Report::draw(std::int64_t step, double bits, double speed) {
  const double interval = terminal_ ? 0.1 : 30;  // seconds
  const bool last = step == steps_;
  if (!last && drawn_ && seconds_since(shown_) < interval) return;
  shown_ = std::chrono::steady_clock::now();
  constexpr std::int64_t width = 30;
  const std::int64_t filled = std::min(width, step * width / std::max<std::int64_t>(1, steps_));
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(width - filled), '.');
  const double left =
      static_cast<double>((steps_ - step) * bytes_per_step_) / std::max(speed, 1e-9);
  std::fprintf(stderr, "%s[%s] %lld/%lld  %.3f bits/byte  %.0f tok/s  %lld:%02lld left%s",
               terminal_ ? "\r\033[K" : "", bar.c_str(), static_cast<long long>(step),
               static_cast<long long>(steps_), bits, speed, static_cast<long long>(left) / 60,
               static_cast<long long>(left) % 60, terminal_ && !last ? "" : "\n");
  drawn_ = true;
}

void Report::validation(std::int64_t step, double bits_per_byte) {
  line(format("{\"step\": %lld, \"valid_bits_per_byte\": %.5f}", static_cast<long long>(step),
              bits_per_byte));
  say(format("step %lld: validation %.4f bits/byte", static_cast<long long>(step), bits_per_byte));
}

void Report::say(const std::string& text) {
  std::fprintf(stderr, "%s%s\n", terminal_ ? "\r\033[K" : "", text.c_str());
}

void Report::line(const std::string& json) {
  if (std::fprintf(file_.get(), "%s\n", json.c_str()) < 0 || std::fflush(file_.get()) != 0) {
    throw mamba::Error("train-lm", path_, "a file that can be written", std::strerror(errno));
  }
}
