#include "host/files/safetensors_write.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <set>

#include <mamba/check.hpp>
#include <mamba/stream.hpp>

#include "host/core/elements.hpp"
#include "host/core/finished.hpp"
#include "host/core/json.hpp"
#include "host/files/safetensors_header.hpp"

namespace mamba {
namespace {

constexpr const char* where = "save_safetensors";

// An item with what the file will say of it.
struct Planned {
  const SafetensorsItem* item;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // in the data

  std::int64_t width() const { return elements::size_of(dtype); }
  std::int64_t bytes() const { return item->view.count() * width(); }
};

std::string quoted(const std::string& text) {
  std::optional<std::string> result = json_text(text);
  if (!result) throw ArgumentError(where, in_quotes(text), "UTF-8", "other bytes");
  return std::move(*result);
}

Planned plan(const SafetensorsItem& item) {
  const std::string& name = item.name;
  check::present(where, name.c_str(), item.view);
  if (name == "__metadata__") throw ArgumentError(where, name, "another name", "a reserved one");
  const char* own_dtype = elements::file_name_of(item.view.dtype());
  Planned planned{&item, item.dtype.empty() ? own_dtype : item.dtype, item.shape};
  if (!elements::convertible(own_dtype, planned.dtype)) {
    throw ArgumentError(where, name,
                        item.view.dtype() == DType::i32 ? "I32 or I64" : "F32, BF16, F16 or F64",
                        in_quotes(planned.dtype));
  }
  std::vector<std::int64_t> own_shape;
  own_shape.reserve(static_cast<std::size_t>(item.view.rank()));
  for (int i = 0; i < item.view.rank(); ++i) own_shape.push_back(item.view.dim(i));
  if (planned.shape.empty()) planned.shape = own_shape;
  const auto without_ones = [](std::vector<std::int64_t> sizes) {
    sizes.erase(std::remove(sizes.begin(), sizes.end(), 1), sizes.end());
    return sizes;
  };
  if (without_ones(planned.shape) != without_ones(own_shape)) {
    throw ArgumentError(where, name, item.view.shape().to_string() + " but for sizes of 1",
                        fmt::format("[{}]", fmt::join(planned.shape, ", ")));
  }
  return planned;
}

// In the order given, unless some tensor would then begin at an address that its elements cannot
// have in a mapped file: then wider elements go first.
std::vector<Planned> plan_all(const std::vector<SafetensorsItem>& items) {
  std::vector<Planned> all;
  std::set<std::string> names;
  for (const SafetensorsItem& item : items) {
    all.push_back(plan(item));
    if (!names.insert(item.name).second) {
      throw ArgumentError(where, item.name, "a name given once", "it twice");
    }
  }
  const auto place = [&all] {
    std::int64_t end = 0;
    bool aligned = true;
    for (Planned& planned : all) {
      planned.offset = end;
      aligned &= end % planned.width() == 0;
      end += planned.bytes();
    }
    return aligned;
  };
  if (!place()) {
    std::stable_sort(all.begin(), all.end(),
                     [](const Planned& a, const Planned& b) { return a.width() > b.width(); });
    place();
  }
  return all;
}

std::string header_text(const std::vector<Planned>& all,
                        const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  const auto comma = [&text] {
    if (text.size() > 1) text += ',';
  };
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    const char* separator = "";
    for (const auto& [key, value] : metadata) {
      text += separator + quoted(key) + ':' + quoted(value);
      separator = ",";
    }
    text += '}';
  }
  for (const Planned& planned : all) {
    comma();
    text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        quoted(planned.item->name), planned.dtype, fmt::join(planned.shape, ","),
                        planned.offset, planned.offset + planned.bytes());
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > static_cast<std::size_t>(SafetensorsHeader::longest)) {
    throw ArgumentError(where, "header",
                        fmt::format("at most {} bytes", SafetensorsHeader::longest),
                        fmt::format("{}", text.size()));
  }
  return text;
}

// To a file, or to bytes in memory.
using Write = std::function<void(const void* data, std::size_t bytes)>;

void write_data(const Planned& planned, const Write& write) {
  ConstTensorView view = planned.item->view;
  StreamAccess::wait_for(view);
  Tensor dense;
  if (!view.is_dense() || view.device() != Device::cpu()) {
    dense = on_host(view);
    view = dense;
  }
  const char* from = elements::file_name_of(view.dtype());
  if (planned.dtype == from) {
    write(view.data(), static_cast<std::size_t>(planned.bytes()));
    return;
  }
  constexpr std::int64_t piece = 64 << 10;  // elements: the buffer stays in the cache
  std::vector<unsigned char> buffer(
      static_cast<std::size_t>(std::min(piece, view.count()) * planned.width()));
  const auto* source = static_cast<const unsigned char*>(view.data());
  for (std::int64_t done = 0; done < view.count(); done += piece) {
    const std::int64_t count = std::min(piece, view.count() - done);
    elements::convert(from, planned.dtype, source + done * size_of(view.dtype()), buffer.data(),
                      count);
    write(buffer.data(), static_cast<std::size_t>(count * planned.width()));
  }
}

// The header is checked before there is a file.
class Plan {
 public:
  Plan(const std::vector<SafetensorsItem>& items,
       const std::map<std::string, std::string>& metadata)
      : all_(plan_all(items)), header_(header_text(all_, metadata)) {}
  void write(const Write& write) const {
    const std::uint64_t length = header_.size();
    write(&length, sizeof length);
    write(header_.data(), header_.size());
    for (const Planned& planned : all_) write_data(planned, write);
  }
  void write(AtomicFile& file) const {
    write([&](const void* data, std::size_t bytes) { file.write(data, bytes); });
  }
  std::size_t bytes() const {
    std::size_t sum = sizeof(std::uint64_t) + header_.size();
    for (const Planned& planned : all_) sum += static_cast<std::size_t>(planned.bytes());
    return sum;
  }

 private:
  std::vector<Planned> all_;
  std::string header_;
};

}  // namespace

void save_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                      const std::map<std::string, std::string>& metadata) {
  const Plan plan(items, metadata);
  AtomicFile file(where, path);
  plan.write(file);
  file.commit();
}

Bytes save_safetensors(const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata) {
  const Plan plan(items, metadata);
  Bytes result;
  result.reserve(plan.bytes());
  plan.write([&](const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    result.insert(result.end(), first, first + bytes);
  });
  return result;
}

void write_safetensors(AtomicFile& file, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata) {
  Plan(items, metadata).write(file);
}

void save_text(const std::string& path, const std::string& text) {
  AtomicFile file("save_text", path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace mamba
