#include "safetensors/reading/foreign_format.h"

#include "peft/error.h"
#include "safetensors/reading/header.h"
#include "safetensors/reading/input_file.h"

namespace peft::safetensors {
namespace {

constexpr std::string_view kConvertFirst = "convert it to safetensors first";
constexpr std::string_view kUnpackFirst = "unpack it first";
constexpr std::string_view kGzip = "\x1f\x8b\x08";

struct Magic {
  std::string_view bytes;
  std::string_view what;
  std::string_view hint;
};

constexpr Magic kMagics[] = {
    {kLfsPointer, kLfsText, kLfsHint},
    {"GGUF", "a GGUF file", kConvertFirst},
    {"\x93NUMPY", "a NumPy array file", kConvertFirst},
    {"\x89HDF\r\n\x1a\n", "an HDF5 file", kConvertFirst},
    {"\x28\xb5\x2f\xfd", "a Zstandard archive", kUnpackFirst},
    {"BZh", "a bzip2 archive", kUnpackFirst},
    {"\xfd"
     "7zXZ",
     "an xz archive", kUnpackFirst},
};

[[noreturn]] void refuse(const std::string& path, std::string_view what, std::string_view hint) {
  at(path).fail(ErrorCode::NOT_ST,
                {.problem = "not a safetensors file", .got = std::string(what), .hint = std::string(hint)});
}

[[noreturn]] void refuse_pickle(const std::string& path, std::string_view what) {
  at(path).fail(ErrorCode::E_PICKLE,
                {.problem = "a pickle can run code when it is loaded, so it is never opened",
                 .expected = "a safetensors file",
                 .got = std::string(what),
                 .hint = "if you trust it: python -c \"import torch, safetensors.torch as s; "
                         "s.save_file(torch.load('FILE', weights_only=True), 'NEW.safetensors')\""});
}

// The local header of a zip archive's first entry names it: torch.save begins with NAME/data.pkl.
void refuse_zip(std::string_view start, const std::string& path) {
  constexpr std::size_t kLengthAt = 26, kNameAt = 30;
  if (start.size() < kNameAt) refuse(path, "a zip archive", kUnpackFirst);
  const auto length =
      static_cast<unsigned char>(start[kLengthAt]) + static_cast<unsigned char>(start[kLengthAt + 1]) * 256u;
  const std::string_view name = start.substr(kNameAt, length);
  if (name.ends_with(".npy")) refuse(path, "a NumPy .npz archive", kConvertFirst);
  if (name.ends_with(".pkl") || name.ends_with("/version") || name.ends_with("/byteorder")) {
    refuse_pickle(path, "a zip archive with a pickle, as torch.save writes it");
  }
  refuse(path, "a zip archive", kUnpackFirst);
}

bool may_be_header_length(std::string_view start) {
  if (start.size() < kLengthBytes) return true;
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(start[i]);
  return length <= kMaxHeader;
}

bool is_html(std::string_view start) {
  const auto text = start.find_first_not_of(" \t\r\n");
  if (text == std::string_view::npos) return false;
  std::string lower;
  for (const char c : start.substr(text, 16)) lower += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") ||
         lower.starts_with("<head");
}

}  // namespace

void refuse_foreign_format(std::string_view start, const std::string& path) {
  if (start.starts_with("PK\x03\x04")) refuse_zip(start, path);
  if (start.starts_with(kGzip)) refuse(path, "a gzip archive", kUnpackFirst);
  // The other marks are short, or texts: when they may as well be a header's length, they prove nothing.
  if (may_be_header_length(start)) return;
  for (const Magic& magic : kMagics) {
    if (start.starts_with(magic.bytes)) refuse(path, magic.what, magic.hint);
  }
  if (start[0] == '\x80' && start[1] >= 2 && start[1] <= 5) refuse_pickle(path, "a pickle");
  if (is_html(start)) refuse(path, "an HTML page", "check the address and the access token of the download");
  if (start.starts_with("{")) {
    refuse(path, "a JSON text", "a safetensors file begins with 8 bytes of length; is this a config or an index?");
  }
}

}  // namespace peft::safetensors
