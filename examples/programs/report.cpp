#include "report.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include <mamba/error.hpp>

namespace {

using Json = nlohmann::json;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

MetricsFile::MetricsFile(const std::string& program, const std::string& path)
    : program_(program), path_(path), file_(nullptr, std::fclose) {
  keep_lines([](const Json&, const std::string&) { return true; });
  open();
}

void MetricsFile::open() {
  file_.reset(std::fopen(path_.c_str(), "a"));
  if (!file_) {
    throw mamba::Error(program_, path_, "a file that can be written", std::strerror(errno));
  }
}

void MetricsFile::line(const std::string& json) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (std::fprintf(file_.get(), "%s\n", json.c_str()) < 0 || std::fflush(file_.get()) != 0) {
    throw mamba::Error(program_, path_, "a file that can be written", std::strerror(errno));
  }
}

void MetricsFile::drop_repeated(const std::string& field, const Repeated& repeated) {
  const std::lock_guard<std::mutex> lock(mutex_);
  keep_lines([&](const Json& json, const std::string& text) {
    const auto found = json.find(field);
    const bool numbered = found != json.end() && found->is_number_integer();
    return !numbered || !repeated(found->get<std::int64_t>(), text);
  });
  open();
}

// The file is replaced as a whole, and only where it changes: whatever ends the program meanwhile,
// no line that is to stay is lost.
template <class Keep>
void MetricsFile::keep_lines(const Keep& keep) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path_, none)) return;
  std::string kept;
  bool changed = false;
  {
    std::ifstream file(path_, std::ios::binary);
    for (std::string text; std::getline(file, text);) {
      const bool torn = file.eof();  // no end of line
      const Json json = torn ? Json() : Json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (json.is_object() && keep(json, text)) {
        kept += text + "\n";
      } else {
        changed = true;
      }
    }
  }
  if (!changed) return;
  const std::string other = path_ + ".new";
  std::ofstream file(other, std::ios::binary);
  file << kept;
  file.close();
  if (!file || std::rename(other.c_str(), path_.c_str()) != 0) {
    throw mamba::Error(program_, path_, "a file that can be written", std::strerror(errno));
  }
}

ProgressLine::ProgressLine(std::int64_t first, std::int64_t end)
    : terminal_(isatty(STDERR_FILENO) != 0),
      first_(first),
      end_(end),
      start_(std::chrono::steady_clock::now()) {}

double ProgressLine::seconds() const { return seconds_since(start_); }

void ProgressLine::draw(std::int64_t done, const std::string& text) {
  const double interval = terminal_ ? 0.1 : 30;  // seconds
  const bool last = done == end_;
  if (!last && drawn_ && seconds_since(shown_) < interval) return;
  shown_ = std::chrono::steady_clock::now();
  constexpr std::int64_t width = 30;
  const std::int64_t filled = std::min(width, done * width / std::max<std::int64_t>(1, end_));
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(width - filled), '.');
  const double each = seconds() / static_cast<double>(std::max<std::int64_t>(1, done - first_));
  const auto left = static_cast<long long>(each * static_cast<double>(end_ - done));
  std::fprintf(stderr, "%s[%s] %lld/%lld  %s  %lld:%02lld left%s", terminal_ ? "\r\033[K" : "",
               bar.c_str(), static_cast<long long>(done), static_cast<long long>(end_),
               text.c_str(), left / 60, left % 60, terminal_ && !last ? "" : "\n");
  drawn_ = true;
}

void ProgressLine::say(const std::string& text) {
  std::fprintf(stderr, "%s%s\n", terminal_ ? "\r\033[K" : "", text.c_str());
}
