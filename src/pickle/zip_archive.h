// The zip archives that torch.save writes: entries that are stored as they are. Nothing is unpacked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace peft::pickle {

struct ZipEntry {
  std::string_view name;             // in the archive's bytes
  std::uint64_t begin = 0, end = 0;  // of its data, in the archive
  std::uint32_t crc = 0;
};

// The entries of an archive, by name. Throws PK_ARCHIVE for what is no such archive: one with compressed or encrypted
// entries, with several parts, with data that overlaps, or that is cut off or damaged; E_PICKLE, with the format's
// name, for files that torch wrote before it wrote archives.
std::vector<ZipEntry> read_zip(std::span<const std::byte> image, const std::string& path, std::uint64_t max_entries);

const ZipEntry* find_entry(std::span<const ZipEntry> entries, std::string_view name);

// Throws PK_ARCHIVE unless the entry's bytes have the checksum that the archive states.
void require_checksum(std::span<const std::byte> image, const ZipEntry& entry, const std::string& path);

}  // namespace peft::pickle
