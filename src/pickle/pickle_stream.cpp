#include "pickle/pickle_stream.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "peft/error.h"

namespace peft::pickle {
namespace {

// ---- Names

enum class Meaning : std::uint8_t {
  ordered_dict,
  rebuild_tensor,
  rebuild_with_dtype,
  rebuild_parameter,
  size,
  storage,
  dtype
};
struct Name {
  std::string_view module, name;
  Meaning meaning;
  Dtype dtype = Dtype::unknown;
};
constexpr Name kNames[] = {
    {"collections", "OrderedDict", Meaning::ordered_dict},
    {"torch._utils", "_rebuild_tensor_v2", Meaning::rebuild_tensor},
    {"torch._utils", "_rebuild_tensor_v3", Meaning::rebuild_with_dtype},
    {"torch._utils", "_rebuild_parameter", Meaning::rebuild_parameter},
    {"torch", "Size", Meaning::size},
    {"torch", "DoubleStorage", Meaning::storage, Dtype::f64},
    {"torch", "FloatStorage", Meaning::storage, Dtype::f32},
    {"torch", "HalfStorage", Meaning::storage, Dtype::f16},
    {"torch", "BFloat16Storage", Meaning::storage, Dtype::bf16},
    {"torch", "LongStorage", Meaning::storage, Dtype::i64},
    {"torch", "IntStorage", Meaning::storage, Dtype::i32},
    {"torch", "ShortStorage", Meaning::storage, Dtype::i16},
    {"torch", "CharStorage", Meaning::storage, Dtype::i8},
    {"torch", "ByteStorage", Meaning::storage, Dtype::u8},
    {"torch", "BoolStorage", Meaning::storage, Dtype::boolean},
    {"torch.storage", "UntypedStorage", Meaning::storage, Dtype::u8},
    {"torch", "float8_e4m3fn", Meaning::dtype, Dtype::f8_e4m3},
    {"torch", "float8_e5m2", Meaning::dtype, Dtype::f8_e5m2},
    {"torch", "uint16", Meaning::dtype, Dtype::u16},
    {"torch", "uint32", Meaning::dtype, Dtype::u32},
    {"torch", "uint64", Meaning::dtype, Dtype::u64},
};

constexpr std::string_view kSafe =
    "load it with torch.load(FILE, weights_only=True) in a sandbox and save its tensors with "
    "safetensors.torch.save_file";

// ---- Opcodes

enum Opcode : unsigned char {
  kMark = '(',
  kStop = '.',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kEmptyTuple = ')',
  kEmptyDict = '}',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

class Machine {
 public:
  Machine(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  Pickle run() {
    if (opcode() != kProto) broken("a pickle begins with its protocol");
    if (const auto protocol = number<std::uint8_t>(); protocol < 2 || protocol > 5)
      broken(fmt::format("protocol {}: 2 to 5 are read", protocol));
    for (unsigned char op = opcode(); op != kStop; op = opcode()) step(op);
    if (stack_.size() != 1 || !marks_.empty()) broken("the pickle ends with something else than one value");
    if (at_ != bytes_.size()) broken(fmt::format("{} bytes follow the end of the pickle", bytes_.size() - at_));
    pickle_.top = stack_.front();
    return std::move(pickle_);
  }

 private:
  using Place = std::uint32_t;

  // ---- Errors

  [[noreturn]] void broken(std::string problem) const {
    at(path_, "data.pkl")
        .fail(ErrorCode::PK_STREAM, {.problem = "the pickle is damaged: " + std::move(problem),
                                     .got = fmt::format("byte {} of {}", at_, bytes_.size())});
  }
  [[noreturn]] void refuse(std::string_view what, std::string got) const {
    at(path_, "data.pkl")
        .fail(ErrorCode::E_PICKLE,
              {.problem = fmt::format("the pickle holds {}", what),
               .expected = "tensors, storages and plain containers; nothing else is read, and no code is run",
               .got = std::move(got),
               .hint = std::string(kSafe)});
  }

  // ---- Bytes

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) broken("it ends too early");
    const std::string_view part = bytes_.substr(at_, count);
    at_ += count;
    return part;
  }
  template <class Number>
  Number number() {
    Number number;
    std::memcpy(&number, take(sizeof number).data(), sizeof number);
    return number;
  }
  unsigned char opcode() { return number<unsigned char>(); }
  std::string_view line() {
    const auto end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) broken("a name without an end");
    const std::string_view text = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }

  // ---- The stack

  const Value& value(Place place) const { return pickle_.values[place]; }
  void push(Value made) {
    if (pickle_.values.size() == kMaxValues) broken("it holds too many values");
    stack_.push_back(static_cast<Place>(pickle_.values.size()));
    pickle_.values.push_back(std::move(made));
  }
  void push_number(Kind kind, std::int64_t number) { push({.kind = kind, .number = number}); }
  void push_text(std::string_view text) { push({.kind = Kind::text, .text = text}); }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Place pop() {
    if (stack_.size() <= floor()) broken("a value is missing on the stack");
    const Place place = stack_.back();
    stack_.pop_back();
    return place;
  }
  Place top() const {
    if (stack_.size() <= floor()) broken("a value is missing on the stack");
    return stack_.back();
  }
  std::vector<Place> pop_mark() {
    if (marks_.empty()) broken("a mark is missing on the stack");
    std::vector<Place> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  void push_tuple(std::size_t count) {
    std::vector<Place> items(count);
    for (std::size_t i = count; i-- > 0;) items[i] = pop();
    push({.kind = Kind::tuple, .items = std::move(items)});
  }

  void step(unsigned char op);
  bool step_value(unsigned char op);
  bool step_container(unsigned char op);
  bool step_memory(unsigned char op);

  // ---- What opcodes do

  void push_long() {
    const std::string_view bytes = take(number<std::uint8_t>());
    if (bytes.size() > 8) refuse("an integer beyond 64 bits", fmt::format("{} bytes", bytes.size()));
    std::uint64_t made = 0;
    for (std::size_t i = bytes.size(); i-- > 0;) made = made << 8 | static_cast<unsigned char>(bytes[i]);
    const std::size_t free = 64 - 8 * bytes.size();
    // The last byte has the sign.
    push_number(Kind::integer, bytes.empty() ? 0 : std::bit_cast<std::int64_t>(made << free) >> free);
  }
  void push_real() {
    std::uint64_t big = 0;
    for (const char byte : take(8)) big = big << 8 | static_cast<unsigned char>(byte);
    push_number(Kind::real, std::bit_cast<std::int64_t>(big));
  }
  void push_name(std::string_view module, std::string_view name) {
    for (std::size_t row = 0; row < std::size(kNames); ++row) {
      if (kNames[row].module == module && kNames[row].name == name)
        return push_number(Kind::name, static_cast<std::int64_t>(row));
    }
    refuse("a name of Python that is not accepted", printable(std::string(module) + "." + std::string(name), 200));
  }
  void add_items(const std::vector<Place>& items, Kind kind) {
    Value& container = pickle_.values[top()];
    if (container.kind != kind || (kind == Kind::dict && items.size() % 2 != 0)) broken("items for no container");
    container.items.insert(container.items.end(), items.begin(), items.end());
  }
  void memoize(std::uint64_t at) { memo_[at] = top(); }
  void recall(std::uint64_t at) {
    const auto found = memo_.find(at);
    if (found == memo_.end()) broken("a value is recalled that was not kept");
    stack_.push_back(found->second);
  }
  // State_dict's _metadata stands as an attribute on the OrderedDict.
  void build() {
    const Value& state = value(pop());
    if (state.kind != Kind::dict || value(top()).kind != Kind::dict)
      refuse("an object with a state of its own", "BUILD");
    if (!state.items.empty()) pickle_.notes.emplace_back("the attributes of the dictionary in the pickle are not used");
  }
  const Name& name_of(Place place, std::string_view use) const {
    if (value(place).kind != Kind::name) broken(std::string(use) + " of something that is no name");
    return kNames[value(place).number];
  }
  void push_storage();
  void reduce();
  void push_tensor(const std::vector<Place>& given, bool with_dtype);

  std::string_view bytes_;
  const std::string& path_;
  std::size_t at_ = 0;
  Pickle pickle_;
  std::vector<Place> stack_;
  std::vector<std::size_t> marks_;  // sizes that the stack had
  std::unordered_map<std::uint64_t, Place> memo_;
};

void Machine::push_storage() {
  const Value& tuple = value(pop());
  const auto is = [&](std::size_t i, Kind kind) { return value(tuple.items[i]).kind == kind; };
  const bool storage = tuple.kind == Kind::tuple && tuple.items.size() == 5 && is(0, Kind::text) && is(1, Kind::name) &&
                       is(2, Kind::text) && is(3, Kind::text) && is(4, Kind::integer) &&
                       value(tuple.items[0]).text == "storage" &&
                       name_of(tuple.items[1], "").meaning == Meaning::storage;
  if (!storage) refuse("a reference that is no storage", "BINPERSID");
  push({.kind = Kind::storage,
        .dtype = name_of(tuple.items[1], "").dtype,
        .number = value(tuple.items[4]).number,
        .text = value(tuple.items[2]).text});
}

void Machine::push_tensor(const std::vector<Place>& given, bool with_dtype) {
  const std::size_t least = with_dtype ? 7 : 6;
  const auto is = [&](std::size_t i, Kind kind) { return value(given[i]).kind == kind; };
  if (given.size() < least || given.size() > least + 1 || !is(0, Kind::storage) || !is(1, Kind::integer) ||
      !is(2, Kind::tuple) || !is(3, Kind::tuple) || (with_dtype && !is(6, Kind::name)))
    broken("a tensor that is described in another way");
  Dtype dtype = value(given[0]).dtype;
  if (with_dtype) {
    const Name& name = name_of(given[6], "the type");
    if (name.meaning != Meaning::dtype) broken("a tensor's type that is none");
    dtype = name.dtype;
  }
  push({.kind = Kind::tensor, .dtype = dtype, .items = {given[0], given[1], given[2], given[3]}});
}

void Machine::reduce() {
  const Value& arguments = value(pop());
  const Name& name = name_of(pop(), "a call");
  if (arguments.kind != Kind::tuple) broken("a call without arguments");
  const std::vector<Place>& given = arguments.items;
  switch (name.meaning) {
    case Meaning::ordered_dict:
      if (!given.empty()) refuse("a dictionary made from arguments", "OrderedDict");
      return push({.kind = Kind::dict});
    case Meaning::rebuild_tensor:
      return push_tensor(given, false);
    case Meaning::rebuild_with_dtype:
      return push_tensor(given, true);
    case Meaning::rebuild_parameter:
      if (given.size() != 3 || value(given[0]).kind != Kind::tensor) broken("a parameter without its tensor");
      stack_.push_back(given[0]);
      return;
    case Meaning::size:
      if (given.size() != 1 || value(given[0]).kind != Kind::tuple) broken("a size that is no tuple");
      stack_.push_back(given[0]);
      return;
    default:
      refuse("a call of what is no function", std::string(name.name));
  }
}

bool Machine::step_value(unsigned char op) {
  switch (op) {
    case kNone:
      return push_number(Kind::none, 0), true;
    case kNewTrue:
    case kNewFalse:
      return push_number(Kind::boolean, op == kNewTrue ? 1 : 0), true;
    case kBinInt:
      return push_number(Kind::integer, number<std::int32_t>()), true;
    case kBinInt1:
      return push_number(Kind::integer, number<std::uint8_t>()), true;
    case kBinInt2:
      return push_number(Kind::integer, number<std::uint16_t>()), true;
    case kLong1:
      return push_long(), true;
    case kBinFloat:
      return push_real(), true;
    case kShortBinString:
    case kShortBinUnicode:
      return push_text(take(number<std::uint8_t>())), true;
    case kBinUnicode:
      return push_text(take(number<std::uint32_t>())), true;
    case kBinUnicode8:
      return push_text(take(number<std::uint64_t>())), true;
    default:
      return false;
  }
}

bool Machine::step_container(unsigned char op) {
  switch (op) {
    case kMark:
      return marks_.push_back(stack_.size()), true;
    case kEmptyTuple:
      return push({.kind = Kind::tuple}), true;
    case kEmptyList:
      return push({.kind = Kind::list}), true;
    case kEmptyDict:
      return push({.kind = Kind::dict}), true;
    case kTuple1:
    case kTuple2:
    case kTuple3:
      return push_tuple(static_cast<std::size_t>(op - kTuple1) + 1), true;
    case kTuple:
      return push({.kind = Kind::tuple, .items = pop_mark()}), true;
    case kAppends:
      return add_items(pop_mark(), Kind::list), true;
    case kSetItems:
      return add_items(pop_mark(), Kind::dict), true;
    case kAppend:
      return add_items({pop()}, Kind::list), true;
    case kSetItem: {
      const Place item = pop(), key = pop();
      return add_items({key, item}, Kind::dict), true;
    }
    default:
      return false;
  }
}

bool Machine::step_memory(unsigned char op) {
  switch (op) {
    case kBinPut:
      return memoize(number<std::uint8_t>()), true;
    case kLongBinPut:
      return memoize(number<std::uint32_t>()), true;
    case kMemoize:
      return memoize(memo_.size()), true;
    case kBinGet:
      return recall(number<std::uint8_t>()), true;
    case kLongBinGet:
      return recall(number<std::uint32_t>()), true;
    case kFrame:
      if (number<std::uint64_t>() > bytes_.size() - at_) broken("a frame beyond the end");
      return true;
    default:
      return false;
  }
}

void Machine::step(unsigned char op) {
  if (step_value(op) || step_container(op) || step_memory(op)) return;
  switch (op) {
    case kGlobal: {
      const std::string_view module = line();
      return push_name(module, line());
    }
    case kStackGlobal: {
      const Place name = pop(), module = pop();
      if (value(name).kind != Kind::text || value(module).kind != Kind::text) broken("a name that is no text");
      return push_name(value(module).text, value(name).text);
    }
    case kBinPersId:
      return push_storage();
    case kReduce:
      return reduce();
    case kBuild:
      return build();
    default:
      refuse("an opcode that is not accepted", fmt::format("0x{:02x} at byte {}", op, at_ - 1));
  }
}

}  // namespace

Pickle read_pickle(std::string_view bytes, const std::string& path) {
  if (bytes.size() > kMaxPickle) {
    at(path, "data.pkl")
        .fail(ErrorCode::PK_STREAM, {.problem = "the pickle is too long",
                                     .expected = fmt::format("at most {} bytes", kMaxPickle),
                                     .got = fmt::format("{} bytes", bytes.size())});
  }
  return Machine(bytes, path).run();
}

}  // namespace peft::pickle
