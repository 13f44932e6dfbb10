#include "pickle/zip_archive.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "base/checked.h"
#include "base/text.h"
#include "peft/error.h"

namespace peft::pickle {
namespace {

constexpr std::uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                        kLocator = 0x07064b50;
constexpr std::uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20;
constexpr std::uint32_t kFull32 = 0xffffffff;
constexpr std::uint32_t kFull16 = 0xffff;
constexpr std::uint64_t kMaxEntryName = 4096;
constexpr std::uint32_t kEncrypted = 1;  // a flag
constexpr const char* kSaveAgain =
    "load it with torch.load(FILE, weights_only=True), which runs no code, and save it with "
    "safetensors.torch.save_file";

// Bytes of the archive that are known to be there.
class Bytes {
 public:
  Bytes(std::span<const std::byte> image, const std::string& path) : image_(image), path_(path) {}

  std::uint64_t size() const { return image_.size(); }
  template <class Number>
  Number number(std::uint64_t at) const {
    Number number;
    std::memcpy(&number, take(at, sizeof number).data(), sizeof number);
    return number;
  }
  std::span<const std::byte> take(std::uint64_t at, std::uint64_t count) const {
    const auto end = checked_add(at, count);
    if (!end || *end > image_.size()) {
      fail({.problem = "the archive is cut off or damaged",
            .expected = fmt::format("{} bytes from byte {}", count, at),
            .got = fmt::format("{} bytes in all", image_.size()),
            .hint = "is the download complete?"});
    }
    return image_.subspan(at, count);
  }
  std::string_view text(std::uint64_t at, std::uint64_t count) const {
    const auto bytes = take(at, count);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  [[noreturn]] void refuse_code() const {
    at(path_).fail(ErrorCode::E_PICKLE, {.problem = "a TorchScript archive, which holds code",
                                         .expected = "a state dict",
                                         .hint = "save the adapter with save_pretrained"});
  }
  [[noreturn]] void fail(ErrorReason reason) const { at(path_).fail(ErrorCode::PK_ARCHIVE, std::move(reason)); }

 private:
  std::span<const std::byte> image_;
  const std::string& path_;
};

struct Directory {
  std::uint64_t begin = 0, bytes = 0, entries = 0;
};

// The newer record of large archives, which torch always writes.
std::optional<Directory> read_end64(const Bytes& file, std::uint64_t end_at) {
  if (end_at < kLocatorBytes || file.number<std::uint32_t>(end_at - kLocatorBytes) != kLocator) return std::nullopt;
  const auto record = file.number<std::uint64_t>(end_at - kLocatorBytes + 8);
  if (file.number<std::uint32_t>(record) != kEnd64 || record > end_at - kLocatorBytes - kEnd64Bytes)
    file.fail({.problem = "the end of the archive points to no record", .got = fmt::format("byte {}", record)});
  return Directory{file.number<std::uint64_t>(record + 48), file.number<std::uint64_t>(record + 40),
                   file.number<std::uint64_t>(record + 32)};
}

Directory read_end(const Bytes& file) {
  if (file.size() < kEndBytes || file.number<std::uint32_t>(file.size() - kEndBytes) != kEnd) {
    file.fail({.problem = "the archive does not end as an archive does",
               .expected = "its directory at the end",
               .got = fmt::format("{} bytes", file.size()),
               .hint = "is the download complete?"});
  }
  const std::uint64_t at = file.size() - kEndBytes;
  if (file.number<std::uint32_t>(at + 4) != 0 || file.number<std::uint16_t>(at + 20) != 0)
    file.fail({.problem = "an archive of several parts, or with a comment: torch writes neither"});
  const Directory small{file.number<std::uint32_t>(at + 16), file.number<std::uint32_t>(at + 12),
                        file.number<std::uint16_t>(at + 10)};
  const auto large = read_end64(file, at);
  if (!large) return small;
  const bool same = (small.begin == kFull32 || small.begin == large->begin) &&
                    (small.bytes == kFull32 || small.bytes == large->bytes) &&
                    (small.entries == kFull16 || small.entries == large->entries);
  if (!same) file.fail({.problem = "the two records at the end of the archive contradict each other"});
  return *large;
}

// Sizes and places beyond 32 bits stand in an extra field, in this order.
class Zip64 {
 public:
  Zip64(const Bytes& file, std::uint64_t at, std::uint64_t bytes) : file_(file) {
    for (const std::uint64_t end = at + bytes; at + 4 <= end;) {
      const auto id = file.number<std::uint16_t>(at);
      const std::uint64_t length = file.number<std::uint16_t>(at + 2);
      if (id == 1) at_ = at + 4, end_ = std::min(end, at + 4 + length);
      at += 4 + length;
    }
  }
  std::uint64_t widened(std::uint32_t number) {
    if (number != kFull32) return number;
    if (at_ + 8 > end_) file_.fail({.problem = "an entry of the archive states no size"});
    at_ += 8;
    return file_.number<std::uint64_t>(at_ - 8);
  }

 private:
  const Bytes& file_;
  std::uint64_t at_ = 0, end_ = 0;
};

void require_stored(const Bytes& file, std::string_view name, std::uint64_t flags_at) {
  const auto flags = file.number<std::uint16_t>(flags_at), method = file.number<std::uint16_t>(flags_at + 2);
  if ((flags & kEncrypted) == 0 && method == 0) return;
  if (name.find("/code/__torch__") != std::string_view::npos) file.refuse_code();  // its sources are compressed
  file.fail({.problem = fmt::format("the entry {} is {}", printable(name), method == 0 ? "encrypted" : "compressed"),
             .expected = "entries that are stored as they are, as torch.save writes them",
             .hint = kSaveAgain});
}

// One entry of the directory; `at` moves to the next one.
ZipEntry read_entry(const Bytes& file, std::uint64_t& at, std::uint64_t directory) {
  if (file.number<std::uint32_t>(at) != kCentral)
    file.fail({.problem = "the directory of the archive is damaged", .got = fmt::format("byte {}", at)});
  const std::uint64_t name_bytes = file.number<std::uint16_t>(at + 28), extra = file.number<std::uint16_t>(at + 30),
                      comment = file.number<std::uint16_t>(at + 32);
  ZipEntry entry{.name = file.text(at + kCentralBytes, name_bytes), .crc = file.number<std::uint32_t>(at + 16)};
  if (entry.name.empty() || name_bytes > kMaxEntryName)
    file.fail({.problem = "an entry of the archive has no name, or one too long"});
  require_stored(file, entry.name, at + 8);
  file.take(at + kCentralBytes + name_bytes, extra);
  Zip64 zip64(file, at + kCentralBytes + name_bytes, extra);
  const std::uint64_t size = zip64.widened(file.number<std::uint32_t>(at + 24)),
                      stored = zip64.widened(file.number<std::uint32_t>(at + 20)),
                      local = zip64.widened(file.number<std::uint32_t>(at + 42));
  at += kCentralBytes + name_bytes + extra + comment;
  if (size != stored || file.number<std::uint32_t>(local) != kLocal ||
      file.text(local + kLocalBytes, file.number<std::uint16_t>(local + 26)) != entry.name)
    file.fail({.problem = fmt::format("the entry {} is not where the directory says", printable(entry.name))});
  require_stored(file, entry.name, local + 6);
  entry.begin = local + kLocalBytes + name_bytes + file.number<std::uint16_t>(local + 28);
  const auto end = checked_add(entry.begin, size);
  if (!end || *end > directory)
    file.fail({.problem = fmt::format("the entry {} ends outside of the archive's data", printable(entry.name))});
  entry.end = *end;
  return entry;
}

void require_apart(const Bytes& file, std::vector<ZipEntry>& entries) {
  std::ranges::sort(entries, {}, &ZipEntry::begin);
  for (std::size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].begin < entries[i - 1].end)
      file.fail({.problem = fmt::format("the entries {} and {} share bytes", printable(entries[i - 1].name),
                                        printable(entries[i].name))});
  }
  std::ranges::sort(entries, {}, &ZipEntry::name);
  const auto twice = std::ranges::adjacent_find(entries, {}, &ZipEntry::name);
  if (twice != entries.end())
    file.fail({.problem = fmt::format("two entries of the archive are called {}", printable(twice->name))});
}

// What torch wrote before it wrote archives (until 1.5), and before that.
void refuse_older_forms(const Bytes& file, const std::string& path) {
  constexpr std::string_view kMagic = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";  // after the protocol
  const std::string_view start = file.text(0, std::min<std::uint64_t>(file.size(), 512));
  std::string_view form;
  if (start.starts_with("\x80") && start.substr(std::min<std::size_t>(2, start.size())).starts_with(kMagic))
    form = "torch's older form, a pickle and raw storages (torch before 1.6)";
  else if (start.size() > 262 && start.substr(257, 5) == "ustar")
    form = "a tar archive, torch's oldest form";
  else if (start.starts_with("\x80"))
    form = "a pickle that is no archive of torch.save";
  else
    return;
  at(path).fail(ErrorCode::E_PICKLE, {.problem = "a file of this form is not read",
                                      .expected = "a zip archive, as torch.save writes it since torch 1.6",
                                      .got = std::string(form),
                                      .hint = kSaveAgain});
}

constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value % 2 != 0 ? 0xedb88320u ^ value >> 1 : value >> 1;
    table[i] = value;
  }
  return table;
}();

}  // namespace

std::vector<ZipEntry> read_zip(std::span<const std::byte> image, const std::string& path, std::uint64_t max_entries) {
  const Bytes file(image, path);
  refuse_older_forms(file, path);
  const Directory directory = read_end(file);
  if (directory.entries > max_entries || directory.entries > image.size() / kCentralBytes) {
    file.fail(
        {.problem = "the archive states more entries than it can have",
         .expected = fmt::format("at most {}", std::min<std::uint64_t>(max_entries, image.size() / kCentralBytes)),
         .got = std::to_string(directory.entries)});
  }
  std::vector<ZipEntry> entries;
  std::uint64_t at = directory.begin;
  for (std::uint64_t i = 0; i < directory.entries; ++i) entries.push_back(read_entry(file, at, directory.begin));
  if (at - directory.begin != directory.bytes)
    file.fail({.problem = "the directory of the archive has another length than it states",
               .expected = fmt::format("{} bytes", directory.bytes),
               .got = fmt::format("{} bytes", at - directory.begin)});
  require_apart(file, entries);
  return entries;
}

const ZipEntry* find_entry(std::span<const ZipEntry> entries, std::string_view name) {
  const auto found = std::ranges::lower_bound(entries, name, {}, &ZipEntry::name);
  return found != entries.end() && found->name == name ? &*found : nullptr;
}

void require_checksum(std::span<const std::byte> image, const ZipEntry& entry, const std::string& path) {
  std::uint32_t crc = ~std::uint32_t{0};
  for (const std::byte byte : image.subspan(entry.begin, entry.end - entry.begin))
    crc = kCrcTable[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xff] ^ crc >> 8;
  if (~crc == entry.crc) return;
  at(path).fail(ErrorCode::PK_ARCHIVE, {.problem = fmt::format("the entry {} is damaged", printable(entry.name)),
                                        .expected = fmt::format("checksum {:08x}", entry.crc),
                                        .got = fmt::format("{:08x}", ~crc)});
}

}  // namespace peft::pickle
