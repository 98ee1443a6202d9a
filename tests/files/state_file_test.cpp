#include <mamba/state_file.hpp>

#include <thread>

#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "files.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::TemporaryFolder;

MambaState random_layer(std::int64_t rows, std::int64_t d_inner, std::int64_t d_conv, DType dtype,
                        std::uint64_t seed) {
  testing::Random random(seed);
  MambaState layer;
  layer.conv = random.normal_tensor({rows, d_inner, d_conv - 1}, dtype);
  layer.ssm = random.normal_tensor({rows, d_inner, 16});
  return layer;
}

StackState random_stack(std::size_t n_layer, std::int64_t rows, DType dtype = DType::f32,
                        std::int64_t d_inner = 6, std::int64_t d_conv = 4) {
  StackState stack;
  for (std::size_t i = 0; i < n_layer; ++i) {
    stack.layers.push_back(random_layer(rows, d_inner, d_conv, dtype, i + 1));
  }
  return stack;
}

void expect_same(const StackState& a, const StackState& b) {
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].conv.shape(), b.layers[i].conv.shape());
    EXPECT_EQ(a.layers[i].conv.dtype(), b.layers[i].conv.dtype());
    EXPECT_EQ(a.layers[i].ssm.shape(), b.layers[i].ssm.shape());
    EXPECT_EQ(testing::bits(a.layers[i].conv), testing::bits(b.layers[i].conv));
    EXPECT_EQ(testing::bits(a.layers[i].ssm), testing::bits(b.layers[i].ssm));
  }
}

TEST_EACH(StateFile, KeepsEveryBitOnEveryDevice, Device device, DType dtype) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  for (std::int64_t d_conv : {1, 2, 4}) {
    for (std::int64_t rows : {0, 1, 3}) {
      const StackState stack = random_stack(12, rows, dtype, 6, d_conv);
      StackState there;
      for (const MambaState& layer : stack.layers) {
        there.layers.emplace_back();
        there.layers.back().conv = layer.conv.to(device);
        there.layers.back().ssm = layer.ssm.to(device);
      }
      save(path, there);
      const SavedState saved = load_state(path, device);
      EXPECT_EQ(saved.state.device(), device);
      expect_same(saved.state, stack);
      EXPECT_TRUE(saved.metadata.fingerprint.empty());
      EXPECT_TRUE(saved.metadata.tokens_seen.empty());
      EXPECT_TRUE(saved.extras.empty());
    }
  }
}

TEST(StateFile, KeepsWhatIsSaidBeside) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const StackState stack = random_stack(1, 2);
  StateMetadata metadata;
  metadata.fingerprint = "0123abcd";
  metadata.tokens_seen = {0, std::int64_t{1} << 40};
  metadata.notes = {{"", "empty"}, {"version", "9"}, {"note.", "\n\""}, {"\xc3\xa9", ""}};
  const Tensor logits = testing::Random(1).normal_tensor({2, 7}, DType::bf16);
  const Tensor ids = Tensor::from<std::int32_t>({5, -1}, {2});
  save(path, stack.layers[0], metadata, {{"logits", logits}, {"rows", ids}});
  const SavedState saved = load_state(path);
  expect_same(saved.state, stack);
  EXPECT_EQ(saved.metadata.fingerprint, metadata.fingerprint);
  EXPECT_EQ(saved.metadata.tokens_seen, metadata.tokens_seen);
  EXPECT_EQ(saved.metadata.notes, metadata.notes);
  ASSERT_EQ(saved.extras.size(), 2u);
  EXPECT_EQ(saved.extras.at("logits").dtype(), DType::bf16);
  EXPECT_EQ(testing::bits(saved.extras.at("logits")), testing::bits(logits));
  EXPECT_EQ(testing::bits(saved.extras.at("rows")), testing::bits(ids));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata().at("format"), "mamba.cpp state");
  EXPECT_EQ(file.metadata().at("version"), "1");
  EXPECT_EQ(file.metadata().at("layers"), "1");
  EXPECT_EQ(file.metadata().at("rows"), "2");
  EXPECT_EQ(file.metadata().at("tokens_seen"), "[0,1099511627776]");
}

TEST(StateFile, WhatCannotBeSaved) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const auto expect = [&](const StackState& stack, const std::string& text,
                          const StateMetadata& metadata = {}, const StateExtras& extras = {}) {
    expect_error<ArgumentError>(text, [&] { save(path, stack, metadata, extras); });
  };
  expect({}, "save: state: expected at least one layer, got none");
  StackState stack = random_stack(2, 3);
  expect(stack, "save: tokens_seen: expected 3 values or none, got 1", {"", {1}, {}});
  expect(stack, "save: tokens_seen: expected at least 0, got -1", {"", {1, -1, 2}, {}});
  const Tensor extra = Tensor::zeros({1}, DType::f32);
  expect(stack,
         "save: layers.x: expected a name that does not start with \"layers.\", got one that does",
         {}, {{"layers.x", extra}});
  expect(stack, "save_safetensors: x: expected a tensor, got none", {}, {{"x", {}}});
  stack.layers[1] = MambaState();
  expect(stack, "save: layers.1.conv: expected a tensor, got none");
  stack.layers[1] = random_layer(2, 6, 4, DType::f32, 1);
  expect(stack, "save: layers.1.conv: expected [3, 6, 3], got [2, 6, 3]");
  stack.layers[1] = random_layer(3, 6, 4, DType::bf16, 1);
  expect(stack, "save: layers.1.conv: expected f32, got bf16");
  stack = random_stack(1, 3);
  stack.layers[0].ssm = Tensor::zeros({3, 5, 16}, DType::f32);
  expect(stack, "save: layers.0.ssm: expected [3, 6, 16], got [3, 5, 16]");
  stack.layers[0].ssm = Tensor::zeros({3, 6, 16}, DType::bf16);
  expect(stack, "save: layers.0.ssm: expected f32, got bf16");
  EXPECT_TRUE(testing::names(folder).empty());
}

using Metadata = std::map<std::string, std::string>;

const Metadata& good_metadata() {
  static const Metadata metadata{
      {"format", "mamba.cpp state"}, {"version", "1"}, {"layers", "2"}, {"rows", "3"}};
  return metadata;
}

// A file of two layers with one thing changed by `change(tensors, metadata)`.
template <class Change>
void expect_refused(const std::string& text, Change change) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  std::map<std::string, Tensor> tensors;
  for (const std::string layer : {"layers.0", "layers.1"}) {
    tensors[layer + ".conv"] = Tensor::zeros({3, 6, 3}, DType::f32);
    tensors[layer + ".ssm"] = Tensor::zeros({3, 6, 16}, DType::f32);
  }
  Metadata metadata = good_metadata();
  change(tensors, metadata);
  std::vector<SafetensorsItem> items;
  for (const auto& [name, tensor] : tensors) items.push_back({name, tensor});
  save_safetensors(path, items, metadata);
  if (text.empty()) {
    EXPECT_EQ(load_state(path).state.layers.size(), 2u);
  } else {
    expect_error<FormatError>(path + ": " + text, [&] { load_state(path); });
  }
}

TEST(StateFile, MetadataThatCannotBe) {
  const auto with = [](const std::string& key, const char* value, const std::string& text) {
    expect_refused(text, [&](auto&, Metadata& metadata) {
      metadata.erase(key);
      if (value != nullptr) metadata[key] = value;
    });
  };
  with("note.x", "fine", "");
  with("tokens_seen", "[1, 2, 3]", "");
  with("tokens_seen", "[]", "");
  with("format", nullptr, "format: expected \"mamba.cpp state\", got nothing");
  with("format", "pt", "format: expected \"mamba.cpp state\", got \"pt\"");
  with("version", "2", "version: expected \"1\", got \"2\"");
  with("version", nullptr, "version: expected \"1\", got nothing");
  with("rows", nullptr, "rows: expected a whole number, got nothing");
  for (const char* wrong : {"", "x", "-1", "03", "3 ", "3.0", "99999999999999999999"}) {
    const std::string got = "got \"" + std::string(wrong) + "\"";
    with("rows", wrong, "rows: expected a whole number, " + got);
    with("layers", wrong, "layers: expected a whole number, " + got);
  }
  with("rows", "4", "layers.0.conv: expected [4, conv channels, ...], got [3, 6, 3]");
  with("layers", "1",
       "layers: expected two tensors for each of 1 layers, at least one, got 4 tensors");
  with("layers", "3",
       "layers: expected two tensors for each of 3 layers, at least one, got 4 tensors");
  with("layers", "9223372036854775807",
       "layers: expected two tensors for each of 9223372036854775807 layers, at least one, "
       "got 4 tensors");
  with("tokens_seen", "[1]", "tokens_seen: expected 3 values or none, got 1");
  with("tokens_seen", "[1,2,-3]", "tokens_seen: expected whole numbers, got -3");
  with("tokens_seen", "[1,2,3.5]", "tokens_seen: expected whole numbers, got 3.5");
  with("tokens_seen", "{}", "tokens_seen: expected a list, got an object");
  with("tokens_seen", "[1,", "tokens_seen: expected valid JSON, got an error at byte 4");
  with("else", "1", "\"else\": expected metadata of this version, got \"1\"");
}

TEST(StateFile, TensorsThatCannotBe) {
  const auto with = [](const std::string& name, const Shape& shape, DType dtype,
                       const std::string& text) {
    expect_refused(text,
                   [&](auto& tensors, Metadata&) { tensors[name] = Tensor::zeros(shape, dtype); });
  };
  with("extra", {2, 3, 4, 5}, DType::i32, "");
  with("layers.1.conv", {3, 6, 3}, DType::bf16, "layers.1.conv: expected F32, got BF16");
  with("layers.0.conv", {3, 6, 3}, DType::i32, "layers.0.conv: expected F32, BF16 or F16, got I32");
  with("layers.0.ssm", {3, 6, 16}, DType::f16, "layers.0.ssm: expected F32, got F16");
  with("layers.1.ssm", {3, 6, 8}, DType::f32, "layers.1.ssm: expected [3, 6, 16], got [3, 6, 8]");
  with("layers.1.conv", {2, 6, 3}, DType::f32, "layers.1.conv: expected [3, 6, 3], got [2, 6, 3]");
  with("layers.0.ssm", {3, 5, 16}, DType::f32, "layers.1.ssm: expected [3, 5, 16], got [3, 6, 16]");
  with("layers.0.conv", {3, 18}, DType::f32,
       "layers.0.conv: expected [3, conv channels, ...], got [3, 18]");
  with("layers.0.more", {3}, DType::f32,
       "layers: expected two tensors for each of 2 layers, at least one, got 5 tensors");
  const auto renamed = [](const std::string& from, const std::string& to, const std::string& text) {
    expect_refused(text, [&](auto& tensors, Metadata&) {
      tensors[to] = std::move(tensors[from]);
      tensors.erase(from);
    });
  };
  renamed("layers.1.ssm", "layers.2.ssm", "layers.1.ssm: expected a tensor, got none");
  renamed("layers.0.conv", "layers.00.conv", "layers.0.conv: expected a tensor, got none");
}

TEST(StateFile, ExtrasThatATensorCannotHold) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const StackState stack = random_stack(1, 1);
  const Tensor extra = Tensor::zeros({1}, DType::f32);
  const auto expect = [&](const SafetensorsItem& item, const std::string& text) {
    save_safetensors(
        path,
        {{"layers.0.conv", stack.layers[0].conv}, {"layers.0.ssm", stack.layers[0].ssm}, item},
        {{"format", "mamba.cpp state"}, {"version", "1"}, {"layers", "1"}, {"rows", "1"}});
    expect_error<FormatError>(path + ": " + text, [&] { load_state(path); });
  };
  expect({"x", extra, "F64"}, "x: expected F32, BF16, F16 or I32, got F64");
  expect({"x", extra, "", {1, 1, 1, 1, 1}}, "x: expected 1 to 4 dimensions, got [1, 1, 1, 1, 1]");
}

TEST(StateFile, DamageIsNeverMoreThanAFormatError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const Tensor logits = testing::Random(1).normal_tensor({2, 9});
  save(path, random_stack(3, 2, DType::bf16), {"print", {4, 5}, {{"by", "me"}}},
       {{"logits", logits}});
  const std::string bytes = testing::read_file(path);
  const auto load = [](const std::string& file) { load_state(file); };
  testing::expect_cuts_refused(folder, bytes, load);
  const std::size_t header =
      8 + static_cast<unsigned char>(bytes[0]) + 256u * static_cast<unsigned char>(bytes[1]);
  ASSERT_LT(header, bytes.size());
  EXPECT_GT(testing::count_refused(folder, bytes, header, 4000, load), 3000);
}

TEST(StateFile, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const StackState old = random_stack(2, 1);
  save(path, old);
  {
    const testing::FullDisk full(4096);
    expect_error<Error>(
        "save_safetensors: " + path + ": expected a file that can be written, got File too large",
        [&] { save(path, random_stack(8, 64)); });
  }
  expect_same(load_state(path).state, old);
  EXPECT_EQ(testing::names(folder), std::vector<std::string>{"state"});
  expect_error<Error>("save_safetensors: " + folder.file("no/state") +
                          ": expected a file that can be written, got No such file or directory",
                      [&] { save(folder.file("no/state"), old); });
  expect_error<Error>("SafetensorsFile: " + folder.file("none") +
                          ": expected a file that can be read, got No such file or directory",
                      [&] { load_state(folder.file("none")); });
}

TEST(StateFile, ThreadsThatSaveAtOnceLeaveOneWholeFile) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const auto save_one = [&](std::int64_t writer) {
    const StackState stack = random_stack(4, 1 + writer);
    for (int i = 0; i < 15; ++i)
      save(path, stack, {"", std::vector<std::int64_t>(stack.batch(), writer), {}});
  };
  save_one(0);
  std::vector<std::thread> writers;
  for (int writer = 1; writer <= 3; ++writer) writers.emplace_back(save_one, writer);
  for (int i = 0; i < 60; ++i) {
    const SavedState saved = load_state(path);
    EXPECT_EQ(saved.metadata.tokens_seen.at(0) + 1, saved.state.batch());
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(testing::names(folder), std::vector<std::string>{"state"});
}

}  // namespace
}  // namespace mamba
