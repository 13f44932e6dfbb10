# Everything we use is a package of the system; nothing is downloaded or vendored. docs/building.md lists the packages.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(simdjson REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Eigen3 REQUIRED)  # headers; for src/low_rank alone
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

add_library(peft_dependencies INTERFACE)
target_link_libraries(peft_dependencies INTERFACE
  fmt::fmt nlohmann_json::nlohmann_json simdjson::simdjson PkgConfig::PCRE2 PkgConfig::HWY PkgConfig::XXHASH Threads::Threads)
