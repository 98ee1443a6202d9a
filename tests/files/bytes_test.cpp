// Bytes in memory are as good as a file: the same contents, the same checks, the same errors.
#include <mamba/bytes.hpp>

#include <mamba/safetensors.hpp>
#include <mamba/state_file.hpp>

#include "each.hpp"
#include "files.hpp"
#include "host/files/input_file.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::TemporaryFolder;

std::string text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

ByteView view_of(const std::string& text) { return {text.data(), text.size()}; }

StackState random_stack(DType dtype, Device device) {
  testing::Random random(3);
  StackState stack;
  for (int i = 0; i < 2; ++i) {
    MambaState state;
    state.conv = random.normal_tensor({2, 6, 3}, dtype).to(device);
    state.ssm = random.normal_tensor({2, 6, 4}).to(device);
    stack.layers.push_back(std::move(state));
  }
  return stack;
}

// A file and bytes in its place.
TEST(InputFile, EndsWhereItsBytesEnd) {
  const std::string text = "0123456789";
  const TemporaryFolder folder;
  testing::write_file(folder.file("f"), text);
  const InputFile file("test", folder.file("f"));
  const InputFile memory("test", ByteView(text.data(), 6), "f");
  EXPECT_EQ(memory.text(), "012345");
  const auto expect_end = [&](const InputFile& input, std::int64_t end) {
    char got[11] = "..........";
    input.read(got, end - 4, 4, "tail");
    EXPECT_EQ(std::string(got, 5), text.substr(static_cast<std::size_t>(end) - 4, 4) + ".");
    expect_error<FormatError>(
        input.path() + ": tail: expected 3 more bytes, got the end of the file",
        [&] { input.read(got, end - 4, 7, "tail"); });
    expect_error<FormatError>(
        input.path() + ": tail: expected 1 more bytes, got the end of the file",
        [&] { input.read(got, end, 1, "tail"); });
  };
  expect_end(file, 10);
  expect_end(memory, 6);
}

void expect_same(const StackState& a, const StackState& b) {
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(bits(a.layers[i].conv), bits(b.layers[i].conv));
    EXPECT_EQ(bits(a.layers[i].ssm), bits(b.layers[i].ssm));
  }
}

// What `read` says of bytes that cannot be, or nothing.
template <class Read>
std::string error_of(Read read) {
  try {
    read();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST_EACH(BytesTest, AStateGoesThereAndBackOnEveryDevice, Device device, DType dtype) {
  const TemporaryFolder folder;
  const Tensor logits = testing::Random(1).normal_tensor({2, 7}, DType::bf16);
  const StateMetadata metadata{"0123abcd", {4, 5}, {{"by", "me"}}};
  const StackState stack = random_stack(dtype, device);
  const Bytes bytes = save(stack, metadata, {{"logits", logits}});
  save(folder.file("state"), stack, metadata, {{"logits", logits}});
  EXPECT_EQ(text_of(bytes), testing::read_file(folder.file("state")));
  const SavedState saved = load_state(bytes, device);
  EXPECT_EQ(saved.state.device(), device);
  expect_same(saved.state, stack);
  EXPECT_EQ(saved.metadata.fingerprint, metadata.fingerprint);
  EXPECT_EQ(saved.metadata.tokens_seen, metadata.tokens_seen);
  EXPECT_EQ(saved.metadata.notes, metadata.notes);
  EXPECT_EQ(bits(saved.extras.at("logits")), bits(logits));

  const MambaState& layer = stack.layers.front();
  save(folder.file("layer"), layer);
  EXPECT_EQ(text_of(save(layer)), testing::read_file(folder.file("layer")));
  EXPECT_EQ(bits(load_state(save(layer)).state.layers.at(0).ssm), bits(layer.ssm));
}

TEST(BytesTest, TensorsOfEveryKindAreWhatTheFileHolds) {
  const TemporaryFolder folder;
  const std::string path = folder.file("t");
  testing::Random random(2);
  const Tensor wide = random.normal_tensor({300, 500});  // converted in several pieces
  const Tensor half = random.normal_tensor({3, 5}, DType::f16);
  const Tensor ids = Tensor::from<std::int32_t>({1, -2, 3}, {3});
  const Tensor none = Tensor::zeros({0, 4}, DType::f32);
  const std::vector<SafetensorsItem> items{{"wide", wide, "F64"},
                                           {"columns", half.view().columns(1, 2)},
                                           {"ids", ids, "I64"},
                                           {"none", none}};
  save_safetensors(path, items, {{"k", "v"}});
  const Bytes bytes = save_safetensors(items, {{"k", "v"}});
  EXPECT_EQ(text_of(bytes), testing::read_file(path));
  EXPECT_EQ(bytes.capacity(), bytes.size()) << "their number was known beforehand";
  const SafetensorsFile from_bytes(bytes);
  const SafetensorsFile from_path(path);
  EXPECT_EQ(from_bytes.path(), "bytes");
  EXPECT_EQ(from_bytes.metadata(), from_path.metadata());
  ASSERT_EQ(from_bytes.entries().size(), items.size());
  for (const SafetensorsEntry& entry : from_path.entries()) {
    EXPECT_EQ(from_bytes.bytes(entry), from_path.bytes(entry));
    EXPECT_EQ(bits(from_bytes.read(entry)), bits(from_path.read(entry)));
  }
  EXPECT_EQ(text_of(save_safetensors({})), std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
}

TEST(BytesTest, DamageIsRefusedInTheSameWords) {
  const TemporaryFolder folder;
  const std::string path = folder.file("state");
  const std::string whole =
      text_of(save(random_stack(DType::bf16, Device::cpu()), {"print", {4, 5}, {}}));
  const std::int64_t header =
      8 + static_cast<unsigned char>(whole[0]) + 256 * static_cast<unsigned char>(whole[1]);
  testing::Random random(7);
  int refused = 0;
  for (std::size_t trial = 0; trial < 1500; ++trial) {
    std::string damaged = whole;
    if (trial < 300) {
      damaged.resize(trial * whole.size() / 300);
    } else {
      const auto at = static_cast<std::size_t>(random.integer(0, header - 1));
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.integer(0, 7)));
    }
    testing::write_file(path, damaged);
    const std::string said = error_of([&] { load_state(path); });
    ASSERT_EQ(error_of([&] { load_state(view_of(damaged), Device::cpu(), path); }), said);
    if (!said.empty()) ++refused;
  }
  EXPECT_GT(refused, 1200);
}

TEST(BytesTest, WhatCannotBeNamesTheBytes) {
  expect_error<FormatError>("bytes: file: expected at least 8 bytes, got 0",
                            [] { load_state(ByteView()); });
  expect_error<FormatError>("from Alice: file: expected at least 8 bytes, got 3", [] {
    const std::string cut = "cut";
    SafetensorsFile(view_of(cut), "from Alice");
  });
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
  EXPECT_NE(error_of([&] { load_state(view_of(pointer)); }).find("bytes: file: expected its"),
            std::string::npos);
  expect_error<FormatError>("bytes: none: expected a tensor, got none", [] {
    const Bytes bytes = save_safetensors({});
    SafetensorsFile(bytes).entry("none");
  });
  expect_error<ArgumentError>("save: state: expected at least one layer, got none",
                              [] { static_cast<void>(save(StackState())); });
  expect_error<ArgumentError>("save_safetensors: x: expected a tensor, got none", [] {
    static_cast<void>(save_safetensors({{"x", {}}}));
  });
}

}  // namespace
}  // namespace mamba
