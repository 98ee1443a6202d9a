#include <mamba/safetensors.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <thread>

#include "files.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;

std::string length_field(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}

// A file made by hand: it shares no code with save_safetensors.
std::string make_file(const std::string& header, const std::string& data) {
  return length_field(header.size()) + header + data;
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

void read_everything(const std::string& path) {
  const SafetensorsFile file(path);
  for (const SafetensorsEntry& entry : file.entries()) file.bytes(entry);
}

TEST(Safetensors, ReadsAFileMadeByHand) {
  const TemporaryFolder folder;
  const std::string path = folder.file("hand.safetensors");
  const std::string header =
      R"( {"b":{"shape":[2],"data_offsets":[12,16],"dtype":"BF16"},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[3,1],"data_offsets":[0,12]},)"
      R"("none":{"dtype":"I8","shape":[0,5],"data_offsets":[12,12]}}   )";
  testing::write_file(path, make_file(header.substr(1),
                                      raw<float>({1, 2, 3}) + std::string("\x80\x3f\x00\xc0", 4)));
  const SafetensorsFile file(path);
  ASSERT_EQ(file.entries().size(), 3u);
  EXPECT_EQ(file.entries()[0].name, "a");
  EXPECT_EQ(file.entries()[1].name, "none");
  EXPECT_EQ(file.entries()[2].name, "b");
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(file.find("c"), nullptr);
  const SafetensorsEntry& a = file.entry("a");
  EXPECT_EQ(a.dtype, "F32");
  EXPECT_EQ(a.shape_text(), "[3, 1]");
  EXPECT_EQ(a.offset, static_cast<std::int64_t>(8 + header.size() - 1));
  EXPECT_EQ(a.bytes, 12);
  EXPECT_EQ(testing::values(file.read(a)), (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(file.read(a).shape(), (Shape{3, 1}));
  EXPECT_EQ(testing::values(file.read(file.entry("b"), {1, 2}, DType::f32)),
            (std::vector<double>{1, -2}));
  EXPECT_EQ(file.bytes(file.entry("b")), (std::vector<unsigned char>{0x80, 0x3f, 0x00, 0xc0}));
  EXPECT_EQ(tensor_dtype(a), DType::f32);
  EXPECT_EQ(tensor_dtype(file.entry("none")), std::nullopt);
  expect_error<FormatError>(path + ": c: expected a tensor, got none", [&] { file.entry("c"); });
  expect_error<FormatError>(path + ": none: expected F32, BF16, F16, F64, I32 or I64, got I8",
                            [&] { file.read(file.entry("none")); });
}

// What is not of the format, and what is said of it.
struct Lie {
  std::string header;
  std::size_t data_bytes;
  std::string text;  // after the path
};

TEST(Safetensors, LiesAreNamed) {
  std::string many = "1";
  for (int i = 0; i < 64; ++i) many += ",1";
  const std::vector<Lie> lies{
      {"[]", 0, "header: expected an object, got something else"},
      {" {}", 0, "header: expected an object, got something else"},
      {"{\"a\":", 0, "header: expected valid JSON, got an error at byte 6"},
      {"{}{}", 0, "header: expected valid JSON, got an error at byte 3"},
      {std::string("{}\0{", 4), 0, "header: expected text, got a NUL at byte 2"},
      {"{\"\xff\":1}", 0, "header: expected valid JSON, got an error at byte 3"},
      {R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})", 4,
       "header: expected valid JSON, got an error at byte 34"},
      {R"({"a":1})", 0, "a: expected an object, got 1"},
      {R"({"a":[]})", 0, "a: expected an object, got a list"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "a: expected dtype, got none"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "a: expected shape, got none"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "a: expected data_offsets, got none"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
       "a: expected dtype, shape and data_offsets, got \"x\""},
      {R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", 4,
       "a: expected keys given once, got \"shape\" twice"},
      {R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4,
       "a: expected a known dtype, got \"F31\""},
      {R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4,
       "a: expected text for dtype, got 4"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4,
       "a: expected a list for shape, got 1"},
      {R"({"a":{"dtype":"F32","shape":"[1]","data_offsets":[0,4]}})", 4,
       "a: expected a list for shape, got \"[1]\""},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got -1"},
      {R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got 1.5"},
      {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got true"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got a list"},
      {R"({"a":{"dtype":"F32","shape":[{}],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got an object"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4,
       "a: expected whole numbers in shape, got 18446744073709551615"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "a: expected fewer than 2^63 bytes, got shape [4294967296, 4294967296]"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,0,4294967296],"data_offsets":[0,0]}})", 0,
       "a: expected fewer than 2^63 bytes, got shape [4294967296, 0, 4294967296]"},
      {R"({"a":{"dtype":"F32","shape":[)" + many + R"(],"data_offsets":[0,4]}})", 4,
       "a: expected at most 64 dimensions, got more"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
       "a: expected 8 bytes for F32 [2], got 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}})", 4,
       "a: expected two data_offsets, got 1"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4,
       "a: expected two data_offsets, got more"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
       "a: expected data_offsets in order, got [4, 0]"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3,
       "a: expected data within 3 bytes, got data to byte 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5,
       "data: expected 4 bytes, got 5"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8,
       "a: expected data from byte 0, got 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
       6, "b: expected data from byte 4, got 2"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "\"a\": expected a tensor given once, got it twice"},
      {R"({"a":{"dtype":"F32","shape":[1],)"
       R"("data_offsets":[9223372036854775800,9223372036854775804]}})",
       4, "a: expected data from byte 0, got 9223372036854775800"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__: expected text for \"k\", got 1"},
      {R"({"__metadata__":{"k":{}}})", 0, "__metadata__: expected text for \"k\", got an object"},
      {R"({"__metadata__":{"k":"a","k":"b"}})", 0,
       "__metadata__: expected keys given once, got \"k\" twice"},
      {R"({"__metadata__":"k"})", 0, "__metadata__: expected an object, got \"k\""},
  };
  const TemporaryFolder folder;
  const std::string path = folder.file("lie");
  for (const Lie& lie : lies) {
    testing::write_file(path, make_file(lie.header, std::string(lie.data_bytes, '\0')));
    expect_error<FormatError>(path + ": " + lie.text, [&] { SafetensorsFile file(path); });
  }
}

TEST(Safetensors, HeaderLengthsThatCannotBe) {
  const TemporaryFolder folder;
  const std::string path = folder.file("length");
  const auto expect = [&](const std::string& bytes, const std::string& text) {
    testing::write_file(path, bytes);
    expect_error<FormatError>(path + ": " + text, [&] { SafetensorsFile file(path); });
  };
  expect("", "file: expected at least 8 bytes, got 0");
  expect("1234567", "file: expected at least 8 bytes, got 7");
  expect(length_field(0) + "{}", "header length: expected 2 to 2, got 0");
  expect(length_field(3) + "{}", "header length: expected 2 to 2, got 3");
  expect(length_field(~0ull) + "{}", "header length: expected 2 to 2, got 18446744073709551615");
  // A header of more than 100 MB is refused before it is read: the file has a hole and no data.
  testing::write_file(path, length_field(100'000'001));
  std::filesystem::resize_file(path, 200'000'000);
  expect_error<FormatError>(path + ": header length: expected 2 to 100000000, got 100000001",
                            [&] { SafetensorsFile file(path); });
  testing::write_file(path, make_file("{}", ""));
  EXPECT_TRUE(SafetensorsFile(path).entries().empty());
}

TEST(Safetensors, DamageIsNeverMoreThanAFormatError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("good");
  const Tensor a = testing::Random(1).normal_tensor({3, 5});
  const Tensor b = testing::Random(2).normal_tensor({2, 2, 8}, DType::bf16);
  save_safetensors(path, {{"layers.0.a", a}, {"b", b}}, {{"format", "pt"}, {"key", "value"}});
  const std::string bytes = testing::read_file(path);
  testing::expect_cuts_refused(folder, bytes, read_everything);
  const std::size_t header = bytes.size() - 60 - 64;
  EXPECT_GT(testing::count_refused(folder, bytes, header, 4000, read_everything), 3000);
}

TEST(Safetensors, AFileCutWhileOpenIsAnError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("cut");
  const Tensor a = Tensor::zeros({1024}, DType::f32);
  save_safetensors(path, {{"a", a}});
  const SafetensorsFile file(path);
  std::filesystem::resize_file(path, 1000);
  const std::string rest = std::to_string(4096 - (1000 - file.entry("a").offset));
  const std::string text = path + ": a: expected " + rest + " more bytes, got the end of the file";
  expect_error<FormatError>(text, [&] { file.read(file.entry("a")); });
  EXPECT_THROW(file.read(file.entry("a"), {1024}, DType::bf16), FormatError);
  EXPECT_THROW(file.bytes(file.entry("a")), FormatError);
}

TEST(Safetensors, WhatCannotBeOpenedIsAnError) {
  const TemporaryFolder folder;
  const auto expect = [](const std::string& path, const std::string& reason) {
    const std::string text =
        "SafetensorsFile: " + path + ": expected a file that can be read, got ";
    expect_error<Error>(text + reason, [&] { SafetensorsFile file(path); });
  };
  expect(folder.file("missing"), "No such file or directory");
  expect(folder.path().string(), "Is a directory");
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  expect(folder.file("pipe"), "Illegal seek");
}

TEST(Safetensors, SavingAndReadingKeepsEveryBit) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  testing::Random random(3);
  std::vector<Tensor> tensors;
  for (DType dtype : testing::storage_dtypes()) {
    for (const Shape& shape : {Shape{7}, Shape{1}, Shape{3, 5}, Shape{2, 3, 4}, Shape{2, 1, 3, 2},
                               Shape{0, 4}, Shape{4, 0}}) {
      tensors.push_back(random.normal_tensor(shape, dtype));
    }
  }
  tensors.push_back(Tensor::from<std::int32_t>({-1, 2147483647, 0}, {3}));
  std::vector<SafetensorsItem> items;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    items.push_back({"t" + std::to_string(i), tensors[i]});
  }
  const std::map<std::string, std::string> metadata{{"", ""}, {"quote\"", "\n\t\x01 \xc3\xa9"}};
  save_safetensors(path, items, metadata);
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor back = file.read(file.entry("t" + std::to_string(i)));
    EXPECT_EQ(back.dtype(), tensors[i].dtype());
    EXPECT_EQ(back.shape(), tensors[i].shape());
    EXPECT_EQ(testing::bits(back), testing::bits(tensors[i]));
  }
  const std::string first = testing::read_file(path);
  save_safetensors(path, items, metadata);
  EXPECT_EQ(testing::read_file(path), first);
}

TEST(Safetensors, TheBytesWritten) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const Tensor a = Tensor::from<float>({1, -2}, {2, 1});
  save_safetensors(path, {{"a", a}}, {{"k", "v"}});
  const std::string header =
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}})";
  const std::string padded = header + std::string(7 - (header.size() + 7) % 8, ' ');
  EXPECT_EQ(padded.size() % 8, 0u);
  EXPECT_EQ(testing::read_file(path), make_file(padded, raw<float>({1, -2})));
  save_safetensors(path, {});
  EXPECT_EQ(testing::read_file(path), make_file("{}      ", ""));
}

TEST(Safetensors, OrderIsKeptUnlessAlignmentNeedsAnother) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const Tensor even = Tensor::zeros({2}, DType::bf16);
  const Tensor odd = Tensor::zeros({3}, DType::bf16);
  const Tensor wide = Tensor::zeros({2}, DType::f32);
  const auto order = [&](const std::vector<SafetensorsItem>& items) {
    save_safetensors(path, items);
    std::string names;
    const SafetensorsFile file(path);
    for (const SafetensorsEntry& entry : file.entries()) {
      names += entry.name;
      const std::int64_t width = entry.dtype == "F64" ? 8 : entry.dtype == "BF16" ? 2 : 4;
      EXPECT_EQ(entry.offset % width, 0) << entry.name;
    }
    return names;
  };
  EXPECT_EQ(order({{"b", even}, {"a", wide}}), "ba");
  EXPECT_EQ(order({{"c", odd}, {"b", wide}, {"a", wide}}), "bac");
  EXPECT_EQ(order({{"c", even}, {"b", wide}, {"a", wide, "F64"}}), "abc");
}

TEST(Safetensors, ViewsOfAnyPitchAndShape) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const Tensor whole = testing::Random(4).normal_tensor({4, 3, 8});
  const ConstTensorView part = whole.view().rows(1, 2).columns(2, 3);
  ASSERT_FALSE(part.is_dense());
  const Tensor conv = testing::Random(5).normal_tensor({6, 4});
  save_safetensors(path, {{"part", part}, {"conv", conv, "", {6, 1, 4}}, {"half", part, "BF16"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(testing::bits(file.read(file.entry("part"))), testing::bits(part));
  EXPECT_EQ(file.entry("conv").shape_text(), "[6, 1, 4]");
  EXPECT_EQ(testing::bits(file.read(file.entry("conv"), {6, 4}, DType::f32)), testing::bits(conv));
  EXPECT_EQ(testing::bits(file.read(file.entry("half"))),
            testing::bits(file.read(file.entry("part"), {2, 3, 3}, DType::bf16)));
  expect_error<FormatError>(path + ": conv: expected [4, 6], got [6, 1, 4]", [&] {
    file.read(file.entry("conv"), {4, 6}, DType::f32);
  });
  expect_error<FormatError>(path + ": conv: expected [], got [6, 1, 4]",
                            [&] { file.read(file.entry("conv"), {}, DType::f32); });
}

TEST(Safetensors, WhatCannotBeSaved) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const Tensor a = Tensor::zeros({2, 3}, DType::f32);
  const Tensor ids = Tensor::zeros({2}, DType::i32);
  const auto expect = [&](const std::vector<SafetensorsItem>& items, const std::string& text) {
    expect_error<ArgumentError>("save_safetensors: " + text,
                                [&] { save_safetensors(path, items); });
  };
  expect({{"a", a}, {"b", a}, {"a", a}}, "a: expected a name given once, got it twice");
  expect({{"a", {}}}, "a: expected a tensor, got none");
  expect({{"__metadata__", a}}, "__metadata__: expected another name, got a reserved one");
  expect({{"a", a, "I32"}}, "a: expected F32, BF16, F16 or F64, got \"I32\"");
  expect({{"a", a, "F8"}}, "a: expected F32, BF16, F16 or F64, got \"F8\"");
  expect({{"a", ids, "F32"}}, "a: expected I32 or I64, got \"F32\"");
  expect({{"a", a, "", {3, 2}}}, "a: expected [2, 3] but for sizes of 1, got [3, 2]");
  expect({{"\xff", a}}, "\"\xef\xbf\xbd\": expected UTF-8, got other bytes");
  EXPECT_TRUE(testing::names(folder).empty());
}

// Rounding to a grid of 2^-digits relative steps, by exact arithmetic in double.
double rounded(double value, int digits, int smallest_exponent, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double quantum = std::ldexp(1.0, std::max(std::ilogb(value), smallest_exponent) - digits);
  const double result = std::nearbyint(value / quantum) * quantum;
  return std::abs(result) > largest ? std::copysign(HUGE_VAL, value) : result;
}

std::vector<double> hard_doubles() {
  std::vector<double> list{0.0,          -0.0,
                           1.0,          65504,
                           65519.999999, 65520,
                           1e30,         3.3961775292304957e38,
                           3.4e38,       1e39,
                           1e300,        1e-300,
                           5e-324,       HUGE_VAL,
                           -HUGE_VAL,    0x1p-24,
                           0x1p-25,      0x1.0000001p-25,
                           0x1p-134,     0x1.000000001p-134,
                           0x1p-149};
  // Ties of the 16-bit grids, and values so close to them that a float cannot tell.
  for (int digits : {11, 8}) {
    for (double base : {1.0, 1.0 + std::ldexp(1.0, 1 - digits), 0x1p-20, 0x1p-130, 1000.0}) {
      const double tie = base + std::ldexp(base, -digits);
      for (double nudge : {0.0, 0x1p-40, -0x1p-40, 0x1p-52, -0x1p-52})
        list.push_back(tie * (1 + nudge));
    }
  }
  testing::Random random(6);
  for (int i = 0; i < 200000; ++i) {
    const double coarse = std::ldexp(std::floor(random.uniform(2048, 8192)) / 2, -12);
    const double fine = std::ldexp(std::round(random.uniform(-2, 2)), -45);
    const int exponent = static_cast<int>(random.integer(i % 2 ? -30 : -140, i % 2 ? 17 : 129));
    list.push_back(std::ldexp(coarse + fine, exponent));
  }
  const std::size_t count = list.size();
  for (std::size_t i = 0; i < count; ++i) list.push_back(-list[i]);
  list.push_back(std::nan(""));
  return list;
}

TEST(Safetensors, DoublesAreRoundedOnce) {
  const TemporaryFolder folder;
  const std::string path = folder.file("doubles");
  const std::vector<double> doubles = hard_doubles();
  const auto count = static_cast<std::int64_t>(doubles.size());
  const std::string size = std::to_string(count);
  testing::write_file(
      path, make_file("{\"a\":{\"dtype\":\"F64\",\"shape\":[" + size + "],\"data_offsets\":[0," +
                          std::to_string(8 * count) + "]}}",
                      raw(doubles)));
  const SafetensorsFile file(path);
  const auto check = [&](DType dtype, int digits, int exponent, double largest) {
    const auto got = testing::values(file.read(file.entry("a"), {count}, dtype));
    for (std::size_t i = 0; i + 1 < doubles.size(); ++i) {
      const double expected = rounded(doubles[i], digits, exponent, largest);
      ASSERT_EQ(got[i], expected) << name_of(dtype) << " of " << std::hexfloat << doubles[i];
      ASSERT_EQ(std::signbit(got[i]), std::signbit(expected));
    }
    EXPECT_TRUE(std::isnan(got.back()));
  };
  check(DType::f16, 10, -14, 65504);
  check(DType::bf16, 7, -126, 0x1.fep127);
  check(DType::f32, 23, -126, std::numeric_limits<float>::max());
  EXPECT_EQ(file.read(file.entry("a")).dtype(), DType::f32);
}

TEST(Safetensors, FloatsConvertBothWays) {
  const TemporaryFolder folder;
  const std::string path = folder.file("floats");
  const std::int64_t count = 200'001;  // more than one piece, and not a multiple of any
  for (DType own : testing::storage_dtypes()) {
    const Tensor tensor = testing::Random(8).normal_tensor({count}, own);
    save_safetensors(path, {{"F64", tensor, "F64"},
                            {"F32", tensor, "F32"},
                            {"BF16", tensor, "BF16"},
                            {"F16", tensor, "F16"}});
    const SafetensorsFile file(path);
    for (DType stored : testing::storage_dtypes()) {
      const char* name = stored == DType::f32 ? "F32" : stored == DType::bf16 ? "BF16" : "F16";
      const Tensor expected = tensor.to(Device::cpu(), stored);
      EXPECT_EQ(testing::bits(file.read(file.entry(name))), testing::bits(expected));
      for (DType wanted : testing::storage_dtypes()) {
        EXPECT_EQ(testing::bits(file.read(file.entry(name), {count}, wanted)),
                  testing::bits(expected.to(Device::cpu(), wanted)));
      }
    }
    EXPECT_EQ(testing::bits(file.read(file.entry("F64"), {count}, own)), testing::bits(tensor));
    EXPECT_EQ(file.entry("F64").bytes, 8 * count);
  }
}

TEST(Safetensors, IntegersAreCheckedAgainst32Bits) {
  const TemporaryFolder folder;
  const std::string path = folder.file("ids");
  const Tensor ids = Tensor::from<std::int32_t>({-2147483647 - 1, 2147483647, 5}, {3});
  save_safetensors(path, {{"ids", ids, "I64"}});
  {
    const SafetensorsFile file(path);
    EXPECT_EQ(file.entry("ids").bytes, 24);
    EXPECT_EQ(testing::bits(file.read(file.entry("ids"))), testing::bits(ids));
    expect_error<FormatError>(path + ": ids: expected F32, BF16, F16 or F64, got I64",
                              [&] { file.read(file.entry("ids"), {3}, DType::f32); });
  }
  for (std::int64_t bad : {std::int64_t{2147483648}, std::int64_t{-2147483649}}) {
    testing::write_file(path,
                        make_file(R"({"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})",
                                  raw<std::int64_t>({1, bad})));
    const SafetensorsFile file(path);
    expect_error<FormatError>(
        path + ": ids: expected values that fit 32 bits, got " + std::to_string(bad),
        [&] { file.read(file.entry("ids")); });
    EXPECT_EQ(file.bytes(file.entry("ids")).size(), 16u);
  }
}

// Only the name of the entry counts: a changed copy cannot make the library read out of range.
TEST(Safetensors, AForgedEntryIsHarmless) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const Tensor a = testing::Random(9).normal_tensor({2, 3});
  save_safetensors(path, {{"a", a}});
  const SafetensorsFile file(path);
  SafetensorsEntry forged = file.entry("a");
  forged.shape = {1'000'000};
  forged.bytes = 4'000'000;
  forged.offset = -5;
  EXPECT_EQ(testing::bits(file.read(forged)), testing::bits(a));
  EXPECT_EQ(file.bytes(forged).size(), 24u);
}

// ---- the disk -----------------------------------------------------------------------------------

std::string cannot_write(const std::string& where, const std::string& path,
                         const std::string& reason) {
  return where + ": " + path + ": expected a file that can be written, got " + reason;
}

TEST(SafetensorsOnDisk, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("model.safetensors");
  save_safetensors(path, {{"a", Tensor::zeros({4}, DType::f32)}});
  const std::string before = testing::read_file(path);
  const Tensor large = Tensor::zeros({1 << 20}, DType::f32);
  for (const char* dtype : {"F32", "BF16"}) {
    const testing::FullDisk full(100'000);
    expect_error<Error>(cannot_write("save_safetensors", path, "File too large"), [&] {
      save_safetensors(path, {{"a", large, dtype}});
    });
  }
  EXPECT_EQ(testing::read_file(path), before);
  {
    const testing::FullDisk full(10);
    expect_error<Error>(cannot_write("save_text", path, "File too large"),
                        [&] { save_text(path, "more than ten bytes"); });
  }
  EXPECT_EQ(testing::read_file(path), before);
  EXPECT_EQ(testing::names(folder), std::vector<std::string>{"model.safetensors"});
}

TEST(SafetensorsOnDisk, PlacesThatCannotBeWritten) {
  const TemporaryFolder folder;
  const Tensor a = Tensor::zeros({4}, DType::f32);
  const auto expect = [&](const std::string& path, const std::string& reason) {
    expect_error<Error>(cannot_write("save_safetensors", path, reason), [&] {
      save_safetensors(path, {{"a", a}});
    });
    expect_error<Error>(cannot_write("save_text", path, reason), [&] { save_text(path, "text"); });
  };
  expect(folder.file("missing/t"), "No such file or directory");
  expect(folder.path().string(), "Is a directory");
  expect(folder.path().string() + "/", "Is a directory");
  expect("", "No such file or directory");
  expect(folder.file(std::string(300, 'x')), "File name too long");
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  expect(folder.file("pipe"), "File exists");
  testing::write_file(folder.file("plain"), "");
  expect(folder.file("plain/t"), "Not a directory");
  ASSERT_EQ(chmod(folder.path().c_str(), 0555), 0);
  const uid_t user = geteuid();
  ASSERT_EQ(seteuid(user == 0 ? 65534 : user), 0);  // the rules do not hold for root
  expect(folder.file("t"), "Permission denied");
  ASSERT_EQ(seteuid(user), 0);
  chmod(folder.path().c_str(), 0755);
  EXPECT_EQ(testing::names(folder), (std::vector<std::string>{"pipe", "plain"}));
}

TEST(SafetensorsOnDisk, AnOrdinaryFileByNameAndPermission) {
  const TemporaryFolder folder;
  const mode_t before = umask(027);
  save_text(folder.file("t"), "one");
  umask(before);
  struct stat status;
  ASSERT_EQ(stat(folder.file("t").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
  // A name without a folder is one in the working folder; a link is replaced and not followed.
  const auto working = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  std::filesystem::create_symlink("t", "link");
  save_text("link", "two");
  save_text(std::string(255, 'x'), "long");
  std::filesystem::current_path(working);
  EXPECT_EQ(testing::read_file(folder.file("t")), "one");
  EXPECT_EQ(testing::read_file(folder.file("link")), "two");
  EXPECT_EQ(testing::names(folder), (std::vector<std::string>{"link", "t", std::string(255, 'x')}));
}

TEST(SafetensorsOnDisk, ThreadsThatSaveAtOnceLeaveOneWholeFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  const auto save_one = [&](int writer) {
    const std::vector<float> values(5000, static_cast<float>(writer));
    const Tensor tensor = Tensor::from(values, {5000});
    for (int i = 0; i < 20; ++i) save_safetensors(path, {{"a", tensor}});
  };
  save_one(0);
  std::vector<std::thread> writers;
  for (int writer = 1; writer <= 4; ++writer) writers.emplace_back(save_one, writer);
  for (int i = 0; i < 100; ++i) {
    const SafetensorsFile file(path);
    const std::vector<double> values = testing::values(file.read(file.entry("a")));
    EXPECT_EQ(values, std::vector<double>(5000, values[0]));
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(testing::names(folder), std::vector<std::string>{"t"});
}

}  // namespace
}  // namespace mamba
