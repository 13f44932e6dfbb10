// What may be taken from a folder that the user named: its files, links that stay in it, and links to the blobs of the
// same repository of a Hugging Face cache (snapshots/REVISION/x -> ../../blobs/SHA). Every other link leads to a file
// that nobody named; --follow-symlinks accepts it.
#pragma once

#include <string>

#include "safetensors/input_file.h"

namespace peft::safetensors {

// Throws IX_LINK when the open file does not lie in `folder`. The link cannot change afterwards.
void require_inside(const InputFile& file, const std::string& folder);

// Where folder/name, a regular file, really lies: a path whose last part is no link, to be copied from later. Throws
// IX_LINK for a link that leaves the folder, IO_OPEN for one that leads nowhere, IO_KIND for what is no regular file.
std::string path_inside(const std::string& folder, const std::string& name, bool follow_symlinks);

}  // namespace peft::safetensors
