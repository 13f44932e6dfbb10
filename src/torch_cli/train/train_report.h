// What `peft train --report` shows and the run itself does not know: answers, and how large what was learnt is.
#pragma once

#include <string>
#include <vector>

#include "cli/report/train_page.h"
#include "peft/nn/peft_model.h"
#include "peft/train/data.h"

namespace peft::torch_cli {

// Greedy answers to the beginnings of the first rows of `data`, by the base alone and with the adapter: texts where the
// base's folder has a tokenizer, else token ids.
std::vector<cli::TrainSample> train_samples(nn::PeftModel& model, const std::string& base, const train::Dataset& data);

// Frobenius norms of scale * B * A of an adapter's folder, by layer and kind of module. Those of experts together.
cli::LayerCells learnt_norms(const std::string& adapter, const std::string& base);

}  // namespace peft::torch_cli
