#include <cmath>
#include <limits>
#include <type_traits>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

#include "core/allocations.hpp"
#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::devices;
using testing::expect_error;
using testing::Guarded;
using testing::Random;

static_assert(!std::is_copy_constructible_v<Tensor> && !std::is_copy_assignable_v<Tensor>);
static_assert(std::is_nothrow_move_constructible_v<Tensor>);
static_assert(!std::is_convertible_v<ConstTensorView, TensorView>);
static_assert(!std::is_constructible_v<TensorView, ConstTensorView>);

// 0, 1, 2, ... so that a value says where it is.
Tensor counting(const Shape& shape, DType dtype = DType::f32) {
  double next = 0;
  return Random(1).tensor(shape, dtype, [&] { return next++; });
}

TEST(Device, ParsesItsNames) {
  EXPECT_EQ(Device::parse("cpu"), Device::cpu());
  EXPECT_EQ(Device::parse("cuda"), Device::cuda(0));
  EXPECT_EQ(Device::parse("cuda:3"), Device::cuda(3));
  EXPECT_NE(Device::cuda(3), Device::cuda(0));
  EXPECT_EQ(Device::cuda(3).name(), "cuda:3");
  EXPECT_EQ(Device::parse(Device::cpu().name()), Device());
  for (const char* text :
       {"", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"}) {
    expect_error<ArgumentError>(
        "Device::parse: device: expected cpu, cuda or cuda:N, got \"" + std::string(text) + "\"",
        [&] { Device::parse(text); });
  }
}

TEST(Shape, Basics) {
  const Shape shape{2, 5, 16};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape.count(), 160);
  EXPECT_EQ(shape.back(), 16);
  EXPECT_EQ(shape.to_string(), "[2, 5, 16]");
  EXPECT_EQ(shape.with(1, 7), (Shape{2, 7, 16}));
  EXPECT_NE(shape, (Shape{2, 5}));
  EXPECT_EQ(Shape().count(), 1);
  EXPECT_EQ(Shape().to_string(), "[]");
  expect_error<ArgumentError>("Shape: sizes: expected at most 4, got 5", [] {
    Shape({1, 2, 3, 4, 5});
  });
}

TEST_EACH(Tensor, AbsentEmptyAndPresent, Device device) {
  EXPECT_FALSE(Tensor());
  EXPECT_FALSE(ConstTensorView());
  EXPECT_EQ(Tensor().bytes(), 0);
  const Tensor empty({3, 0, 2}, DType::bf16, device);
  EXPECT_TRUE(empty);
  EXPECT_TRUE(empty.view());
  EXPECT_EQ(empty.count(), 0);
  EXPECT_EQ(empty.bytes(), 0);
  EXPECT_TRUE(empty.clone());
  EXPECT_FALSE(Tensor().clone());
  EXPECT_FALSE(Tensor().to(device));
  const Tensor zeros = Tensor::zeros({2, 3}, DType::f16, device);
  EXPECT_EQ(zeros.bytes(), 12);
  EXPECT_EQ(testing::values(zeros), std::vector<double>(6, 0.0));
}

TEST(Tensor, ShapesThatCannotBe) {
  expect_error<ArgumentError>("Tensor: shape: expected sizes of at least 0, got [2, -1]", [] {
    Tensor({2, -1}, DType::f32);
  });
  expect_error<ArgumentError>("Tensor: shape: expected sizes of at least 0, got [0, -1]", [] {
    Tensor({0, -1}, DType::f32);
  });
  const std::int64_t huge = std::int64_t{1} << 31;
  expect_error<ArgumentError>(
      "Tensor: shape: expected fewer than 2^63 bytes, got [2147483648, 2147483648]", [&] {
        Tensor({huge, huge}, DType::bf16);
      });
  expect_error<ArgumentError>(
      "Tensor: shape: expected fewer than 2^63 bytes, got [9223372036854775807]",
      [] { Tensor({std::numeric_limits<std::int64_t>::max()}, DType::bf16); });
  // The product overflows before the zero: still too large to index.
  expect_error<ArgumentError>(
      "Tensor: shape: expected fewer than 2^63 bytes, got [2147483648, 2147483648, 2, 0]", [&] {
        Tensor({huge, huge, 2, 0}, DType::f32);
      });
  if (testing::allocations_are_counted()) {  // a sanitizer would end the program instead
    EXPECT_THROW(Tensor({std::int64_t{1} << 60}, DType::f32), std::bad_alloc);
  }
}

TEST(Tensor, FromValues) {
  const Tensor tensor = Tensor::from<std::int32_t>({1, 2, 3, 4, 5, 6}, {2, 3});
  EXPECT_EQ(tensor.dtype(), DType::i32);
  EXPECT_EQ(tensor.data<std::int32_t>()[5], 6);
  EXPECT_TRUE(Tensor::from<float>({}, {0, 3}));
  expect_error<ArgumentError>("Tensor::from: values: expected 6 values, got 5", [] {
    Tensor::from<float>({1, 2, 3, 4, 5}, {2, 3});
  });
  expect_error<ArgumentError>("TensorView::data: dtype: expected i32, got f32",
                              [&] { tensor.data<float>(); });
}

TEST(Tensor, FromValuesOfOneDimension) {
  const Tensor ids = Tensor::from({3, 5, 8});
  EXPECT_EQ(ids.shape(), (Shape{3}));
  EXPECT_EQ(ids.dtype(), DType::i32);
  EXPECT_EQ(ids.to_vector<std::int32_t>(), (std::vector<std::int32_t>{3, 5, 8}));
  EXPECT_EQ(Tensor::from(std::vector<float>{1.5f, 2.0f}).shape(), (Shape{2}));
}

TEST(Tensor, FullOfOneValue) {
  for (const Device device : devices()) {
    for (const DType dtype : testing::storage_dtypes()) {
      const Tensor tensor = Tensor::full({2, 3}, 0.3, dtype, device);
      EXPECT_EQ(tensor.device(), device);
      EXPECT_EQ(tensor.dtype(), dtype);
      for (const float value : tensor.to_vector<float>()) EXPECT_NEAR(value, 0.3f, 0.3f * 0x1p-8f);
    }
    const Tensor whole = Tensor::full({4}, -7, DType::i32, device);
    EXPECT_EQ(whole.to_vector<std::int32_t>(), (std::vector<std::int32_t>(4, -7)));
  }
  EXPECT_EQ(Tensor::full({0, 3}, 1, DType::f32).count(), 0);
  for (const double value : {0.5, 0x1p31, -0x1p40, std::nan("")}) {
    EXPECT_THROW(Tensor::full({1}, value, DType::i32), ArgumentError) << value;
  }
  expect_error<ArgumentError>("Tensor::full: value: expected a whole number of 32 bits, got 0.5",
                              [] { Tensor::full({1}, 0.5, DType::i32); });
}

TEST(View, ToVectorIsInOrderWhateverThePitches) {
  for (const Device device : devices()) {
    const Tensor there = counting({2, 3, 4}).to(device);
    const auto all = there.to_vector<float>();
    ASSERT_EQ(all.size(), 24u);
    EXPECT_EQ(all[23], 23);
    EXPECT_EQ(there.view().columns(1, 2).rows(1, 1).to_vector<float>(),
              (std::vector<float>{13, 14, 17, 18, 21, 22}));
    const Tensor half = there.to(device, DType::bf16);
    EXPECT_EQ(half.to_vector<float>()[5], 5);
    EXPECT_EQ(static_cast<float>(half.to_vector<bf16>()[5]), 5);
  }
  EXPECT_TRUE(ConstTensorView().to_vector<float>().empty());
  EXPECT_TRUE(Tensor().to_vector<float>().empty());
  EXPECT_TRUE(Tensor({0, 2}, DType::f32).to_vector<float>().empty());
  expect_error<ArgumentError>("copy: to: expected i32, got f32",
                              [] { Tensor::from({1}).to_vector<float>(); });
}

TEST(View, TheOnlyItem) {
  for (const Device device : devices()) {
    const Tensor there = counting({2, 3}).to(device);
    EXPECT_EQ(there.view().rows(1, 1).columns(2, 1).item<float>(), 5);
    EXPECT_EQ(Tensor::from({42}).to(device).item<std::int32_t>(), 42);
  }
  expect_error<ArgumentError>("TensorView::item: view: expected one element, got [2, 3]", [] {
    counting({2, 3}).item<float>();
  });
  expect_error<ArgumentError>("TensorView::item: view: expected one element, got none",
                              [] { Tensor().item<float>(); });
}

TEST(Tensor, LargeOnesAreAligned) {
  const auto address = [](const Tensor& t) {
    return reinterpret_cast<std::uintptr_t>(t.view().data());
  };
  EXPECT_EQ(address(Tensor({100}, DType::f32)) % 256, 0u);
  EXPECT_EQ(address(Tensor({1 << 21}, DType::f32)) % (2 << 20), 0u);
}

TEST(Tensor, AMoveKeepsTheMemory) {
  Tensor from = counting({4});
  const void* memory = from.view().data();
  Tensor to = std::move(from);
  EXPECT_EQ(to.view().data(), memory);
  EXPECT_EQ(testing::values(to), (std::vector<double>{0, 1, 2, 3}));
}

TEST_EACH(Tensor, AdoptedMemoryIsReadAndWrittenInPlaceAndReleasedOnce, Device device) {
  Tensor owner = counting({2, 3}).to(device);
  int released = 0;
  {
    Tensor adopted =
        Tensor::adopt(owner.view().data(), {2, 3}, DType::f32, device, [&released] { ++released; });
    EXPECT_EQ(adopted.view().data(), owner.view().data());
    EXPECT_EQ(adopted.shape(), (Shape{2, 3}));
    EXPECT_EQ(adopted.device(), device);
    EXPECT_EQ(testing::values(adopted), (std::vector<double>{0, 1, 2, 3, 4, 5}));
    const Tensor clone = adopted.clone();
    Tensor moved = std::move(adopted);
    EXPECT_FALSE(adopted);
    Stream& stream = default_stream(device);
    zero(moved, stream);
    stream.synchronize();
    EXPECT_EQ(testing::values(clone), (std::vector<double>{0, 1, 2, 3, 4, 5}));
    EXPECT_EQ(released, 0);
  }
  EXPECT_EQ(released, 1);
  EXPECT_EQ(testing::values(owner), std::vector<double>(6, 0.0));
}

TEST(Tensor, AdoptedMemoryIsReleasedWhenAnotherTensorTakesItsPlace) {
  std::vector<float> memory(4);
  int released = 0;
  Tensor tensor = Tensor::adopt(memory.data(), {4}, DType::f32, Device::cpu(), [&] { ++released; });
  tensor = Tensor({2}, DType::f32);
  EXPECT_EQ(released, 1);
  // Of no elements, and with nothing to release.
  const Tensor empty = Tensor::adopt(memory.data(), {0, 4}, DType::f32, Device::cpu(), {});
  EXPECT_EQ(empty.count(), 0);
  EXPECT_TRUE(empty);
}

TEST(Tensor, WhatCannotBeAdoptedIsNotReleased) {
  int released = 0;
  float memory = 0;
  const auto adopt = [&](void* at, const Shape& shape) {
    Tensor::adopt(at, shape, DType::f32, Device::cpu(), [&] { ++released; });
  };
  expect_error<ArgumentError>("Tensor::adopt: memory: expected an address, got none",
                              [&] { adopt(nullptr, {1}); });
  expect_error<ArgumentError>("Tensor::adopt: shape: expected sizes of at least 0, got [-1]",
                              [&] { adopt(&memory, {-1}); });
  EXPECT_EQ(released, 0);
}

TEST_EACH(Tensor, ACloneIsIndependent, Device device) {
  Tensor original = counting({2, 3}).to(device);
  Tensor clone = original.clone();
  Stream& stream = default_stream(device);
  zero(original, stream);
  stream.synchronize();
  EXPECT_EQ(testing::values(clone), (std::vector<double>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(testing::values(original), std::vector<double>(6, 0.0));
  EXPECT_EQ(testing::values(clone.clone(stream)), testing::values(clone));
}

TEST(View, DensePitches) {
  const Tensor four = counting({2, 3, 4, 5});
  EXPECT_EQ(four.view().row_pitch(), 60);
  EXPECT_EQ(four.view().step_pitch(), 20);
  const Tensor three = counting({2, 3, 4});
  EXPECT_EQ(three.view().row_pitch(), 12);
  EXPECT_EQ(three.view().step_pitch(), 4);
  const Tensor two = counting({2, 3});
  EXPECT_EQ(two.view().row_pitch(), 3);
  EXPECT_EQ(two.view().step_pitch(), 1);
  const Tensor one = counting({2});
  EXPECT_EQ(one.view().row_pitch(), 1);
  EXPECT_EQ(one.view().step_pitch(), 1);
}

TEST_EACH(View, PitchesOfMemoryThatSomeoneElseLaidOut, Device device) {
  const Tensor time_first = counting({3, 2, 4}).to(device);  // [time, batch, channels]
  const void* data = time_first.view().data();
  const ConstTensorView v(data, {2, 3, 4}, Pitches{4, 8}, DType::f32, device);
  EXPECT_EQ(v.row_pitch(), 4);
  EXPECT_EQ(v.step_pitch(), 8);
  EXPECT_FALSE(v.is_dense());
  EXPECT_EQ(testing::values(v.columns(0, 2)),
            (std::vector<double>{0, 1, 8, 9, 16, 17, 4, 5, 12, 13, 20, 21}));
  EXPECT_EQ(testing::values(v.rows(1, 1).steps(1, 2).columns(3, 1)), (std::vector<double>{15, 23}));
  const ConstTensorView twice(data, {2, 4}, Pitches{0, 7}, DType::f32, device);
  EXPECT_EQ(testing::values(twice), (std::vector<double>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(twice.step_pitch(), 1);  // a rank of 2 has none
  const ConstTensorView one(data, {4}, Pitches{9, 9}, DType::f32, device);
  EXPECT_EQ(one.row_pitch(), 1);
}

TEST_EACH(View, SlicesAreTheSameMemory, Device device) {
  const Tensor tensor = counting({2, 3, 4}).to(device);
  const ConstTensorView v = tensor;
  EXPECT_EQ(testing::values(v.rows(1, 1)),
            (std::vector<double>{12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(testing::values(v.steps(1, 2)),
            (std::vector<double>{4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23}));
  EXPECT_EQ(testing::values(v.columns(3, 1)), (std::vector<double>{3, 7, 11, 15, 19, 23}));
  EXPECT_EQ(testing::values(v.rows(1, 1).steps(2, 1).columns(1, 2)), (std::vector<double>{21, 22}));
  EXPECT_EQ(v.columns(1, 2).data(), static_cast<const char*>(v.data()) + 4);
  EXPECT_EQ(v.steps(1, 1).row_pitch(), 12);
  EXPECT_EQ(v.rows(2, 0).count(), 0);
  EXPECT_EQ(v.columns(4, 0).count(), 0);
  const Tensor two = counting({3, 4}).to(device);
  EXPECT_EQ(testing::values(two.view().columns(1, 2)), (std::vector<double>{1, 2, 5, 6, 9, 10}));
  const Tensor one = counting({5}).to(device);
  EXPECT_EQ(testing::values(one.view().columns(1, 2)), (std::vector<double>{1, 2}));
  EXPECT_EQ(testing::values(one.view().rows(3, 2)), (std::vector<double>{3, 4}));
}

TEST(View, Density) {
  const Tensor tensor = counting({2, 3, 4});
  const ConstTensorView v = tensor;
  EXPECT_TRUE(v.is_dense());
  EXPECT_TRUE(v.rows(1, 1).is_dense());
  EXPECT_FALSE(v.steps(0, 2).is_dense());
  EXPECT_TRUE(v.rows(0, 1).steps(1, 2).is_dense());
  EXPECT_FALSE(v.columns(0, 3).is_dense());
  EXPECT_FALSE(v.steps(0, 1).is_dense());
  EXPECT_TRUE(v.columns(0, 0).is_dense());
  EXPECT_TRUE(v.rows(0, 1).steps(0, 1).columns(1, 2).is_dense());
}

TEST(View, Reshape) {
  const Tensor tensor = counting({2, 3, 4});
  const ConstTensorView v = tensor;
  EXPECT_EQ(v.reshape({6, 4}).row_pitch(), 4);
  EXPECT_EQ(testing::values(v.rows(1, 1).reshape({12})).front(), 12);
  expect_error<ArgumentError>(
      "TensorView::reshape: shape: expected 24 elements of a dense view, got [5, 5]", [&] {
        v.reshape({5, 5});
      });
  expect_error<ArgumentError>(
      "TensorView::reshape: shape: expected 16 elements of a dense view, got [4, 4]", [&] {
        v.steps(0, 2).reshape({4, 4});
      });
}

TEST(View, SlicesOutOfRange) {
  const Tensor tensor = counting({2, 3, 4}), two = counting({2, 3}), four = counting({1, 1, 1, 1});
  const ConstTensorView v = tensor;
  const auto expect = [](const std::string& text, auto slice) {
    expect_error<ArgumentError>("TensorView::" + text, slice);
  };
  expect("rows: range: expected within [0, 2), got [1, 1 + 2) of [2, 3, 4]", [&] { v.rows(1, 2); });
  expect("rows: range: expected within [0, 2), got [-1, -1 + 1) of [2, 3, 4]",
         [&] { v.rows(-1, 1); });
  expect("rows: range: expected within [0, 2), got [0, 0 + -1) of [2, 3, 4]",
         [&] { v.rows(0, -1); });
  expect("steps: range: expected within [0, 3), got [0, 0 + 4) of [2, 3, 4]",
         [&] { v.steps(0, 4); });
  expect("columns: range: expected within [0, 4), got [5, 5 + 0) of [2, 3, 4]",
         [&] { v.columns(5, 0); });
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  expect(
      "columns: range: expected within [0, 4), got [9223372036854775807, 9223372036854775807 + "
      "1) of [2, 3, 4]",
      [&] { v.columns(most, 1); });
  expect("steps: range: expected within [0, 0), got [0, 0 + 1) of [2, 3]",
         [&] { two.view().steps(0, 1); });
  expect("columns: range: expected within [0, 0), got [0, 0 + 1) of [1, 1, 1, 1]",
         [&] { four.view().columns(0, 1); });
  expect("rows: range: expected within [0, 0), got [0, 0 + 0) of []",
         [&] { ConstTensorView().rows(0, 0); });
}

TEST_EACH(Copy, ConvertsBetweenAnyTwoDtypes, Device device) {
  for (const DType from : testing::storage_dtypes()) {
    for (const DType to : testing::storage_dtypes()) {
      const Tensor source = Random(2).normal_tensor({5, 7}, from);
      const Tensor converted = source.to(device, to);
      const std::vector<double> got = testing::values(converted);
      const std::vector<double> exact = testing::values(source);
      for (std::size_t i = 0; i < got.size(); ++i) {
        const auto value = static_cast<float>(exact[i]);
        const float expected = to == DType::bf16  ? static_cast<float>(bf16(value))
                               : to == DType::f16 ? static_cast<float>(f16(value))
                                                  : value;
        ASSERT_EQ(got[i], static_cast<double>(expected));
      }
    }
  }
}

TEST_EACH(Copy, BetweenStridedViews, Device device) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor whole = counting({2, 5, 6}).to(device);
    const ConstTensorView from = whole.view().steps(1, 3).columns(2, 3);
    const Guarded to({2, 3, 3}, dtype, device, 4);
    Stream& stream = default_stream(device);
    copy(from, to.view(), stream);
    EXPECT_EQ(testing::values(to.view()), testing::values(from));
    to.expect_untouched("copy");
    zero(to.view(), stream);
    EXPECT_EQ(testing::values(to.view()), std::vector<double>(18, 0.0));
    to.expect_untouched("zero");
  }
  const Tensor four = counting({2, 3, 2, 2}).to(device);
  const Guarded to({2, 2, 2, 2}, DType::f32, device);
  copy(four.view().steps(1, 2), to.view(), default_stream(device));
  EXPECT_EQ(testing::values(to.view()), testing::values(four.view().steps(1, 2)));
}

TEST(Copy, WrongOperandsAreNamed) {
  Stream& stream = default_stream();
  Tensor a = counting({2, 3}), b = counting({3, 2}), ids({2, 3}, DType::i32),
         more({2, 3}, DType::i32);
  expect_error<ArgumentError>("copy: to: expected [2, 3], got [3, 2]", [&] { copy(a, b, stream); });
  expect_error<ArgumentError>("copy: to: expected i32, got f32", [&] { copy(ids, a, stream); });
  expect_error<ArgumentError>("copy: to: expected f32, got i32", [&] { copy(a, ids, stream); });
  expect_error<ArgumentError>("copy: from: expected a tensor, got none",
                              [&] { copy({}, a, stream); });
  expect_error<ArgumentError>("copy: to: expected a tensor, got none",
                              [&] { copy(a, {}, stream); });
  zero(ids, stream);
  copy(ids, more, stream);
  EXPECT_EQ(more.data<std::int32_t>()[5], 0);
}

TEST_EACH(Zero, OverwritesNaN, Device device) {
  Tensor tensor =
      Tensor::from<float>({std::numeric_limits<float>::quiet_NaN(), HUGE_VALF}, {2}).to(device);
  zero(tensor, default_stream(device));
  EXPECT_EQ(testing::values(tensor), (std::vector<double>{0, 0}));
}

#ifndef MAMBA_HAS_CUDA  // with it: cuda_device_test.cpp
TEST(Tensor, ABuildWithoutCudaSaysSo) {
  const std::string none = ": device: expected cpu (this build has no CUDA), got cuda:0";
  expect_error<DeviceError>("Tensor" + none, [] { Tensor({1}, DType::f32, Device::cuda()); });
  expect_error<DeviceError>("Tensor::pinned" + none, [] { Tensor::pinned({1}, DType::f32); });
  expect_error<DeviceError>("Stream" + none, [] { Stream{Device::cuda()}; });
  expect_error<DeviceError>("Stream::borrow" + none,
                            [] { Stream::borrow(Device::cuda(), nullptr); });
  expect_error<DeviceError>("Stream" + none,
                            [] { Tensor::zeros({1}, DType::f32).to(Device::cuda()); });
  EXPECT_EQ(testing::values(Tensor::zeros({1}, DType::f32)), std::vector<double>{0});
}
#endif

}  // namespace
}  // namespace mamba
