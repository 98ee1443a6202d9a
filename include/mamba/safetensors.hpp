// Reading and writing safetensors files: 8 bytes of header length, a JSON header, then raw
// little-endian data. Nothing in a file is believed before it is checked. A file may as well be
// bytes in memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mamba/bytes.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// What the header says of one tensor. Files may hold dtypes and ranks that a Tensor cannot: 8-bit
// and smaller floats, complex numbers, small and unsigned integers. Those are opened, and their
// bytes() given, but not read().
struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the file: "F32", "BF16", "F16", "I32", "I64", "F64", ...
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // of the first byte, from the start of the file
  std::int64_t bytes = 0;

  std::string shape_text() const;  // "[2, 5, 16]"
};

// An open file. All of the header is checked when it is opened: its length, JSON, dtypes, shapes,
// that sizes agree and that the tensors cover the data exactly, without overlap, gap or surplus.
// What does not hold is a FormatError naming the file and the tensor; a file that cannot be opened
// or read is an Error.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  // What a file would hold. The bytes must outlive this; `name` stands for the path in errors.
  explicit SafetensorsFile(ByteView bytes, std::string name = "bytes");
  explicit SafetensorsFile(const Bytes&& bytes, std::string name = "bytes") = delete;
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::string& path() const;                       // or the name of the bytes
  const std::vector<SafetensorsEntry>& entries() const;  // in order of their data
  const std::map<std::string, std::string>& metadata() const;
  const SafetensorsEntry* find(const std::string& name) const;   // nullptr if missing
  const SafetensorsEntry& entry(const std::string& name) const;  // missing: FormatError

  // The tensor's bytes as stored. One call per tensor reads the file once, in order.
  std::vector<unsigned char> bytes(const SafetensorsEntry& entry) const;

  // The tensor on the CPU. Sizes of 1 may differ in place ([8, 1, 4] reads as [8, 4]).
  // Floating-point dtypes (F64, F32, BF16, F16) convert to any of f32, bf16, f16, rounded to
  // nearest even; integers (I64, I32) to i32, checked. Anything else is a FormatError.
  Tensor read(const SafetensorsEntry& entry, const Shape& shape, DType dtype) const;
  Tensor read(const SafetensorsEntry& entry) const;  // its own shape; I64 as i32, F64 as f32

 private:
  struct Impl;
  Impl& impl() const;  // ArgumentError in a file that was moved from
  std::unique_ptr<Impl> impl_;
};

// The dtype of a Tensor that holds exactly what the file holds: F32, BF16, F16, I32; else nullopt.
std::optional<DType> tensor_dtype(const SafetensorsEntry& entry);

// One tensor to be written. `dtype` and `shape` are what the file will say: empty, the view's own;
// given, the values are converted (f32 to "BF16", say) and the shape may differ by sizes of 1.
struct SafetensorsItem {
  std::string name;
  ConstTensorView view;  // on any device, any pitches
  std::string dtype = {};
  std::vector<std::int64_t> shape = {};
};

// Writes to a temporary file in the same folder, flushes it to the disk and renames it to `path`:
// after a crash or a full disk the old file or the new one is there, whole. Throws Error if the
// system refuses; what cannot be saved (a name given twice, a dtype that does not convert) is an
// ArgumentError. Data is in the order of `items`, or wider elements first where alignment needs it;
// the same items give the same bytes. A symbolic link at `path` is replaced and not followed; a
// file that is replaced keeps its permissions.
void save_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                      const std::map<std::string, std::string>& metadata = {});
// The bytes of that file.
[[nodiscard]] Bytes save_safetensors(const std::vector<SafetensorsItem>& items,
                                     const std::map<std::string, std::string>& metadata = {});

// The same care for a small text file (config.json).
void save_text(const std::string& path, const std::string& text);

}  // namespace mamba
