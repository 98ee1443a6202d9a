#include <limits>

#include <mamba/dtype.hpp>

#include "host/ops/storage.hpp"
#include "ops/targets.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::expect_error;

// What a small float format holds, from its definition, in doubles.
struct Format {
  int exponent_bits;
  int fraction_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  std::uint16_t infinity() const {
    return static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << fraction_bits);
  }
  double decode(std::uint16_t bits) const {
    const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) {
      return fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
    }
    const int significand = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
    return sign * std::ldexp(significand, std::max(exponent, 1) - bias() - fraction_bits);
  }
  // The nearest, ties to even, found by scaling to units of the last place.
  std::uint16_t encode(float value) const {
    const double magnitude = std::abs(static_cast<double>(value));
    const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
    if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinity());
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude = m 2^exponent, 0.5 <= m < 1
    exponent = magnitude == 0 ? 1 - bias() : std::max(exponent - 1, 1 - bias());
    const double units = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
    // Consecutive bit patterns are consecutive values, so a carry lands in the exponent by itself.
    const double bits = units + std::ldexp(exponent + bias() - 1, fraction_bits);
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::min<double>(bits, infinity())));
  }
};

constexpr Format bf16_format{8, 7};
constexpr Format f16_format{5, 10};

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class T>
T pattern(std::uint32_t bits) {
  T value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

template <class T>
void every_pattern_comes_back(const Format& format) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(pattern<T>(bits));
    const double expected = format.decode(static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      const T again(value);
      ASSERT_TRUE(std::isnan(static_cast<float>(again))) << bits;
      ASSERT_EQ(again.bits >> 15, bits >> 15);
      ASSERT_EQ(again.bits, bits | 1u << (format.fraction_bits - 1));  // quiet
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), expected) << bits;
    ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
    ASSERT_EQ(T(value).bits, bits);
  }
}

template <class T>
void expect_rounded(const Format& format, float value) {
  ASSERT_EQ(T(value).bits, format.encode(value)) << value;
  ASSERT_EQ(T(-value).bits, format.encode(-value)) << -value;
}

// Round every value of the format: the half-way point to its neighbour and the floats beside that.
template <class T>
void rounds_to_nearest_even(const Format& format) {
  for (std::uint16_t bits = 0; bits < format.infinity(); ++bits) {
    const double low = format.decode(bits);
    const double high = bits + 1 == format.infinity()
                            ? 2 * low - format.decode(static_cast<std::uint16_t>(bits - 1))
                            : format.decode(static_cast<std::uint16_t>(bits + 1));
    const auto half = static_cast<float>((low + high) / 2);
    for (const float value : {std::nextafter(half, 0.0f), half, std::nextafter(half, HUGE_VALF)}) {
      ASSERT_NO_FATAL_FAILURE(expect_rounded<T>(format, value));
    }
  }
  testing::Random random(1);
  for (int i = 0; i < 1000000; ++i) {
    const float value = float_of(static_cast<std::uint32_t>(random.integer(0, 0xffffffff)));
    if (std::isnan(value)) continue;
    ASSERT_NO_FATAL_FAILURE(expect_rounded<T>(format, value));
  }
  for (const float value :
       {0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::min(),
        std::numeric_limits<float>::max(), HUGE_VALF, 65504.0f, 65519.996f, 65520.0f, 65536.0f}) {
    ASSERT_NO_FATAL_FAILURE(expect_rounded<T>(format, value));
  }
}

TEST(Bf16, EveryPatternComesBack) { every_pattern_comes_back<bf16>(bf16_format); }
TEST(F16, EveryPatternComesBack) { every_pattern_comes_back<f16>(f16_format); }
TEST(Bf16, RoundsToNearestEven) { rounds_to_nearest_even<bf16>(bf16_format); }
TEST(F16, RoundsToNearestEven) { rounds_to_nearest_even<f16>(f16_format); }

// A NaN whose payload lies only in the bits that are cut off must not become an infinity.
TEST(Bf16, ANaNStaysANaN) {
  for (const std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(bf16(float_of(bits)))));
    EXPECT_EQ(bf16(float_of(bits)).bits >> 15, bits >> 31);
    EXPECT_TRUE(std::isnan(static_cast<float>(f16(float_of(bits)))));
    EXPECT_EQ(f16(float_of(bits)).bits >> 15, bits >> 31);
  }
}

// The vector conversions of the host kernels, on every instruction set, are those of dtype.hpp to
// the bit, at any length (the last part of a run goes another way).
template <class T>
void vectors_convert_as_scalars_do() {
  std::vector<T> stored(0x10000);
  std::vector<float> floats;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) stored[bits] = pattern<T>(bits);
  testing::Random random(3);
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(stored[bits]);
    floats.push_back(value);
    floats.push_back((value + static_cast<float>(stored[(bits + 1) & 0xffff])) / 2);  // half-way
    floats.push_back(float_of(static_cast<std::uint32_t>(random.integer(0, 0xffffffff))));
  }
  for (const std::size_t length :
       {std::size_t{1}, std::size_t{7}, std::size_t{31}, stored.size()}) {
    std::vector<float> wide(length + 1, 42.0f);
    host::widen(stored.data(), dtype_of<T>(), wide.data(), static_cast<std::int64_t>(length));
    for (std::size_t i = 0; i < length; ++i) {
      const auto expected = static_cast<float>(stored[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
      } else {
        ASSERT_EQ(std::memcmp(&wide[i], &expected, sizeof(float)), 0) << i;
      }
    }
    ASSERT_EQ(wide[length], 42.0f);
  }
  for (const std::size_t length :
       {std::size_t{1}, std::size_t{7}, std::size_t{31}, floats.size()}) {
    std::vector<T> narrow(length + 1, T(42.0f));
    host::narrow(floats.data(), nullptr, DType::f32, narrow.data(), dtype_of<T>(),
                 static_cast<std::int64_t>(length));
    for (std::size_t i = 0; i < length; ++i)
      ASSERT_EQ(narrow[i].bits, T(floats[i]).bits) << floats[i];
    ASSERT_EQ(narrow[length].bits, T(42.0f).bits);
  }
}

TEST(Storage, VectorsConvertAsScalarsDo) {
  testing::for_each_target([](const char*) {
    vectors_convert_as_scalars_do<bf16>();
    vectors_convert_as_scalars_do<f16>();
  });
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::f16), 2);
  EXPECT_EQ(size_of(DType::i32), 4);
  for (const DType dtype : testing::storage_dtypes()) {
    EXPECT_EQ(parse_storage_dtype(name_of(dtype)), dtype);
  }
  EXPECT_STREQ(name_of(DType::i32), "i32");
  for (const char* text : {"i32", "", "F32", "float"}) {
    expect_error<ArgumentError>(
        "parse_storage_dtype: dtype: expected f32, bf16 or f16, got \"" + std::string(text) + "\"",
        [&] { parse_storage_dtype(text); });
  }
}

}  // namespace
}  // namespace mamba
