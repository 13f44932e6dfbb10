// Sharded checkpoints: bad indexes as a table (rows 40 to 49), and the odd ones that must load.
#include "safetensors/reading/shard_index.h"
#include "support/test_files.h"

namespace peft::safetensors {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
using enum ErrorCode;

std::string shard(std::string_view tensor, std::size_t bytes = 4) {
  const std::string size = std::to_string(bytes);
  return image("{" + entry(tensor, "U8", "[" + size + "]", "[0," + size + "]") + "}", bytes);
}

struct BadIndex {
  const char* what;
  std::string text;
  ErrorCode code;
  std::vector<std::string> parts;
};

std::string mapped_to(std::string_view json_value) {
  return R"({"metadata":{"total_size":4},"weight_map":{"w":)" + std::string(json_value) + "}}";
}

std::vector<BadIndex> bad_indexes() {
  std::vector<BadIndex> rows = {
      {"40 not JSON", "weights", IX_FORM, {"the index is not valid JSON at offset 0"}},
      {"40 empty", "", IX_FORM, {"not valid JSON"}},
      {"40 cut", R"({"weight_map":{"w":"a.safe)", IX_FORM, {"not valid JSON at offset"}},
      {"40 text after it", "{\"weight_map\":{}} x", IX_FORM, {"something follows"}},
      {"40 array", "[]", IX_FORM, {"not a JSON object"}},
      {"40 no weight_map", R"({"metadata":{}})", IX_FORM, {"weight_map"}},
      {"40 weight_map array", R"({"weight_map":[]})", IX_FORM, {"weight_map", "an array"}},
      {"40 weight_map null", R"({"weight_map":null})", IX_FORM, {"weight_map", "null"}},
      {"41 value not a string", mapped_to("3"), IX_FORM, {"\"w\"", "an integer"}},
      {"41 value null", mapped_to("null"), IX_FORM, {"\"w\"", "null"}},
      {"49 tensor twice",
       R"({"weight_map":{"w":"a.safetensors","w":"b.safetensors"}})",
       ST_DUP,
       {"\"w\" appears twice"}},
      {"49 tensor twice, escaped",
       R"({"weight_map":{"w":"a.safetensors","\u0077":"a.safetensors"}})",
       ST_DUP,
       {"\"w\""}},
      {"49 weight_map twice", R"({"weight_map":{},"weight_map":{}})", ST_DUP, {"\"weight_map\""}},
      {"not UTF-8", "{\"weight_map\":{\"\xff\":\"a\"}}", ST_UTF8, {"0xff at offset 16 of the index"}},
      {"nested deeply", R"({"weight_map":{},"x":)" + std::string(100'000, '['), ST_DEPTH, {"of the index"}},
  };
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/../../b.safetensors", "a/b.safetensors", R"(C:\\x.safetensors)",
        R"(..\\x.safetensors)", "C:x.safetensors", "", ".", "..", ".safetensors", ".hidden.safetensors", "model.bin",
        R"(a\u0000.safetensors)", R"(a\u001b.safetensors)", R"(a\u202e.safetensors)", R"(a\n.safetensors)"}) {
    rows.push_back({name, mapped_to("\"" + std::string(name) + "\""), IX_PATH, {"\"w\"", "plain file name"}});
  }
  rows.push_back({"42 long name", mapped_to("\"" + std::string(250, 'n') + ".safetensors\""), IX_PATH, {"\"w\""}});
  return rows;
}

TEST(ShardIndex, BadOnesAreRefused) {
  for (const BadIndex& row : bad_indexes()) {
    SCOPED_TRACE(row.what);
    auto parts = row.parts;
    parts.emplace_back("folder/model.safetensors.index.json");
    expect_error(error_of([&] { parse_shard_index(row.text, "folder/model.safetensors.index.json"); }), row.code,
                 parts);
  }
}

TEST(ShardIndex, EscapedInMessages) {
  expect_error(error_of([] { parse_shard_index(mapped_to(R"("..\u001b[2J")"), "i"); }), IX_PATH, {"..\\u{1b}[2J"});
}

// A folder with shards a (tensor "wa") and b ("wb"), and an index.
class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() {
    folder_.write("a.safetensors", shard("wa"));
    folder_.write("b.safetensors", shard("wb"));
  }
  void index(std::string_view map, std::string_view metadata = R"("metadata":{"total_size":8},)") {
    folder_.write(kIndex, "{" + std::string(metadata) + "\"weight_map\":{" + std::string(map) + "}}");
  }
  std::optional<Error> error(const OpenOptions& options = {}) {
    return error_of([&] { Checkpoint::open(folder_.path(), options); });
  }
  std::string notes(const OpenOptions& options = {}) {
    std::string all;
    const Checkpoint checkpoint = Checkpoint::open(folder_.path(), options);
    for (const std::string& note : checkpoint.notes()) all += note + "\n";
    return all;
  }
  static constexpr const char* kGood = R"("wb":"b.safetensors","wa":"a.safetensors")";
  TestFolder folder_;
};

TEST_F(CheckpointTest, GoodOne) {
  index(kGood);
  const Checkpoint checkpoint = Checkpoint::open(folder_.path());
  ASSERT_EQ(checkpoint.files().size(), 2u);
  ASSERT_EQ(checkpoint.tensors().size(), 2u);
  EXPECT_EQ(checkpoint.tensors()[0].tensor->name, "wa");
  ASSERT_NE(checkpoint.find("wb"), nullptr);
  EXPECT_EQ(checkpoint.files()[checkpoint.find("wb")->file]->path(), folder_ / "b.safetensors");
  EXPECT_EQ(checkpoint.find("w"), nullptr);
  EXPECT_EQ(notes(), "");
}

TEST_F(CheckpointTest, SingleFileAndTheIndexThatWins) {
  folder_.write("model.safetensors", shard("single"));
  EXPECT_NE(Checkpoint::open(folder_.path()).find("single"), nullptr);
  index(kGood);
  EXPECT_EQ(Checkpoint::open(folder_.path()).find("single"), nullptr);
  EXPECT_NE(notes().find("model.safetensors is ignored"), std::string::npos);
}

TEST_F(CheckpointTest, Row43LinkOutOfTheFolder) {
  const TestFolder elsewhere;
  const std::string target = elsewhere.write("c.safetensors", shard("wc"));
  std::filesystem::create_symlink(target, folder_ / "c.safetensors");
  index(R"("wc":"c.safetensors")", "");
  expect_error(error(), IX_LINK, {folder_ / "c.safetensors", target, "--follow-symlinks"});
  EXPECT_EQ(error({.follow_symlinks = true}), std::nullopt);
  std::filesystem::create_symlink("a.safetensors", folder_ / "d.safetensors");
  index(R"("wa":"d.safetensors")", "");
  EXPECT_EQ(error(), std::nullopt) << "a link inside the folder";
}

TEST_F(CheckpointTest, Row43LinksOfAHuggingFaceCache) {
  const std::string blob = folder_.write("models--x/blobs/0123", shard("w"));
  const std::string outside = folder_.write("models--x/other/0123", shard("w"));
  folder_.write("models--x/snapshots/main/model.safetensors.index.json", R"({"weight_map":{"w":"s.safetensors"}})");
  const std::string snapshot = folder_ / "models--x/snapshots/main";
  std::filesystem::create_symlink("../../blobs/0123", snapshot + "/s.safetensors");
  EXPECT_EQ(error_of([&] { Checkpoint::open(snapshot); }), std::nullopt);
  std::filesystem::remove(snapshot + "/s.safetensors");
  std::filesystem::create_symlink("../../other/0123", snapshot + "/s.safetensors");
  expect_error(error_of([&] { Checkpoint::open(snapshot); }), IX_LINK, {outside});
}

TEST_F(CheckpointTest, Row44MissingShardsAreAllNamed) {
  index(R"("wa":"a.safetensors","wc":"c.safetensors","wd":"d.safetensors")");
  expect_error(error(), IX_MISSING, {kIndex, "2 of 3 shards", "c.safetensors, d.safetensors", "incomplete"});
  std::filesystem::create_symlink("nothing", folder_ / "c.safetensors");
  expect_error(error(), IX_MISSING, {"2 of 3"});
}

TEST_F(CheckpointTest, Row37ShardsThatAreNoFiles) {
  std::filesystem::create_directory(folder_ / "c.safetensors");
  index(R"("wc":"c.safetensors")");
  expect_error(error(), IO_KIND, {folder_ / "c.safetensors", "a folder"});
}

TEST_F(CheckpointTest, Row45TensorInAnotherShard) {
  index(R"("wa":"b.safetensors","wb":"b.safetensors","x":"a.safetensors")");
  expect_error(error(), IX_WHERE, {kIndex, "\"wa\"", "expected b.safetensors, got a.safetensors", "another version"});
}

TEST_F(CheckpointTest, Row46TensorsThatOnlyOneSideKnows) {
  index(R"("wa":"a.safetensors","mtp.fc.weight":"b.safetensors")");
  EXPECT_NE(notes().find("1 tensors that no shard has, first \"mtp.fc.weight\" in b.safetensors"), std::string::npos)
      << notes();
  EXPECT_NE(notes().find("1 tensors that the index does not name, first \"wb\" in b.safetensors"), std::string::npos)
      << notes();
}

TEST_F(CheckpointTest, Row47TensorInTwoShards) {
  folder_.write("b.safetensors", shard("wa"));
  index(R"("wa":"a.safetensors","wb":"b.safetensors")");
  expect_error(error(), IX_DUP, {"\"wa\"", "a.safetensors and b.safetensors"});
}

TEST_F(CheckpointTest, Row48TotalSizeIsOnlyTold) {
  const std::pair<const char*, const char*> rows[] = {
      {R"("metadata":{"total_size":9},)", "9 bytes, the tensors have 8"},
      {R"("metadata":{},)", "no total_size"},
      {"", "no total_size"},
      {R"("metadata":{"total_size":"8"},)", "no size: \"8\""},
      {R"("metadata":{"total_size":-8},)", "no size: -8"},
      {R"("metadata":{"total_size":8.0},)", "no size: 8.0"},
      {R"("metadata":null,)", "no total_size"},
  };
  for (const auto& [metadata, expected] : rows) {
    index(kGood, metadata);
    EXPECT_NE(notes().find(expected), std::string::npos) << metadata << notes();
  }
}

TEST_F(CheckpointTest, ABadShardIsNamed) {
  folder_.write("b.safetensors", std::string(7, ' '));
  index(kGood);
  expect_error(error(), ST_SHORT, {folder_ / "b.safetensors", "got 7 bytes"});
}

TEST_F(CheckpointTest, FoldersWithoutWeights) {
  expect_error(error(), IO_OPEN, {folder_.path(), "model.safetensors or model.safetensors.index.json"});
  folder_.write("pytorch_model.bin", "x");
  expect_error(error(), E_PICKLE, {"pytorch_model.bin"});
  expect_error(error_of([&] { Checkpoint::open(folder_ / "none"); }), IO_OPEN, {"none", "No such file"});
  expect_error(error_of([&] { Checkpoint::open(folder_ / "a.safetensors"); }), IO_KIND,
               {"a.safetensors", "not a folder"});
}

}  // namespace
}  // namespace peft::safetensors
