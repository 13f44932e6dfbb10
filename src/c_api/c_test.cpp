// The C interface against the C++ one, on the golden data.
#include "peft/c.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "adapter/view_math.h"
#include "peft/execute.h"
#include "peft/verbs.h"
#include "test_paths.h"

namespace peft {
namespace {

namespace fs = std::filesystem;

std::string golden(const std::string& path) { return (fs::path(PEFT_SOURCE_DIR) / "tests/golden" / path).string(); }
std::string adapter() { return golden("convert/mixtral-plain/adapter"); }

class CApi : public ::testing::Test {
 protected:
  void TearDown() override {
    peft_error_free(error);
    fs::remove_all(out);
  }
  std::string code() const { return error == nullptr ? "" : peft_error_code(error); }

  peft_error* error = nullptr;
  const fs::path out = fs::path(::testing::TempDir()) /
                       ("c_api_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST_F(CApi, VersionIsThatOfTheHeaders) { EXPECT_STREQ(peft_version(), PEFT_VERSION); }

TEST_F(CApi, InspectSaysWhatTheLibrarySays) {
  peft_inspection* inspection = nullptr;
  ASSERT_EQ(peft_inspect(adapter().c_str(), nullptr, &inspection, &error), 0) << peft_error_message(error);
  const InspectReport want = inspect(adapter(), {});
  EXPECT_EQ(peft_inspection_layout(inspection), info(want.layout.value()).name);
  EXPECT_EQ(peft_inspection_producer(inspection), want.producer);
  EXPECT_EQ(peft_inspection_num_tensors(inspection), want.num_tensors);
  EXPECT_EQ(peft_inspection_parameters(inspection), want.parameters);
  ASSERT_EQ(peft_inspection_num_consumers(inspection), want.consumers.size());
  ASSERT_FALSE(want.consumers.empty());
  for (std::size_t i = 0; i < want.consumers.size(); ++i) {
    EXPECT_EQ(peft_inspection_consumer_name(inspection, i), want.consumers[i].name);
    EXPECT_EQ(peft_inspection_consumer_verdict(inspection, i), name(want.consumers[i].outcome));
  }
  EXPECT_STREQ(peft_inspection_consumer_name(inspection, 1000), "");
  peft_inspection_free(inspection);
}

TEST_F(CApi, ConvertsAndVerifies) {
  peft_convert_options options{};
  options.to = "peft-fused";
  peft_result* result = nullptr;
  ASSERT_EQ(peft_convert(adapter().c_str(), out.c_str(), &options, &result, &error), 0) << peft_error_message(error);
  EXPECT_STREQ(peft_result_exactness(result), "value-exact");
  EXPECT_GT(peft_result_bytes_out(result), 0u);
  peft_result_free(result);

  peft_verification* verification = nullptr;
  ASSERT_EQ(peft_verify(adapter().c_str(), out.c_str(), nullptr, &verification, &error), 0);
  EXPECT_EQ(peft_verification_same(verification), 1);
  EXPECT_GT(peft_verification_compared(verification), 0);
  EXPECT_EQ(peft_verification_num_differences(verification), 0);
  peft_verification_free(verification);
}

// Every file of the folder, by its name.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    files[entry.path().filename().string()] = text.str();
  }
  return files;
}

TEST_F(CApi, MergesAsTheLibraryDoes) {
  const std::string base = golden("models/llama"), other = out.string() + "_library";
  const std::string path = golden("merge/llama-bf16/adapter");
  const peft_weighted_adapter half{path.c_str(), 0.5};
  peft_merge_options options{};
  options.mode = "peft";
  peft_result* result = nullptr;
  ASSERT_EQ(peft_merge(base.c_str(), &half, 1, out.c_str(), &options, &result, &error), 0) << peft_error_message(error);
  peft_result_free(result);
  MergeOptions want;
  want.base = base;
  want.adapters = {{path, 0.5}};
  want.mode = MergeMode::peft;
  execute(plan_merge(want).plan, other);
  EXPECT_EQ(contents(out), contents(other));
  fs::remove_all(other);
}

TEST_F(CApi, ErrorsKeepTheirFieldsAndExitCodes) {
  peft_convert_options options{};
  options.to = "no-such-layout";
  EXPECT_EQ(peft_convert(adapter().c_str(), out.c_str(), &options, nullptr, &error), 2);
  EXPECT_EQ(code(), "USAGE");
  EXPECT_STREQ(peft_error_got(error), "no-such-layout");
  EXPECT_NE(std::string(peft_error_expected(error)).find("peft-fused"), std::string::npos);
  peft_error_free(error);

  peft_inspection* inspection = nullptr;
  EXPECT_EQ(peft_inspect("/no/such/folder", nullptr, &inspection, &error), 3);
  EXPECT_EQ(inspection, nullptr);
  EXPECT_EQ(code(), "IO_OPEN");
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(CApi, MissingArgumentsAreErrors) {
  EXPECT_EQ(peft_convert(adapter().c_str(), out.c_str(), nullptr, nullptr, &error), 2);
  EXPECT_STREQ(peft_error_tensor(error), "options");
  peft_error_free(error);
  EXPECT_EQ(peft_inspect(nullptr, nullptr, nullptr, &error), 2);
  EXPECT_EQ(peft_merge(nullptr, nullptr, 1, nullptr, nullptr, nullptr, nullptr), 2) << "without a place for the error";
}

TEST_F(CApi, ProgressCanStopARun) {
  peft_convert_options options{};
  options.to = "peft-fused";
  options.output.progress = [](void* user, std::uint64_t, std::uint64_t) { return ++*static_cast<int*>(user), 1; };
  int calls = 0;
  options.output.user = &calls;
  EXPECT_EQ(peft_convert(adapter().c_str(), out.c_str(), &options, nullptr, &error), 5);
  EXPECT_EQ(code(), "INTERRUPTED");
  EXPECT_GT(calls, 0);
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(CApi, FactorsAreTheMatrices) {
  peft_adapter* handle = nullptr;
  ASSERT_EQ(peft_adapter_open(adapter().c_str(), nullptr, &handle, &error), 0) << peft_error_message(error);
  const Input want = load(adapter(), {});
  const auto& factors = want.reading.factors.factors;
  ASSERT_EQ(peft_adapter_num_factors(handle), factors.size());
  for (std::size_t i = 0; i < factors.size(); ++i) {
    peft_factor factor{};
    ASSERT_EQ(peft_adapter_factor(handle, i, &factor, &error), 0);
    EXPECT_EQ(factor.module, factors[i].site.module);
    EXPECT_EQ(factor.expert, factors[i].site.expert);
    EXPECT_EQ(factor.projection, name(factors[i].site.projection));
    EXPECT_EQ(factor.scale, factors[i].scale);
    for (const peft_side side : {PEFT_LORA_A, PEFT_LORA_B}) {
      const View& view = side == PEFT_LORA_A ? factors[i].a : factors[i].b;
      EXPECT_EQ(view.rows, side == PEFT_LORA_A ? factor.rank : factor.out);
      EXPECT_EQ(view.cols, side == PEFT_LORA_A ? factor.in : factor.rank);
      std::vector<float> values(static_cast<std::size_t>(view.rows * view.cols));
      ASSERT_EQ(peft_adapter_read(handle, i, side, values.data(), values.size(), &error), 0);
      std::vector<double> columns(values.size());
      read(peft::adapter::bind(*want.adapter.weights, view), columns);
      for (std::int64_t r = 0; r < view.rows; ++r) {
        for (std::int64_t c = 0; c < view.cols; ++c)
          ASSERT_EQ(values[static_cast<std::size_t>(r * view.cols + c)],
                    static_cast<float>(columns[static_cast<std::size_t>(c * view.rows + r)]));
      }
    }
  }
  float one = 0;
  EXPECT_EQ(peft_adapter_read(handle, 0, PEFT_LORA_A, &one, 1, &error), 2);
  EXPECT_STREQ(peft_error_tensor(error), "size");
  peft_adapter_free(handle);
}

}  // namespace
}  // namespace peft
