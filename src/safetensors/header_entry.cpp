#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "safetensors/header_parts.h"

namespace peft::safetensors {
namespace {

namespace dom = simdjson::dom;
using Type = dom::element_type;

[[noreturn]] void fail(ErrorCode code, std::string_view tensor, const EntryContext& context, std::string problem,
                       std::string expected = {}, std::string got = {}, std::string hint = {}) {
  throw Error(code, {.file = context.file.path,
                     .tensor = std::string(tensor),
                     .problem = std::move(problem),
                     .expected = std::move(expected),
                     .got = std::move(got),
                     .hint = std::move(hint)});
}

constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

// Index into kFields, or its size. Spelled out: comparing with constants is much faster than with a table.
std::size_t field_number(std::string_view key) {
  if (key == "dtype") return 0;
  if (key == "shape") return 1;
  if (key == "data_offsets") return 2;
  return kFields.size();
}

// A value as an error shows it: numbers and short strings themselves, else the type.
std::string shown(dom::element value) {
  switch (value.type()) {
    case Type::INT64:
    case Type::UINT64:
    case Type::DOUBLE:
      return simdjson::minify(value);
    case Type::STRING:
      return "the string \"" + printable(std::string_view(value)) + "\"";
    default:
      return std::string(type_name(value));
  }
}

// An integer without sign, fraction or exponent.
bool is_unsigned(dom::element value) {
  if (value.type() == Type::UINT64) return true;
  return value.type() == Type::INT64 && std::int64_t(value) >= 0;
}

std::span<const std::int64_t> store_shape(std::span<const std::int64_t> shape, EntryContext& context) {
  if (shape.empty()) return {};
  for (const auto recent : context.recent_shapes) {
    if (std::equal(recent.begin(), recent.end(), shape.begin(), shape.end())) return recent;
  }
  auto* copy = static_cast<std::int64_t*>(context.memory.allocate(shape.size_bytes(), alignof(std::int64_t)));
  std::copy(shape.begin(), shape.end(), copy);
  auto& recent = context.recent_shapes[context.next_shape++ % context.recent_shapes.size()];
  recent = {copy, shape.size()};
  return recent;
}

std::span<const std::int64_t> parse_shape(dom::element value, std::string_view tensor, EntryContext& context) {
  if (!value.is_array())
    fail(ErrorCode::ST_FIELD, tensor, context, "shape has the wrong type", "an array", shown(value));
  const dom::array dimensions = value;
  std::array<std::int64_t, kMaxRank> shape;  // the first `rank` are set
  std::size_t rank = 0;
  for (const dom::element dimension : dimensions) {
    if (!is_unsigned(dimension)) {
      fail(ErrorCode::ST_SHAPE, tensor, context, fmt::format("dimension {} of the shape is wrong", rank),
           "an unsigned integer", shown(dimension));
    }
    if (rank < kMaxRank) shape[rank] = static_cast<std::int64_t>(std::uint64_t(dimension));
    ++rank;
  }
  if (rank > kMaxRank) {
    fail(ErrorCode::ST_LIMIT, tensor, context, "the tensor has too many dimensions",
         fmt::format("at most {}", kMaxRank), fmt::format("{}", rank));
  }
  return store_shape(std::span(shape).first(rank), context);
}

void parse_offsets(dom::element value, TensorInfo& tensor, const EntryContext& context) {
  if (!value.is_array()) {
    fail(ErrorCode::ST_FIELD, tensor.name, context, "data_offsets has the wrong type", "an array", shown(value));
  }
  const dom::array offsets = value;
  std::size_t count = 0;
  for (const dom::element offset : offsets) {
    if (!is_unsigned(offset)) {
      fail(ErrorCode::ST_OFFSETS, tensor.name, context, fmt::format("number {} of data_offsets is wrong", count),
           "an unsigned integer", shown(offset));
    }
    if (count == 0) tensor.begin = offset;
    if (count == 1) tensor.end = offset;
    ++count;
  }
  if (count != 2) {
    fail(ErrorCode::ST_OFFSETS, tensor.name, context, "data_offsets has the wrong length", "2 numbers",
         fmt::format("{}", count));
  }
  if (tensor.end < tensor.begin) {
    fail(ErrorCode::ST_OFFSETS, tensor.name, context, "data_offsets end before they begin",
         fmt::format("an end of at least {}", tensor.begin), fmt::format("{}", tensor.end));
  }
}

void parse_dtype_field(dom::element value, TensorInfo& tensor, EntryContext& context) {
  if (!value.is_string()) {
    fail(ErrorCode::ST_FIELD, tensor.name, context, "dtype has the wrong type", "a string", shown(value));
  }
  const std::string_view name = value;
  if (context.last_dtype == nullptr || context.last_dtype->name != name) {
    const auto rows = dtypes();
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const DtypeInfo& known) { return known.name == name; });
    context.last_dtype = row == rows.end() ? nullptr : &*row;
  }
  if (context.last_dtype != nullptr) {
    tensor.dtype = context.last_dtype->dtype;
    tensor.dtype_name = context.last_dtype->name;
    return;
  }
  if (name.size() > kMaxName) {
    fail(ErrorCode::ST_LIMIT, tensor.name, context, "the dtype's name is too long",
         fmt::format("at most {} bytes", kMaxName), fmt::format("{} bytes", name.size()));
  }
  tensor.dtype_name = copy_text(name, context.memory);
  context.unknown_dtypes.add(tensor.name, name);
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::vector<std::uint64_t> dimensions(shape.begin(), shape.end());  // as the file has them: unsigned
  return fmt::format("[{}]", fmt::join(dimensions, ", "));
}

// The byte range must be what shape and dtype give. Of an unknown dtype only the number of elements can be checked.
void check_size(const TensorInfo& tensor, const EntryContext& context) {
  const TensorSize size = tensor_size(tensor.shape, info(tensor.dtype).bits);
  const auto what = [&] { return fmt::format("shape {}, dtype {}", shape_text(tensor.shape), tensor.dtype_name); };
  switch (size.fault) {
    case SizeFault::elements:
      fail(ErrorCode::ST_OVERFLOW, tensor.name, context, "the number of elements does not fit 64 bits", {}, what());
    case SizeFault::bits:
      fail(ErrorCode::ST_OVERFLOW, tensor.name, context, "the size in bits does not fit 64 bits", {}, what());
    case SizeFault::fraction:
      fail(ErrorCode::ST_BITS, tensor.name, context,
           fmt::format("elements of {} bits do not fill whole bytes", info(tensor.dtype).bits), "a multiple of 8 bits",
           what());
    case SizeFault::none:
      break;
  }
  for (const std::int64_t dimension : tensor.shape) {
    if (dimension < 0) {  // 2^63 or more, in a tensor of no elements
      fail(ErrorCode::ST_LIMIT, tensor.name, context, "a dimension is too large", fmt::format("at most {}", INT64_MAX),
           what());
    }
  }
  if (tensor.dtype != Dtype::unknown && size.bytes != tensor.bytes()) {
    fail(ErrorCode::ST_SIZE, tensor.name, context, "the byte range does not fit " + what(),
         fmt::format("{} bytes", size.bytes),
         fmt::format("{} bytes at [{}, {})", tensor.bytes(), tensor.begin, tensor.end));
  }
}

}  // namespace

void Oddity::add(std::string_view tensor, std::string_view thing) {
  if (count++ == 0) first = fmt::format("\"{}\" in \"{}\"", printable(thing), printable(tensor));
}

std::string_view copy_text(std::string_view text, std::pmr::memory_resource& memory) {
  if (text.empty()) return {};
  auto* copy = static_cast<char*>(memory.allocate(text.size(), 1));
  std::memcpy(copy, text.data(), text.size());
  return {copy, text.size()};
}

std::string_view type_name(dom::element value) {
  switch (value.type()) {
    case Type::ARRAY:
      return "an array";
    case Type::OBJECT:
      return "an object";
    case Type::INT64:
    case Type::UINT64:
      return "an integer";
    case Type::DOUBLE:
      return "a number with a fraction or an exponent";
    case Type::STRING:
      return "a string";
    case Type::BOOL:
      return "a boolean";
    case Type::NULL_VALUE:
      return "null";
  }
  return "something else";
}

void require_distinct_keys(dom::element value, std::string_view tensor, const FileFacts& file) {
  if (value.is_array()) {
    const dom::array items = value;
    for (const dom::element item : items) require_distinct_keys(item, tensor, file);
  }
  if (!value.is_object()) return;
  const dom::object fields = value;
  std::vector<std::string_view> keys;
  for (const auto [key, inner] : fields) {
    keys.push_back(key);
    require_distinct_keys(inner, tensor, file);
  }
  std::sort(keys.begin(), keys.end());  // not hashed: a file could be made whose keys collide
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice == keys.end()) return;
  throw Error(ErrorCode::ST_DUP,
              {.file = file.path,
               .tensor = std::string(tensor),
               .problem = fmt::format("the key \"{}\" appears twice in one object", printable(*twice)),
               .hint = "readers may see different values; export the file again"});
}

TensorInfo parse_entry(std::string_view name, dom::element value, EntryContext& context) {
  TensorInfo tensor;
  tensor.name = name;
  if (!value.is_object())
    fail(ErrorCode::ST_FIELD, name, context, "the tensor's entry has the wrong type", "an object", shown(value));
  const dom::object fields = value;
  std::array<bool, kFields.size()> seen{};
  bool others = false;
  for (const auto [key, field] : fields) {
    const std::size_t known = field_number(key);
    if (known == kFields.size()) {
      others = true;
      context.unknown_fields.add(name, key);
      continue;
    }
    if (std::exchange(seen[known], true)) {
      fail(ErrorCode::ST_DUP, name, context, fmt::format("the field \"{}\" appears twice", key), {}, {},
           "readers may see different tensors; export the file again");
    }
    if (known == 0) parse_dtype_field(field, tensor, context);
    if (known == 1) tensor.shape = parse_shape(field, name, context);
    if (known == 2) parse_offsets(field, tensor, context);
  }
  for (std::size_t i = 0; i < kFields.size(); ++i) {
    if (!seen[i]) fail(ErrorCode::ST_FIELD, name, context, fmt::format("the field \"{}\" is missing", kFields[i]));
  }
  if (others) require_distinct_keys(value, name, context.file);
  check_size(tensor, context);
  return tensor;
}

}  // namespace peft::safetensors
