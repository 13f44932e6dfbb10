#include <fmt/core.h>

#include <algorithm>

#include "base/utf8.h"
#include "peft/error.h"

namespace peft {
namespace {

struct Range {
  char32_t first, last;
};

// What can move the cursor, recolour or reorder a terminal line, or hide: C0, DEL and C1 controls, zero-width and
// bidirectional marks, line separators, the byte order mark, interlinear and tag characters.
constexpr Range kUnsafe[] = {{0x00, 0x1F},     {0x7F, 0x9F},     {0xAD, 0xAD},      {0x61C, 0x61C},
                             {0x180E, 0x180E}, {0x200B, 0x200F}, {0x2028, 0x202E},  {0x2060, 0x206F},
                             {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F}};

bool unsafe(char32_t point) {
  return std::any_of(std::begin(kUnsafe), std::end(kUnsafe),
                     [point](Range range) { return point >= range.first && point <= range.last; });
}

}  // namespace

std::string printable(std::string_view untrusted, std::size_t limit) {
  std::string text;
  std::size_t characters = 0;
  for (std::size_t i = 0; i < untrusted.size(); ++characters) {
    if (characters == limit) {
      text += fmt::format("... ({} bytes in all)", untrusted.size());
      break;
    }
    const Utf8Step step = utf8_step(untrusted.substr(i, 4));
    if (step.length == 0) {
      text += fmt::format("\\x{{{:02x}}}", static_cast<unsigned char>(untrusted[i]));
      ++i;
      continue;
    }
    if (unsafe(step.code_point)) {
      text += fmt::format("\\u{{{:x}}}", static_cast<std::uint32_t>(step.code_point));
    } else {
      text += untrusted.substr(i, step.length);
    }
    i += step.length;
  }
  return text;
}

}  // namespace peft
