#include "host/core/elements.hpp"

#include <cstring>
#include <limits>

#include "detail/visit.hpp"

namespace mamba::elements {

// Files are little-endian and are read and written as memory is.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a big-endian machine must swap bytes");

namespace {

struct Known {
  std::string_view name;
  std::int64_t bits;
  std::string_view words = {};  // of those that no tensor is made of
};

// All that the reference implementation knows.
constexpr Known known_types[] = {{"F64", 64},
                                 {"F32", 32},
                                 {"F16", 16},
                                 {"BF16", 16},
                                 {"I64", 64},
                                 {"I32", 32},
                                 {"I16", 16},
                                 {"I8", 8},
                                 {"U64", 64},
                                 {"U32", 32},
                                 {"U16", 16},
                                 {"U8", 8},
                                 {"BOOL", 8},
                                 {"C64", 64, "complex numbers of two 32-bit floats"},
                                 {"F8_E4M3", 8, "8-bit floats"},
                                 {"F8_E5M2", 8, "8-bit floats"},
                                 {"F8_E4M3FNUZ", 8, "8-bit floats"},
                                 {"F8_E5M2FNUZ", 8, "8-bit floats"},
                                 {"F8_E8M0", 8, "8-bit scales"},
                                 {"F6_E2M3", 6, "6-bit floats"},
                                 {"F6_E3M2", 6, "6-bit floats"},
                                 {"F4", 4, "4-bit floats"}};

const Known* find(std::string_view dtype) {
  for (const Known& known : known_types) {
    if (known.name == dtype) return &known;
  }
  return nullptr;
}

bool is_float(std::string_view dtype) {
  return dtype == "F64" || dtype == "F32" || dtype == "F16" || dtype == "BF16";
}

bool is_integer(std::string_view dtype) { return dtype == "I64" || dtype == "I32"; }

// The float next to `value` on the side of zero, with its last bit set if anything was cut off.
// Rounding this to 16 bits gives what rounding the double would: a tie stays a tie only if it is
// one.
float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const double back = static_cast<double>(nearest);
  if (back == value || value != value) return nearest;
  std::uint32_t bits;
  std::memcpy(&bits, &nearest, 4);
  const bool away_from_zero = value < 0 ? back < value : back > value;
  if (away_from_zero) --bits;
  bits |= 1u;
  float odd;
  std::memcpy(&odd, &bits, 4);
  return odd;
}

template <class Target, class Source>
Target round_to(Source value) {
  if constexpr (std::is_same_v<Source, double> && sizeof(Target) == 2) {
    return Target(round_to_odd(value));
  } else if constexpr (std::is_same_v<Target, Source>) {
    return value;
  } else {
    return static_cast<Target>(static_cast<float>(value));
  }
}

template <class F>
void visit_float(std::string_view dtype, F&& f) {
  if (dtype == "F64") return f(detail::Type<double>{});
  if (dtype == "F32") return f(detail::Type<float>{});
  if (dtype == "F16") return f(detail::Type<f16>{});
  f(detail::Type<bf16>{});
}

template <class T>
T load(const void* memory, std::int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const T*>(memory) + index, sizeof(T));
  return value;
}

template <class T>
void store(void* memory, std::int64_t index, T value) {
  std::memcpy(static_cast<T*>(memory) + index, &value, sizeof(T));
}

std::optional<std::int64_t> narrow(const void* source, void* target, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = load<std::int64_t>(source, i);
    if (value < std::numeric_limits<std::int32_t>::min() ||
        value > std::numeric_limits<std::int32_t>::max()) {
      return value;
    }
    store(target, i, static_cast<std::int32_t>(value));
  }
  return std::nullopt;
}

}  // namespace

std::int64_t bits_of(std::string_view dtype) {
  const Known* known = find(dtype);
  return known != nullptr ? known->bits : 0;
}

std::int64_t size_of(std::string_view dtype) { return bits_of(dtype) / 8; }

std::string spoken(std::string_view dtype) {
  const Known* known = find(dtype);
  std::string text(dtype);
  if (known != nullptr && !known->words.empty()) text.append(" (").append(known->words).append(")");
  return text;
}

const char* file_name_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "I32";
    default:
      return "F32";
  }
}

bool convertible(std::string_view from, std::string_view to) {
  return (is_float(from) && is_float(to)) || (is_integer(from) && is_integer(to));
}

std::optional<std::int64_t> convert(std::string_view from, std::string_view to, const void* source,
                                    void* target, std::int64_t count) {
  if (from == to) {
    std::memcpy(target, source, static_cast<std::size_t>(count * size_of(from)));
    return std::nullopt;
  }
  if (from == "I64") return narrow(source, target, count);
  if (from == "I32") {
    for (std::int64_t i = 0; i < count; ++i) {
      store<std::int64_t>(target, i, load<std::int32_t>(source, i));
    }
    return std::nullopt;
  }
  visit_float(from, [&](auto source_type) {
    visit_float(to, [&](auto target_type) {
      using Source = typename decltype(source_type)::type;
      using Target = typename decltype(target_type)::type;
      for (std::int64_t i = 0; i < count; ++i) {
        store(target, i, round_to<Target>(load<Source>(source, i)));
      }
    });
  });
  return std::nullopt;
}

}  // namespace mamba::elements
