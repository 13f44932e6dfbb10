// Rows of numbers as --ids and --mask take them: "1,2,3;4,5,6".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace peft::cli {

using Rows = std::vector<std::vector<std::int64_t>>;

// Rows of equal length, at least one number each, none negative. Throws USAGE naming the flag, row and place.
Rows parse_ids(std::string_view text);
// The same shape as `ids`, zeros and ones, each row with a one. Empty text: an empty result, nothing is masked.
Rows parse_mask(std::string_view text, const Rows& ids);
// Text generation continues the last token: throws USAGE where padding stands right of a row's tokens or between them.
void require_left_padding(const Rows& mask);

}  // namespace peft::cli
