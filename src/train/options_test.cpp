#include "peft/train/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "peft/error.h"

namespace peft::train {
namespace {

std::vector<double> rates(Options options, std::int64_t total) {
  options.learning_rate = 2;
  std::vector<double> result;
  for (std::int64_t step = 0; step < total; ++step) result.push_back(learning_rate(options, step, total));
  return result;
}

using testing::DoubleEq;
using testing::ElementsAre;
using testing::HasSubstr;

// The numbers are those of transformers 5.24's get_scheduler.
TEST(Schedules, are_those_of_transformers) {
  Options options;
  options.lr_scheduler_type = Schedule::constant, options.warmup_steps = 2;
  EXPECT_THAT(rates(options, 4), ElementsAre(2, 2, 2, 2));
  options.lr_scheduler_type = Schedule::constant_with_warmup;
  EXPECT_THAT(rates(options, 4), ElementsAre(0, 1, 2, 2));
  options.lr_scheduler_type = Schedule::linear;
  EXPECT_THAT(rates(options, 6), ElementsAre(0, 1, 2, 1.5, 1, 0.5));
  options.lr_scheduler_type = Schedule::cosine;
  EXPECT_THAT(rates(options, 4), ElementsAre(0, 1, 2, DoubleEq(1)));
  options.lr_scheduler_type = Schedule::cosine_with_min_lr, options.min_lr = 0.5;
  EXPECT_THAT(rates(options, 4), ElementsAre(0, 1, 2, DoubleEq(1.25)));
}

TEST(Schedules, warm_up_in_steps_or_a_share) {
  Options options;
  options.warmup_steps = 0.25;
  EXPECT_EQ(warmup_steps(options, 10), 3);  // rounded up
  options.warmup_steps = 1;
  EXPECT_EQ(warmup_steps(options, 10), 1);
}

TEST(Schedules, have_names) {
  for (const std::string& name : schedule_names()) EXPECT_EQ(name_of(*schedule_named(name)), name);
  EXPECT_FALSE(schedule_named("polynomial"));
}

TEST(Options, that_cannot_be_are_named) {
  const auto error = [](auto change) -> std::string {
    Options options;
    change(options);
    try {
      check(options);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(error([](Options&) {}), "no error");
  EXPECT_THAT(error([](Options& o) { o.adam_beta2 = 1; }), HasSubstr("adam_beta2"));
  EXPECT_THAT(error([](Options& o) { o.per_device_train_batch_size = 0; }), HasSubstr("per_device_train_batch_size"));
  EXPECT_THAT(error([](Options& o) { o.learning_rate = -1; }), HasSubstr("learning_rate"));
  EXPECT_THAT(error([](Options& o) { o.lr_scheduler_type = Schedule::cosine_with_min_lr; }), HasSubstr("min_lr"));
  EXPECT_THAT(error([](Options& o) { o.min_lr = 1e-6; }), HasSubstr("cosine_with_min_lr"));
}

}  // namespace
}  // namespace peft::train
