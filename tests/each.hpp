// TEST_EACH(Suite, Name, Device device, DType dtype) { ... } is a test for every device that is
// there and every storage dtype, Suite.Name/cpu_f32 and so on, each of which fails and is chosen
// alone. A specialisation of Every says which values another type has. TEST_P would need a class
// for each list of parameters, and suites of other names than those of their TESTs.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <mamba/config.hpp>

#include "testing.hpp"

namespace mamba::testing {

// A device that is no CPU.
struct CudaDevice : Device {
  explicit CudaDevice(Device device) : Device(device) {}
};

// A parameter that takes some values of its type, as in OneOf<DType::f32, DType::bf16>.
template <auto first, auto... others>
struct OneOf {
  using Value = decltype(first);
  Value value;
  operator Value() const { return value; }
};

// all(): the values that a parameter of this type takes; name(value): its part of a test's name.
template <class Parameter>
struct Every;

template <>
struct Every<Device> {
  static std::vector<Device> all() { return devices(); }
  static std::string name(Device device) {
    return device.is_cpu() ? "cpu" : "cuda" + std::to_string(device.index());
  }
};

template <>
struct Every<CudaDevice> {
  static std::vector<CudaDevice> all() {
    std::vector<CudaDevice> list;
    for (const Device device : devices()) {
      if (device.is_cuda()) list.emplace_back(device);
    }
    return list;
  }
  static std::string name(Device device) { return Every<Device>::name(device); }
};

template <>
struct Every<DType> {
  static std::vector<DType> all() { return storage_dtypes(); }
  static std::string name(DType dtype) { return name_of(dtype); }
};

template <>
struct Every<MixerKind> {
  static std::vector<MixerKind> all() { return {MixerKind::mamba1, MixerKind::mamba2}; }
  static std::string name(MixerKind mixer) { return name_of(mixer); }
};

template <auto first, auto... others>
struct Every<OneOf<first, others...>> {
  using Parameter = OneOf<first, others...>;
  static std::vector<Parameter> all() { return {{first}, {others}...}; }
  static std::string name(Parameter parameter) {
    return Every<typename Parameter::Value>::name(parameter.value);
  }
};

// f(name, values...) for every combination of values of these types, the last one changing fastest.
template <class F>
void each_combination(const std::string& name, const F& f) {
  f(name);
}
template <class Parameter, class... Others, class F>
void each_combination(const std::string& name, const F& f) {
  for (const Parameter& value : Every<Parameter>::all()) {
    const std::string longer = (name.empty() ? "" : name + "_") + Every<Parameter>::name(value);
    each_combination<Others...>(longer, [&](const std::string& whole, const Others&... others) {
      f(whole, value, others...);
    });
  }
}

// Tests are made from these once main has begun, since no device may be asked for before that. It
// is defined where main is, so that a program with another main does not link.
void once_main_has_begun(std::function<void()> make_tests);

// A test of `Fixture`'s suite for every combination of what `body` takes.
template <class Fixture, class Test, class... Parameters>
bool each_as_test(const std::string& suite, const std::string& test, const char* file, int line,
                  void (Test::*body)(Parameters...)) {
  once_main_has_begun([=] {
    each_combination<std::decay_t<Parameters>...>(
        "", [&](const std::string& name, const std::decay_t<Parameters>&... values) {
          ::testing::RegisterTest(suite.c_str(), (test + "/" + name).c_str(), nullptr, nullptr,
                                  file, line, [=]() -> Fixture* {
                                    struct Run : Test {
                                      explicit Run(std::function<void(Test&)> all)
                                          : run(std::move(all)) {}
                                      void TestBody() override { run(*this); }
                                      std::function<void(Test&)> run;
                                    };
                                    return new Run([=](Test& one) { (one.*body)(values...); });
                                  });
        });
  });
  return true;
}

}  // namespace mamba::testing

#define MAMBA_TEST_EACH(fixture, suite, test, ...)                                 \
  struct suite##_##test##_Test : fixture {                                         \
    void body(__VA_ARGS__);                                                        \
  };                                                                               \
  const bool suite##_##test##_is_listed = ::mamba::testing::each_as_test<fixture>( \
      #suite, #test, __FILE__, __LINE__, &suite##_##test##_Test::body);            \
  void suite##_##test##_Test::body(__VA_ARGS__)
#define TEST_EACH(suite, test, ...) MAMBA_TEST_EACH(::testing::Test, suite, test, __VA_ARGS__)
// For a fixture, as TEST_F is for TEST.
#define TEST_EACH_F(fixture, test, ...) MAMBA_TEST_EACH(fixture, fixture, test, __VA_ARGS__)
