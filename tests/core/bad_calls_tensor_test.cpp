// Bad calls of devices, shapes, tensors, streams and files.
#include <mamba/detail/constant_weights.hpp>

#include "bad_calls.hpp"

namespace mamba {
namespace {

using namespace testing;

TEST(BadCalls, DevicesShapesAndTensors) {
  const Tensor tensor = Tensor::zeros({2, 3}, DType::f32);
  const Tensor other = Tensor::zeros({3, 2}, DType::f32);
  const Tensor ids = Tensor::zeros({2, 3}, DType::i32);
  const ConstTensorView view = tensor;
  const Device nowhere = Device::cuda(1000);
  Tensor to = Tensor::zeros({2, 3}, DType::f32);
  Stream stream;
  Stream gone;
  const Stream taken = std::move(gone);
  expect_refused(
      {
          {"Device::cuda: index: expected at least 0, got -1", [] { Device::cuda(-1); }},
          {"Device::cuda: index: expected at least 0, got -2147483648",
           [] { Device::cuda(INT32_MIN); }},
          {"Device::parse: device: expected cpu, cuda or cuda:N, got \"\"",
           [] { Device::parse(""); }},
          {"Device::parse: device: expected cpu, cuda or cuda:N, got \"cuda:-1\"",
           [] { Device::parse("cuda:-1"); }},
          {"Device::parse: device: expected cpu, cuda or cuda:N, got \"cuda:99999999999\"",
           [] { Device::parse("cuda:99999999999"); }},
          {"parse_storage_dtype: dtype: expected f32, bf16 or f16, got \"i32\"",
           [] { parse_storage_dtype("i32"); }},
          {"Shape: sizes: expected at most 4, got 5",
           [] {
             Shape{1, 1, 1, 1, 1};
           }},
          {"Shape: dimension: expected one of the 0 of [], got -1", [] { Shape().back(); }},
          {"Shape: dimension: expected one of the 2 of [2, 3], got 2", [&] { tensor.dim(2); }},
          {"Shape: dimension: expected one of the 2 of [2, 3], got -1", [&] { view.dim(-1); }},
          {"Shape: dimension: expected one of the 0 of [], got 0",
           [] { ConstTensorView().dim(0); }},
          {"Shape: dimension: expected one of the 1 of [2], got 1", [] { Shape{2}.with(1, 3); }},
          {"Shape: count: expected fewer than 2^63, got [4611686018427387904, 4]",
           [] {
             Shape({huge, 4}).count();
           }},
          {"TensorView: shape: expected sizes of at least 0, got [2, -1]",
           [&] {
             ConstTensorView(tensor.view().data(), {2, -1}, DType::f32);
           }},
          {"TensorView: shape: expected fewer than 2^63 elements, got [4611686018427387904, 2]",
           [&] {
             ConstTensorView(tensor.view().data(), {huge, 2}, DType::f32);
           }},
          {"TensorView: pitches: expected at least 0, got -3 and 1",
           [&] {
             ConstTensorView(tensor.view().data(), {2, 3}, Pitches{-3, 1}, DType::f32);
           }},
          {"Tensor: shape: expected sizes of at least 0, got [-1]",
           [] { Tensor({-1}, DType::f32); }},
          {"Tensor: shape: expected fewer than 2^63 bytes, got [4611686018427387904]",
           [] { Tensor({huge}, DType::f32); }},
          {"Tensor: shape: expected fewer than 2^63 bytes, got [4611686018427387904]",
           [] { Tensor::zeros({huge}, DType::bf16); }},
          {"Tensor::from: values: expected 3 values, got 1", [] { Tensor::from<float>({1}, {3}); }},
          {"Tensor: shape: expected sizes of at least 0, got [-3]",
           [] { Tensor::from<float>({1}, {-3}); }},
          {"TensorView::data: dtype: expected f32, got i32", [&] { tensor.data<std::int32_t>(); }},
          {"TensorView::data: dtype: expected f32, got bf16", [&] { view.data<bf16>(); }},
          {"TensorView::rows: range: expected within [0, 2), got [1, 1 + 2) of [2, 3]",
           [&] { view.rows(1, 2); }},
          {"TensorView::rows: range: expected within [0, 2), got [-1, -1 + 1) of [2, 3]",
           [&] { view.rows(-1, 1); }},
          {"TensorView::rows: range: expected within [0, 2), got "
           "[4611686018427387904, 4611686018427387904 + 1) of [2, 3]",
           [&] { view.rows(huge, 1); }},
          {"TensorView::rows: range: expected within [0, 0), got [0, 0 + 0) of []",
           [] { ConstTensorView().rows(0, 0); }},
          {"TensorView::steps: range: expected within [0, 0), got [0, 0 + 1) of [2, 3]",
           [&] { view.steps(0, 1); }},
          {"TensorView::columns: range: expected within [0, 3), got [2, 2 + 2) of [2, 3]",
           [&] { view.columns(2, 2); }},
          {"TensorView::columns: range: expected within [0, 0), got [0, 0 + 0) of []",
           [] { ConstTensorView().columns(0, 0); }},
          {"TensorView::reshape: shape: expected 6 elements of a dense view, got [5]",
           [&] { view.reshape({5}); }},
          {"TensorView: shape: expected sizes of at least 0, got [-2, -3]",
           [&] {
             view.reshape({-2, -3});
           }},
          {"TensorView::reshape: shape: expected 4 elements of a dense view, got [4]",
           [&] { view.columns(0, 2).reshape({4}); }},
          {"copy: from: expected a tensor, got none", [&] { copy({}, to, stream); }},
          {"copy: to: expected a tensor, got none", [&] { copy(tensor, {}, stream); }},
          {"copy: to: expected [3, 2], got [2, 3]", [&] { copy(other, to, stream); }},
          {"copy: to: expected i32, got f32", [&] { copy(ids, to, stream); }},
          {"copy: to: expected f32, got i32", [&] { tensor.to(Device::cpu(), DType::i32); }},
          {"zero: view: expected a tensor, got none", [&] { zero({}, stream); }},
          {"Stream: threads: expected at least 0, got -1", [] { Stream(Device::cpu(), -1); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { gone.device(); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { gone.threads(); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { gone.cuda_stream(); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { gone.synchronize(); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { const Scratch scratch(gone); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { const detail::ConstantWeights constant(gone); }},
          {"Stream: stream: expected a stream, got one that was moved from",
           [&] { zero(to, gone); }},
          {"Stream::borrow: device: expected a CUDA device, got cpu",
           [] { Stream::borrow(Device::cpu(), nullptr); }},
          {"...", [&] { Stream{nowhere}; }},
          {"...", [&] { Stream::borrow(nowhere, nullptr); }},
          {"...", [&] { default_stream(nowhere); }},
          {"...", [&] { Tensor({2}, DType::f32, nowhere); }},
          {"...", [&] { Tensor::zeros({2}, DType::f32, nowhere); }},
          {"...", [&] { tensor.to(nowhere); }},
          {"Scratch::take: shape: expected sizes of at least 0, got [-1]",
           [&] { Scratch(stream).take({-1}, DType::f32); }},
          {"Scratch::take: shape: expected sizes of at least 0, got [-2, -3]",
           [&] {
             Scratch(stream).take({-2, -3}, DType::f32);
           }},
          {"Scratch::take: shape: expected fewer than 2^63 bytes, got [4611686018427387904]",
           [&] { Scratch(stream).take({huge}, DType::f32); }},
          {"Scratch::take: shape: expected fewer than 2^63 bytes, got [4294967296, 4294967296]",
           [&] {
             Scratch(stream).take({1LL << 32, 1LL << 32}, DType::bf16);
           }},
          {"Graph::record: stream: expected a CUDA stream, got cpu",
           [&] { Graph::record(stream, [](Stream&) {}); }},
          {"here: x: expected a tensor, got none", [] { check::present("here", "x", {}); }},
          {"here: x: expected 1 dimensions, got [2, 3]",
           [&] { check::rank("here", "x", tensor, 1); }},
          {"here: x: expected cuda:1000, got cpu",
           [&] { check::device("here", "x", tensor, nowhere); }},
          {"here: x: expected f32 or bf16 or f16, got i32",
           [&] { check::storage("here", "x", ids); }},
      },
      [&] { return bytes(tensor) + bytes(to) + bytes(ids) + bytes(other); });
}

TEST(BadCalls, Files) {
  const TemporaryFolder folder;
  const Tensor tensor = Tensor::zeros({2}, DType::f32);
  const std::string path = folder.file("out");
  const std::string long_name(5000, 'x');
  MambaState state(small().layer, 2, DType::f32);
  StateMetadata seen;
  seen.tokens_seen = {1};
  StateMetadata negative;
  negative.tokens_seen = {1, -1};
  const auto save_items = [&](const std::vector<SafetensorsItem>& items) {
    save_safetensors(path, items);
  };
  expect_refused(
      {
          {"...", [&] { SafetensorsFile(folder.file("none")); }},
          {"...", [&] { SafetensorsFile{long_name}; }},
          {"...", [&] { SafetensorsFile(folder.path().string()); }},
          {"save_safetensors: a: expected a tensor, got none",
           [&] {
             save_items({{"a", {}}});
           }},
          {"save_safetensors: a: expected a name given once, got it twice",
           [&] {
             save_items({{"a", tensor}, {"a", tensor}});
           }},
          {"save_safetensors: __metadata__: ...",
           [&] {
             save_items({{"__metadata__", tensor}});
           }},
          {"save_safetensors: a: expected F32, BF16, F16 or F64, got \"I32\"",
           [&] {
             save_items({{"a", tensor, "I32"}});
           }},
          {"save_safetensors: a: ...",
           [&] {
             save_items({{"a", tensor, "", {3}}});
           }},
          {"save_safetensors: ...",
           [&] {
             save_items({{"\xff", tensor}});
           }},
          {"save_safetensors: ...",
           [&] {
             save_safetensors(long_name, {{"a", tensor}});
           }},
          {"save_text: ...", [&] { save_text(long_name, "a"); }},
          {"save_text: ...", [&] { save_text(folder.file("no/folder"), "a"); }},
          {"save: state: expected at least one layer, got none", [&] { save(path, StackState()); }},
          {"save: layers.0.conv: expected a tensor, got none", [&] { save(path, MambaState()); }},
          {"save: tokens_seen: expected 2 values or none, got 1", [&] { save(path, state, seen); }},
          {"save: tokens_seen: expected at least 0, got -1", [&] { save(path, state, negative); }},
          {"save: layers.x: ...",
           [&] {
             save(path, state, {}, {{"layers.x", tensor}});
           }},
          {"...", [&] { load_state(folder.file("none")); }},
          {"...", [&] { load_state(long_name); }},
          {"here: ...", [] { parse_config("", "here"); }},
          {"here: ...", [] { parse_config("[]", "here"); }},
          {"here: ...", [] { parse_config("{}", "here"); }},
          {"here: ...", [] { parse_config("{\"model_type\": \"gpt2\"}", "here"); }},
      },
      [&] { return bytes(tensor) + (std::filesystem::is_empty(folder.path()) ? "" : "a file"); });
}

}  // namespace
}  // namespace mamba
