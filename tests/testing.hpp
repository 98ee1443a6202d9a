// What every test uses: the devices present, random operands, guarded outputs, and comparison with
// a reference that carries its own error bound.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace mamba::testing {

// Every device that can be used: the CPU, and each CUDA device. main refuses to run without one
// where MAMBA_REQUIRE_CUDA=1 is in the environment.
inline std::vector<Device> devices() {
  std::vector<Device> list{Device::cpu()};
  const int cuda = cuda_device_count();
  for (int i = 0; i < cuda; ++i) list.push_back(Device::cuda(i));
  return list;
}

inline const std::vector<DType>& storage_dtypes() {
  static const std::vector<DType> list{DType::f32, DType::bf16, DType::f16};
  return list;
}

// Half the distance between neighbouring values near 1: the relative error of one rounding.
inline double roundoff(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 0x1p-8;
    case DType::f16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

constexpr double f32_roundoff = 0x1p-24;

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  double uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  double normal(double deviation = 1) {
    return std::normal_distribution<double>(0, deviation)(engine_);
  }
  std::int64_t integer(std::int64_t low, std::int64_t high) {  // both included
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }

  // A tensor on the CPU whose elements are drawn by `draw()` and rounded to `dtype`.
  template <class Draw>
  Tensor tensor(const Shape& shape, DType dtype, Draw draw) {
    Tensor exact(shape, DType::f32);
    float* values = exact.data<float>();
    for (std::int64_t i = 0; i < shape.count(); ++i) values[i] = static_cast<float>(draw());
    return dtype == DType::f32 ? std::move(exact) : exact.to(Device::cpu(), dtype);
  }
  Tensor normal_tensor(const Shape& shape, DType dtype = DType::f32, double deviation = 1) {
    return tensor(shape, dtype, [&] { return normal(deviation); });
  }
  Tensor uniform_tensor(const Shape& shape, double low, double high, DType dtype = DType::f32) {
    return tensor(shape, dtype, [&] { return uniform(low, high); });
  }

 private:
  std::mt19937_64 engine_;
};

// The elements of any floating-point view, in order, as doubles on the host.
inline std::vector<double> values(ConstTensorView view) {
  Tensor dense(view.shape(), DType::f32, view.device());
  Stream& stream = default_stream(view.device());
  copy(view, dense, stream);
  stream.synchronize();
  const Tensor host = dense.to(Device::cpu());
  const float* data = host.data<float>();
  return {data, data + host.count()};
}

// The bytes of a view's elements, for bit-for-bit comparison.
inline std::vector<unsigned char> bits(ConstTensorView view) {
  Tensor dense(view.shape(), view.dtype(), view.device());
  Stream& stream = default_stream(view.device());
  copy(view, dense, stream);
  stream.synchronize();
  const Tensor host = dense.to(Device::cpu());
  if (host.count() == 0) return {};
  const auto* data = static_cast<const unsigned char*>(host.view().data());
  return {data, data + host.bytes()};
}

// A reference value and how far from it a correct result may lie.
struct Bounded {
  double value = 0;
  double bound = 0;
};

// Every element within its bound, and finite where the reference is. `result` may have any dtype:
// the rounding of its storage is added to the bound here.
inline void expect_within(ConstTensorView result, const std::vector<Bounded>& expected,
                          const std::string& what) {
  const std::vector<double> got = values(result);
  ASSERT_EQ(got.size(), expected.size()) << what;
  const double unit = roundoff(result.dtype());
  const double smallest =
      result.dtype() == DType::f16 ? 0x1p-25 : 0x1p-127;  // half a subnormal step
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double storage = unit * (std::abs(expected[i].value) + expected[i].bound) + smallest;
    ASSERT_LE(std::abs(got[i] - expected[i].value), expected[i].bound + storage)
        << what << ": element " << i << " is " << got[i] << ", expected " << expected[i].value
        << " within " << expected[i].bound + storage;
  }
}

// An output surrounded by a pattern: pitches larger than the shape needs, and bands before and
// after. Elements start as NaN (a quiet pattern that no operation writes), so that an unwritten
// output is seen.
class Guarded {
 public:
  // `pad` columns lie between the rows of the last dimension (shapes of rank <= 3); 0 is dense.
  Guarded(const Shape& shape, DType dtype, Device device = Device::cpu(), std::int64_t pad = 0);
  TensorView view() const { return view_; }
  // Fails the test if anything outside the view has changed.
  void expect_untouched(const std::string& what) const;

 private:
  Tensor memory_;
  TensorView view_;
  std::vector<unsigned char> before_;
  std::vector<bool> inside_;  // per byte
};

inline Guarded::Guarded(const Shape& shape, DType dtype, Device device, std::int64_t pad) {
  constexpr std::int64_t band = 64;
  const int last = shape.rank() - 1;
  const Shape padded = pad > 0 ? shape.with(last, shape.back() + pad) : shape;
  const std::int64_t width = size_of(dtype);
  const std::int64_t total = padded.count() + 2 * band;
  Tensor host({total}, dtype);
  auto* fill = static_cast<unsigned char*>(host.view().data());
  for (std::int64_t i = 0; i < total * width; ++i) fill[i] = 0xff;  // NaN in f32, bf16 and f16; -1
  before_.assign(fill, fill + total * width);
  memory_ = host.to(device);
  TensorView all(static_cast<char*>(memory_.view().data()) + band * width, padded, dtype, device);
  view_ = pad > 0 ? all.columns(0, shape.back()) : all;
  inside_.assign(before_.size(), false);
  const std::int64_t row = padded.rank() > 0 ? padded.back() : 1;
  for (std::int64_t i = 0; i < padded.count(); ++i) {
    if (pad > 0 && i % row >= shape.back()) continue;
    for (std::int64_t byte = 0; byte < width; ++byte) {
      inside_[static_cast<std::size_t>((band + i) * width + byte)] = true;
    }
  }
}

inline void Guarded::expect_untouched(const std::string& what) const {
  const std::vector<unsigned char> after = bits(memory_);
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (!inside_[i]) {
      ASSERT_EQ(after[i], before_[i])
          << what << ": byte " << i << " outside the output was written";
    }
  }
}

// The folder of a golden checkpoint. MAMBA_GOLDEN_DIR in the environment stands in for the path of
// the build, for a test program that was carried to another machine.
inline std::string golden_folder(const std::string& name) {
  const char* moved = std::getenv("MAMBA_GOLDEN_DIR");
  return std::string(moved != nullptr ? moved : MAMBA_GOLDEN_DIR) + "/" + name;
}

// ||a - b|| / ||b||
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// A folder of this test's own, emptied first and removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("mamba_") + info->test_suite_name() + "_" + info->name() + "_" +
                       std::to_string(getpid());
    std::replace(name.begin(), name.end(), '/', '_');  // before the parameters
    path_ = std::filesystem::temp_directory_path() / name;
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Expects `statement` to throw `Kind` with exactly this text.
template <class Kind, class Statement>
void expect_error(const std::string& text, Statement statement) {
  try {
    statement();
    ADD_FAILURE() << "expected an error: " << text;
  } catch (const Kind& error) {
    EXPECT_EQ(text, error.what());
  }
}

}  // namespace mamba::testing
